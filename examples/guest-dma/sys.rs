//! Unsafe code: ioctls, memory that is shared with a device, registers.

use std::ffi::{CString, c_ulong};
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, RawFd};
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use vfio_bindings::bindings::vfio;

use crate::place;

/// The ioctl type (`';'`) of VFIO and iommufd.
const TYPE: u32 = vfio::VFIO_TYPE as u32;

/// `_IO(';', 100 + index)`.
const fn vfio_ioctl(index: u32) -> c_ulong {
    (TYPE << 8 | (vfio::VFIO_BASE + index)) as c_ulong
}

/// `_IO(';', 0x80 + index)`.
const fn iommufd_ioctl(index: u32) -> c_ulong {
    (TYPE << 8 | (0x80 + index)) as c_ulong
}

/// The argument of an ioctl.
///
/// # Safety
/// The ioctl `NUMBER` accepts a pointer to `Self` and accesses no other memory of this process.
pub unsafe trait Argument: Sized {
    const NUMBER: c_ulong;
    /// Value of the first field, which contains the size of the structure.
    const SIZE: u32 = size_of::<Self>() as u32;
}

// SAFETY: defined by linux/vfio.h, like the following. None contains a pointer, except for the
// token of bind_iommufd, which the kernel reads only with a flag that this program does not set.
unsafe impl Argument for vfio::vfio_group_status {
    const NUMBER: c_ulong = vfio_ioctl(3);
}
// SAFETY: see `vfio_group_status`.
unsafe impl Argument for vfio::vfio_region_info {
    const NUMBER: c_ulong = vfio_ioctl(8);
}
// SAFETY: see `vfio_group_status`.
unsafe impl Argument for EventfdSet {
    const NUMBER: c_ulong = vfio_ioctl(10);
}
// SAFETY: see `vfio_group_status`.
unsafe impl Argument for Type1Unmap {
    const NUMBER: c_ulong = vfio_ioctl(14);
}
// SAFETY: see `vfio_group_status`.
unsafe impl Argument for vfio::vfio_device_bind_iommufd {
    const NUMBER: c_ulong = vfio_ioctl(18);
}
// SAFETY: see `vfio_group_status`.
unsafe impl Argument for vfio::vfio_device_attach_iommufd_pt {
    const NUMBER: c_ulong = vfio_ioctl(19);
}
// SAFETY: defined by linux/iommufd.h; contains no pointer.
unsafe impl Argument for IoasAlloc {
    const NUMBER: c_ulong = iommufd_ioctl(1);
}
// SAFETY: defined by linux/iommufd.h; contains no pointer.
unsafe impl Argument for IoasUnmap {
    const NUMBER: c_ulong = iommufd_ioctl(6);
}

/// `vfio_irq_set`, followed by the eventfds of all vectors.
#[repr(C)]
pub struct EventfdSet {
    pub argsz: u32,
    pub flags: u32,
    pub index: u32,
    pub start: u32,
    pub count: u32,
    pub eventfds: [i32; crate::regs::VECTORS],
}

/// `vfio_iommu_type1_dma_unmap` without a dirty bitmap.
#[repr(C)]
pub struct Type1Unmap {
    pub argsz: u32,
    pub flags: u32,
    pub iova: u64,
    pub size: u64,
}

/// `iommu_ioas_alloc`.
#[repr(C)]
pub struct IoasAlloc {
    pub size: u32,
    pub flags: u32,
    pub out_ioas_id: u32,
}

/// `iommu_ioas_map`.
#[repr(C)]
struct IoasMap {
    size: u32,
    flags: u32,
    ioas_id: u32,
    reserved: u32,
    user_va: u64,
    length: u64,
    iova: u64,
}

/// `iommu_ioas_unmap`.
#[repr(C)]
pub struct IoasUnmap {
    pub size: u32,
    pub ioas_id: u32,
    pub iova: u64,
    pub length: u64,
}

