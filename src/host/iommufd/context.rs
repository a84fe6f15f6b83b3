//! An iommufd context and its objects (`linux/iommufd.h`).

use std::fmt;
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use iommufd_bindings as iommufd;

use super::error::SetupError;
use super::ioctl::{self, Argument, PlainArgument};
use crate::address::IovaRange;
use crate::host::{Access, KernelError};

const PATH: &str = "/dev/iommu";

const FIXED: u32 = iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA;
const WRITEABLE: u32 = iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE;
const READABLE: u32 = iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;
const FAULT_ID_VALID: u32 = iommufd::iommufd_hwpt_alloc_flags_IOMMU_HWPT_FAULT_ID_VALID;
const ALLOC_PASID: u32 = iommufd::iommufd_hwpt_alloc_flags_IOMMU_HWPT_ALLOC_PASID;

/// The width of a PASID in bits (PCI Express Base Specification, 6.20).
const MAX_PASID_BITS: u8 = 20;

/// The iommufd context of the daemon, which owns all its objects.
#[derive(Debug)]
pub(super) struct Context(OwnedFd);

/// The options of an HWPT.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct HwptOptions {
    /// The object number of the fault queue that page requests go to.
    pub(super) fault_queue: Option<u32>,
    /// The HWPT can be attached to PASIDs, or to an endpoint that has PASIDs attached.
    pub(super) pasids: bool,
    /// Data for the IOMMU driver: its type and contents.
    pub(super) data: Option<(u32, [u32; 2])>,
}

/// The part of a mapping in one region of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Slice {
    pub(super) iova: u64,
    pub(super) gpa: u64,
    pub(super) len: u64,
}

impl Slice {
    /// Returns the I/O virtual addresses.
    pub(super) fn range(&self) -> Option<IovaRange> {
        IovaRange::new(self.iova, self.iova + (self.len - 1))
    }
}

impl Context {
    pub(super) fn open() -> Result<Arc<Self>, SetupError> {
        let flags = rustix::fs::OFlags::RDWR | rustix::fs::OFlags::CLOEXEC;
        let fd = rustix::fs::open(PATH, flags, rustix::fs::Mode::empty());
        Ok(Arc::new(Self(fd.map_err(|errno| SetupError::OpenIommufd { errno })?)))
    }

    /// Makes an ioctl. `object` describes what it was made for in an error.
    pub(super) fn call<A: PlainArgument>(
        &self,
        argument: &mut A,
        object: fmt::Arguments<'_>,
    ) -> Result<(), KernelError> {
        // SAFETY: there is no address and no descriptor in the argument.
        unsafe { self.call_unchecked(argument, object) }
    }

    /// Makes an ioctl. `object` describes what it was made for in an error.
    ///
    /// # Safety
    /// As for [`ioctl::ioctl_unchecked`].
    pub(super) unsafe fn call_unchecked<A: Argument>(
        &self,
        argument: &mut A,
        object: fmt::Arguments<'_>,
    ) -> Result<(), KernelError> {
        let result = match ioctl::inject_failure::<A>() {
            // SAFETY: the caller vouches for the argument.
            Ok(()) => unsafe { ioctl::ioctl_unchecked(self, argument) },
            Err(errno) => Err(errno),
        };
        result.map_err(|errno| KernelError::new(A::NAME, object, errno))
    }

    /// Takes ownership of an object that the kernel has created.
    pub(super) fn object(self: &Arc<Self>, id: u32) -> Object {
        Object { context: self.clone(), id }
    }

    /// Allocates an empty IOAS.
    pub(super) fn alloc_ioas(self: &Arc<Self>) -> Result<Object, KernelError> {
        let mut alloc = iommufd::iommu_ioas_alloc::default();
        self.call(&mut alloc, format_args!("a new IOAS"))?;
        Ok(self.object(alloc.out_ioas_id))
    }

