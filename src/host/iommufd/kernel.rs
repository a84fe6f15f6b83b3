//! iommufd, one function for each thing that it does (`linux/iommufd.h`).

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use iommufd_bindings as iommufd;
use rustix::io::Errno;

use super::sys::{self, Argument};
use crate::address::IovaRange;
use crate::host::{Access, HostError};

/// Where the kernel shows iommufd.
const PATH: &str = "/dev/iommu";

const FIXED: u32 = iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
const WRITEABLE: u32 = iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
const READABLE: u32 = iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
const WITH_FAULTS: u32 = iommufd::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
const WITH_PASIDS: u32 = iommufd::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID;

/// A call that the kernel has refused.
#[derive(Debug, thiserror::Error)]
#[error("{call} {arguments}: {}", std::io::Error::from(*.errno))]
pub struct KernelError {
    call: &'static str,
    arguments: String,
    /// Why.
    pub errno: Errno,
}

impl KernelError {
    pub(super) fn new(call: &'static str, arguments: impl fmt::Display, errno: Errno) -> Self {
        Self { call, arguments: arguments.to_string(), errno }
    }

    /// What a guest is told whose request led to the call. `unacceptable` is for addresses or
    /// endpoints that the kernel does not accept; the rest only the host's owner can mend, who
    /// therefore has to hear of it.
    pub(super) fn refuse(self, unacceptable: impl Fn(String) -> HostError) -> HostError {
        let text = self.to_string();
        match self.errno {
            Errno::INVAL | Errno::ADDRINUSE | Errno::OPNOTSUPP | Errno::NODEV | Errno::OVERFLOW => {
                unacceptable(text)
            }
            Errno::NOMEM | Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE => {
                self.warn();
                HostError::NoMemory(text)
            }
            _ => {
                self.warn();
                HostError::Failed(text)
            }
        }
    }

    /// A guest can repeat at will what led here: the log hears of it less and less often.
    fn warn(&self) {
        static SO_FAR: AtomicU64 = AtomicU64::new(0);
        let count = SO_FAR.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::warn!("{self} (refused for want of something on the host: {count} so far)");
        }
    }
}

/// What to do where a file of a device is refused, and not by its own permissions.
pub(super) const DEVICE_POLICY: &str =
    "a policy of its cgroup keeps the daemon from it; a unit of systemd needs DeviceAllow= for it";

/// What it means, and what to do, where that is known.
fn cannot_open(errno: Errno) -> String {
    let hint = match errno {
        Errno::NOENT | Errno::NODEV => {
            "the kernel has no iommufd; load its module, or use a kernel with CONFIG_IOMMUFD"
        }
        Errno::ACCESS => "give the daemon's user access to it, by a udev rule say",
        Errno::PERM => DEVICE_POLICY,
        _ => "endpoints of the host need it",
    };
    format!("cannot open {PATH}: {}; {hint}", std::io::Error::from(errno))
}

/// iommufd of this process: one context, which all objects belong to.
#[derive(Debug)]
pub struct Kernel(OwnedFd);

/// What a page table (HWPT) can do besides translating.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Extras {
    /// Reports page requests into the fault queue of this number.
    pub(super) fault_queue: Option<u32>,
    /// Can be used together with PASIDs.
    pub(super) pasids: bool,
    /// What the driver of the IOMMU is told: type, and two numbers.
    pub(super) driver_data: Option<(u32, [u32; 2])>,
}