const IOAS_MAP_FIXED_IOVA: u32 = 1;
const IOAS_MAP_WRITEABLE: u32 = 2;
const IOAS_MAP_READABLE: u32 = 4;

pub fn ioctl<T: Argument>(file: &File, argument: &mut T) -> io::Result<()> {
    // SAFETY: the pointer is valid for reads and writes; `Argument` guarantees that the ioctl
    // accesses no other memory.
    check(unsafe { libc::ioctl(file.as_raw_fd(), T::NUMBER, ptr::from_mut(argument)) }).map(drop)
}

/// VFIO_GET_API_VERSION.
pub fn api_version(container: &File) -> io::Result<i32> {
    // SAFETY: the ioctl has no argument.
    check(unsafe { libc::ioctl(container.as_raw_fd(), vfio_ioctl(0)) })
}

/// VFIO_SET_IOMMU.
pub fn set_iommu(container: &File, kind: u32) -> io::Result<()> {
    // SAFETY: the argument of the ioctl is a number.
    check(unsafe { libc::ioctl(container.as_raw_fd(), vfio_ioctl(2), c_ulong::from(kind)) })
        .map(drop)
}

/// VFIO_GROUP_SET_CONTAINER.
pub fn set_container(group: &File, container: &File) -> io::Result<()> {
    let fd: RawFd = container.as_raw_fd();
    // SAFETY: the ioctl reads one int, which outlives the call.
    check(unsafe { libc::ioctl(group.as_raw_fd(), vfio_ioctl(4), &raw const fd) }).map(drop)
}

/// VFIO_GROUP_GET_DEVICE_FD.
pub fn device_of_group(group: &File, name: &str) -> io::Result<File> {
    let name = CString::new(name)?;
    // SAFETY: the ioctl reads a NUL-terminated string that outlives the call.
    let fd = check(unsafe { libc::ioctl(group.as_raw_fd(), vfio_ioctl(6), name.as_ptr()) })?;
    // SAFETY: the file descriptor is new and has no other owner.
    Ok(unsafe { File::from_raw_fd(fd) })
}

/// VFIO_IOMMU_MAP_DMA. The device gets access only to memory that is never freed and that the
/// program accesses with atomic operations.
pub fn map_type1(
    container: &File,
    iova: u64,
    memory: &'static [AtomicU64],
    writable: bool,
) -> io::Result<()> {
    let write = if writable { vfio::VFIO_DMA_MAP_FLAG_WRITE } else { 0 };
    let map = vfio::vfio_iommu_type1_dma_map {
        argsz: size_of::<vfio::vfio_iommu_type1_dma_map>() as u32,
        flags: vfio::VFIO_DMA_MAP_FLAG_READ | write,
        vaddr: memory.as_ptr().addr() as u64,
        iova,
        size: size_of_val(memory) as u64,
    };
    // SAFETY: the argument outlives the call. DMA to the memory is sound: it is never freed, and
    // atomics may change at any time.
    check(unsafe { libc::ioctl(container.as_raw_fd(), vfio_ioctl(13), &raw const map) }).map(drop)
}

/// IOMMU_IOAS_MAP at `iova`. The requirements for the memory are those of [`map_type1`].
pub fn map_ioas(
    iommufd: &File,
    ioas: u32,
    iova: u64,
    memory: &'static [AtomicU64],
    writable: bool,
) -> io::Result<()> {
    let write = if writable { IOAS_MAP_WRITEABLE } else { 0 };
    let mut map = IoasMap {
        size: size_of::<IoasMap>() as u32,
        flags: IOAS_MAP_FIXED_IOVA | IOAS_MAP_READABLE | write,
        ioas_id: ioas,
        reserved: 0,
        user_va: memory.as_ptr().addr() as u64,
        length: size_of_val(memory) as u64,
        iova,
    };
    let number = iommufd_ioctl(5);
    // SAFETY: the argument outlives the call. For DMA to the memory, see `map_type1`.
    check(unsafe { libc::ioctl(iommufd.as_raw_fd(), number, &raw mut map) }).map(drop)
}