    /// Maps `len` bytes at `offset` of a memory file at `iova`. An IOAS without HWPT pins no pages.
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
        let object = format_args!("{len:#x} bytes at offset {offset:#x} of a file, IOVA {iova:#x}");
        // SAFETY: the descriptor is that of an open file. The kernel takes a reference to the
        // file's pages, and accesses no memory of this process.
        unsafe { self.call_unchecked(&mut map, object) }
    }

    /// Maps `len` bytes at `address` of this process at `iova`.
    ///
    /// # Safety
    /// The memory is shared with devices: it stays mapped at `address`, and is accessed only as
    /// guest memory is, until this IOAS and all that have copied it (see [`copy`](Self::copy))
    /// have unmapped it or were destroyed.
    pub(super) unsafe fn map_memory(
        &self,
        ioas: &Object,
        iova: u64,
        address: *mut u8,
        len: u64,
    ) -> Result<(), KernelError> {
        let mut map = iommufd::iommu_ioas_map {
            flags: FIXED | WRITEABLE | READABLE,
            ioas_id: ioas.id,
            user_va: address as u64,
            length: len,
            iova,
            ..Default::default()
        };
        let object = format_args!("{len:#x} bytes of memory, IOVA {iova:#x}");
        // SAFETY: the caller vouches for the memory.
        unsafe { self.call_unchecked(&mut map, object) }
    }

    /// Maps a slice of guest memory, which `memory` maps at guest-physical addresses, in `ioas`.
    /// The two share the pins of its pages.
    pub(super) fn copy(
        &self,
        ioas: &Object,
        memory: &Object,
        slice: &Slice,
        access: Access,
    ) -> Result<(), KernelError> {
        let Slice { iova, gpa, len } = *slice;
        let read = if access.read { READABLE } else { 0 };
        let write = if access.write { WRITEABLE } else { 0 };
        let mut copy = iommufd::iommu_ioas_copy {
            flags: FIXED | read | write,
            dst_ioas_id: ioas.id,
            src_ioas_id: memory.id,
            length: len,
            dst_iova: iova,
            src_iova: gpa,
            ..Default::default()
        };
        let object = format_args!("{len:#x} bytes, IOVA {iova:#x}, GPA {gpa:#x}, {access:?}");
        self.call(&mut copy, object)
    }

    /// Unmaps all areas in `range`. Fails with ENOENT if there is none, or if an area extends
    /// beyond the range; the areas below that one are unmapped then.
    pub(super) fn unmap(&self, ioas: &Object, range: IovaRange) -> Result<(), KernelError> {
        let mut unmap = iommufd::iommu_ioas_unmap {
            ioas_id: ioas.id,
            iova: range.first(),
            // The kernel defines U64_MAX as all addresses.
            length: range.span().saturating_add(1),
            ..Default::default()
        };
        self.call(&mut unmap, format_args!("IOVA {range}"))
    }

    /// Returns the IOVA ranges that can be mapped in an IOAS, and their alignment in bytes.
    pub(super) fn iova_ranges(&self, ioas: &Object) -> Result<(Vec<IovaRange>, u64), KernelError> {
        const MAX_RANGES: usize = 256;
        let mut buffer = [iommufd::iommu_iova_range::default(); MAX_RANGES];
        let mut ranges = iommufd::iommu_ioas_iova_ranges {
            ioas_id: ioas.id,
            num_iovas: MAX_RANGES as u32,
            allowed_iovas: buffer.as_mut_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the kernel writes at most `num_iovas` ranges to `buffer`, which has so many.
        unsafe { self.call_unchecked(&mut ranges, format_args!("IOAS {}", ioas.id)) }?;
        let count = MAX_RANGES.min(ranges.num_iovas as usize);
        let iter = buffer[..count].iter();
        let found = iter.filter_map(|range| IovaRange::new(range.start, range.last)).collect();
        Ok((found, ranges.out_iova_alignment))
    }

    /// Allocates a fault queue; returns it with the descriptor to read and write.
    pub(super) fn alloc_fault_queue(self: &Arc<Self>) -> Result<(Object, OwnedFd), KernelError> {
        let mut alloc = iommufd::iommu_fault_alloc::default();
        self.call(&mut alloc, format_args!("a new fault queue"))?;
        // SAFETY: the ioctl has succeeded, and returns a new descriptor.
        let fd = unsafe { ioctl::owned_fd(alloc.out_fault_fd) };
        Ok((self.object(alloc.out_fault_id), fd))
    }

    /// Allocates an HWPT for `device` over the mappings of an IOAS.
    pub(super) fn alloc_hwpt(
        self: &Arc<Self>,
        device: u32,
        ioas: &Object,
        options: &HwptOptions,
    ) -> Result<Object, KernelError> {
        let faults = options.fault_queue.map_or(0, |_| FAULT_ID_VALID);
        let pasids = if options.pasids { ALLOC_PASID } else { 0 };
        let mut alloc = iommufd::iommu_hwpt_alloc {
            flags: faults | pasids,
            dev_id: device,
            pt_id: ioas.id,
            fault_id: options.fault_queue.unwrap_or(0),
            ..Default::default()
        };
        if let Some((data_type, data)) = &options.data {
            alloc.data_type = *data_type;
            alloc.data_len = size_of_val(data) as u32;
            alloc.data_uptr = data.as_ptr() as u64;
        }
        let object = format_args!("device {device} over IOAS {}, {options:?}", ioas.id);
        // SAFETY: the data is read during the call, in which `options` is borrowed.
        unsafe { self.call_unchecked(&mut alloc, object) }?;
        Ok(self.object(alloc.out_hwpt_id))
    }

    /// Returns the width of a device's PASIDs in bits; 0 if it cannot use any.
    pub(super) fn pasid_bits(&self, device: u32) -> Result<u8, KernelError> {
        let mut info = iommufd::iommu_hw_info { dev_id: device, ..Default::default() };
        // SAFETY: there is no buffer for data of the IOMMU driver, whose length is 0.
        unsafe { self.call_unchecked(&mut info, format_args!("device {device}")) }?;
        Ok(info.out_max_pasid_log2.min(MAX_PASID_BITS))
    }
}

impl AsFd for Context {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// An object of an iommufd context. Dropping it destroys it, which the kernel rejects as long as
/// another object refers to it: drop those first.
#[derive(Debug)]
pub(super) struct Object {
    context: Arc<Context>,
    id: u32,
}

impl Object {
    /// Returns the object number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }
}

impl Drop for Object {
    fn drop(&mut self) {
        let mut destroy = iommufd::iommu_destroy { id: self.id, ..Default::default() };
        if let Err(errno) = ioctl::ioctl(&*self.context, &mut destroy) {
            log::error!(
                "cannot destroy iommufd object {}: {errno}; it exists until the daemon ends",
                self.id
            );
        }
    }
}