impl Kernel {
    /// Opens a context.
    ///
    /// # Errors
    /// Why not, in a sentence.
    pub fn open() -> Result<Arc<Self>, String> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let opened = rustix::fs::open(PATH, flags, rustix::fs::Mode::empty());
        opened.map(|fd| Arc::new(Self(fd))).map_err(cannot_open)
    }

    pub(super) fn call<A: Argument>(
        &self,
        argument: &mut A,
        arguments: impl FnOnce() -> String,
    ) -> Result<(), KernelError> {
        sys::ioctl(&self.0, argument).map_err(|errno| KernelError::new(A::NAME, arguments(), errno))
    }

    /// An object that the kernel has just made.
    pub(super) fn object(self: &Arc<Self>, id: u32) -> Object {
        Object { kernel: self.clone(), id }
    }

    /// An empty address space (IOAS).
    pub(super) fn new_ioas(self: &Arc<Self>) -> Result<Object, KernelError> {
        let mut alloc = iommufd::iommu_ioas_alloc::default();
        self.call(&mut alloc, String::new)?;
        Ok(self.object(alloc.out_ioas_id))
    }

    /// Puts `len` bytes at `offset` of a file at `iova`. Pins nothing by itself.
    pub(super) fn map_file(
        &self,
        ioas: &Object,
        iova: u64,
        file: &File,
        offset: u64,
        len: u64,
    ) -> Result<(), KernelError> {
        let mut map = iommufd::iommu_ioas_map_file {
            flags: FIXED | WRITEABLE | READABLE,
            ioas_id: ioas.id,
            fd: file.as_raw_fd(),
            start: offset,
            length: len,
            iova,
            ..Default::default()
        };
        self.call(&mut map, || format!("{len:#x} bytes at {offset:#x} of a file at {iova:#x}"))
    }

    /// Puts memory of this process at `iova`. It must stay mapped until it is unmapped there.
    pub(super) fn map_memory(
        &self,
        ioas: &Object,
        iova: u64,
        address: u64,
        len: u64,
    ) -> Result<(), KernelError> {
        let mut map = iommufd::iommu_ioas_map {
            flags: FIXED | WRITEABLE | READABLE,
            ioas_id: ioas.id,
            user_va: address,
            length: len,
            iova,
            ..Default::default()
        };
        self.call(&mut map, || format!("{len:#x} bytes of memory at {iova:#x}"))
    }

    /// Puts what is at `from_iova` of another address space at `iova`, too; pins are shared.
    pub(super) fn copy(
        &self,
        ioas: &Object,
        iova: u64,
        from: &Object,
        from_iova: u64,
        len: u64,
        access: Access,
    ) -> Result<(), KernelError> {
        let read = if access.read { READABLE } else { 0 };
        let write = if access.write { WRITEABLE } else { 0 };
        let mut copy = iommufd::iommu_ioas_copy {
            flags: FIXED | read | write,
            dst_ioas_id: ioas.id,
            src_ioas_id: from.id,
            length: len,
            dst_iova: iova,
            src_iova: from_iova,
            ..Default::default()
        };
        self.call(&mut copy, || {
            format!("{len:#x} bytes at {from_iova:#x} of guest memory at {iova:#x}, {access:?}")
        })
    }

    /// Removes all areas in `range`. ENOENT: there is none, or one reaches out of it; those
    /// before that one are then gone.
    pub(super) fn unmap(&self, ioas: &Object, range: IovaRange) -> Result<(), KernelError> {
        let mut unmap = iommufd::iommu_ioas_unmap {
            ioas_id: ioas.id,
            iova: range.first(),
            // For all addresses there are, this is what the kernel wants to see.
            length: range.span().saturating_add(1),
            ..Default::default()
        };
        self.call(&mut unmap, || range.to_string())
    }

    /// The addresses that can be mapped in an address space, and their alignment in bytes.
    pub(super) fn iova_ranges(&self, ioas: &Object) -> Result<(Vec<IovaRange>, u64), KernelError> {
        const MOST: usize = 256;
        let mut found = [iommufd::iommu_iova_range::default(); MOST];
        let mut ranges = iommufd::iommu_ioas_iova_ranges {
            ioas_id: ioas.id,
            num_iovas: MOST as u32,
            allowed_iovas: found.as_mut_ptr() as u64,
            ..Default::default()
        };
        self.call(&mut ranges, || format!("of address space {}", ioas.id))?;
        let count = MOST.min(ranges.num_iovas as usize);
        let range = |range: &iommufd::iommu_iova_range| IovaRange::new(range.start, range.last);
        let all = found[..count].iter().filter_map(range).collect();
        Ok((all, ranges.out_iova_alignment))
    }

    /// A queue of page requests, and the descriptor to read it.
    pub(super) fn new_fault_queue(self: &Arc<Self>) -> Result<(Object, OwnedFd), KernelError> {
        let mut alloc = iommufd::iommu_fault_alloc::default();
        self.call(&mut alloc, String::new)?;
        Ok((self.object(alloc.out_fault_id), sys::new_descriptor(alloc.out_fault_fd)))
    }

    /// A page table (HWPT) for `device` over the mappings of an address space.
    pub(super) fn new_page_table(
        self: &Arc<Self>,
        device: u32,
        ioas: &Object,
        extras: Extras,
    ) -> Result<Object, KernelError> {
        let with_faults = extras.fault_queue.map_or(0, |_| WITH_FAULTS);
        let with_pasids = if extras.pasids { WITH_PASIDS } else { 0 };
        let (data_type, data) = extras.driver_data.unwrap_or_default();
        let data_len = if extras.driver_data.is_some() { size_of_val(&data) as u32 } else { 0 };
        let mut alloc = iommufd::iommu_hwpt_alloc {
            flags: with_faults | with_pasids,
            dev_id: device,
            pt_id: ioas.id,
            data_type,
            data_len,
            data_uptr: data.as_ptr() as u64,
            fault_id: extras.fault_queue.unwrap_or(0),
            ..Default::default()
        };
        self.call(&mut alloc, || format!("for device {device}, {extras:?}"))?;
        Ok(self.object(alloc.out_hwpt_id))
    }

    /// How many bits the PASIDs of a device have; 0 when it has none that can be used.
    pub(super) fn pasid_bits(&self, device: u32) -> Result<u8, KernelError> {
        let mut info = iommufd::iommu_hw_info { dev_id: device, ..Default::default() };
        self.call(&mut info, || format!("of device {device}"))?;
        Ok(info.out_max_pasid_log2.min(20))
    }

    fn destroy(&self, id: u32) -> Result<(), KernelError> {
        let mut destroy = iommufd::iommu_destroy { id, ..Default::default() };
        sys::ioctl_surely(&self.0, &mut destroy)
            .map_err(|errno| KernelError::new(iommufd::iommu_destroy::NAME, id, errno))
    }
}

impl AsFd for Kernel {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An object of the kernel's, destroyed when dropped. What refers to it has to be dropped before.
#[derive(Debug)]
pub struct Object {
    kernel: Arc<Kernel>,
    id: u32,
}

impl Object {
    /// The kernel's number for it.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        if let Err(error) = self.kernel.destroy(self.id) {
            log::error!("left behind until the daemon ends: {error}");
        }
    }
}