/// Allocates zeroed, page-aligned memory that is never freed.
pub fn leak_pages(bytes: usize) -> io::Result<&'static [AtomicU64]> {
    let base = place::map(bytes, libc::PROT_READ | libc::PROT_WRITE)?;
    // SAFETY: the memory is readable and writable, zeroed, aligned, `bytes` long and never
    // unmapped. Atomics may change at any time, also by DMA.
    Ok(unsafe { slice::from_raw_parts(base.cast(), bytes / size_of::<AtomicU64>()) })
}

/// Maps private memory at an unused address, or if `address` is 0 at an address that the kernel
/// chooses. Use [`place::map`] to apply the address limit.
pub fn map_private(address: usize, bytes: usize, protection: i32) -> io::Result<*mut libc::c_void> {
    let fixed = if address == 0 { 0 } else { libc::MAP_FIXED_NOREPLACE };
    let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | fixed;
    let address = ptr::without_provenance_mut(address);
    // SAFETY: a new mapping; MAP_FIXED_NOREPLACE fails if the address is in use.
    let base = unsafe { libc::mmap(address, bytes, protection, flags, -1, 0) };
    if base == libc::MAP_FAILED { Err(io::Error::last_os_error()) } else { Ok(base) }
}

/// A mapped BAR with registers.
pub struct Bar {
    base: NonNull<u8>,
    size: usize,
}

impl Bar {
    pub fn map(device: &File, offset: u64, size: usize) -> io::Result<Self> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        let protection = libc::PROT_READ | libc::PROT_WRITE;
        let fd = device.as_raw_fd();
        // SAFETY: a new mapping at an address that the kernel chooses.
        let base =
            unsafe { libc::mmap(ptr::null_mut(), size, protection, libc::MAP_SHARED, fd, offset) };
        match NonNull::new(base.cast::<u8>()) {
            Some(base) if !ptr::eq(base.as_ptr().cast(), libc::MAP_FAILED) => {
                Ok(Self { base, size })
            }
            _ => Err(io::Error::last_os_error()),
        }
    }

    /// Returns a pointer to a register of `bytes` bytes.
    fn register(&self, offset: u32, bytes: usize) -> NonNull<u8> {
        let offset = offset as usize;
        assert!(
            offset.is_multiple_of(bytes),
            "register {offset:#x} is not aligned to {bytes} bytes"
        );
        assert!(offset + bytes <= self.size, "register {offset:#x} is beyond the BAR");
        // SAFETY: the offset is within the mapping, see the assertion.
        unsafe { self.base.add(offset) }
    }

    pub fn read32(&self, offset: u32) -> u32 {
        // SAFETY: the pointer is aligned and valid while `self` exists.
        unsafe { self.register(offset, 4).cast().read_volatile() }
    }

    pub fn read64(&self, offset: u32) -> u64 {
        // SAFETY: the pointer is aligned and valid while `self` exists.
        unsafe { self.register(offset, 8).cast().read_volatile() }
    }

    pub fn write32(&self, offset: u32, value: u32) {
        // SAFETY: the pointer is aligned and valid while `self` exists.
        unsafe { self.register(offset, 4).cast().write_volatile(value) }
    }

    pub fn write64(&self, offset: u32, value: u64) {
        // SAFETY: the pointer is aligned and valid while `self` exists.
        unsafe { self.register(offset, 8).cast().write_volatile(value) }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        // SAFETY: the mapping was created by `map`, and no reference into it exists.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.size) };
    }
}

/// Waits up to `seconds` until a file is readable. Returns whether it is.
pub fn wait_readable(file: &File, seconds: u32) -> bool {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let limit = Timespec { tv_sec: seconds.into(), tv_nsec: 0 };
    let mut fds = [PollFd::new(file, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&limit)), Ok(1))
}

fn check(result: i32) -> io::Result<i32> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result) }
}
