//! The kernel's calls as they are: ioctls by number and structure. All that is unsafe about
//! iommufd and VFIO is here.
//!
//! The structures are those of `iommufd-bindings` and `vfio-bindings`. The crates that wrap them
//! (`iommufd-ioctls`, `vfio-ioctls`) have no fault queues, no IOAS_COPY and no IOVA_RANGES, or
//! want KVM; with one way to call the kernel, tests can let any call fail.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use iommufd_bindings as iommufd;
use rustix::io::Errno;
use vfio_bindings::bindings::vfio;

/// The argument of an ioctl.
///
/// # Safety
/// The kernel reads and writes no more than the structure for this number, but for memory that
/// a field points to, which whoever makes the structure answers for.
pub(super) unsafe trait Argument {
    /// What the kernel's header calls it.
    const NAME: &'static str;
    /// The ioctl's number.
    const NUMBER: u32;

    /// Its first field: how large it is, in bytes.
    fn size(&mut self) -> &mut u32;
}

macro_rules! arguments {
    ($($structure:ty, $size:ident: $name:literal = $number:expr;)*) => {
        // SAFETY: number and structure belong together in the header named.
        $(unsafe impl Argument for $structure {
            const NAME: &'static str = $name;
            const NUMBER: u32 = $number;

            fn size(&mut self) -> &mut u32 {
                &mut self.$size
            }
        })*

        /// The numbers of all these.
        pub(super) const NUMBERS: &[u32] = &[$($number),*];
    };
}

/// `_IO(IOMMUFD_TYPE, command)` of `linux/iommufd.h`.
pub(super) const fn iommufd_number(command: u32) -> u32 {
    (iommufd::IOMMUFD_TYPE as u32) << 8 | command
}

/// `_IO(VFIO_TYPE, VFIO_BASE + command)` of `linux/vfio.h`.
const fn vfio_number(command: u32) -> u32 {
    (vfio::VFIO_TYPE as u32) << 8 | (vfio::VFIO_BASE + command)
}

arguments! {
    iommufd::iommu_destroy, size: "IOMMU_DESTROY" = iommufd_number(iommufd::IOMMUFD_CMD_DESTROY);
    iommufd::iommu_ioas_alloc, size: "IOMMU_IOAS_ALLOC" = iommufd_number(iommufd::IOMMUFD_CMD_IOAS_ALLOC);
    iommufd::iommu_ioas_iova_ranges, size: "IOMMU_IOAS_IOVA_RANGES" =
        iommufd_number(iommufd::IOMMUFD_CMD_IOAS_IOVA_RANGES);
    iommufd::iommu_ioas_map, size: "IOMMU_IOAS_MAP" = iommufd_number(iommufd::IOMMUFD_CMD_IOAS_MAP);
    iommufd::iommu_ioas_map_file, size: "IOMMU_IOAS_MAP_FILE" =
        iommufd_number(iommufd::IOMMUFD_CMD_IOAS_MAP_FILE);
    iommufd::iommu_ioas_copy, size: "IOMMU_IOAS_COPY" = iommufd_number(iommufd::IOMMUFD_CMD_IOAS_COPY);
    iommufd::iommu_ioas_unmap, size: "IOMMU_IOAS_UNMAP" = iommufd_number(iommufd::IOMMUFD_CMD_IOAS_UNMAP);
    iommufd::iommu_hwpt_alloc, size: "IOMMU_HWPT_ALLOC" = iommufd_number(iommufd::IOMMUFD_CMD_HWPT_ALLOC);
    iommufd::iommu_hw_info, size: "IOMMU_GET_HW_INFO" = iommufd_number(iommufd::IOMMUFD_CMD_GET_HW_INFO);
    iommufd::iommu_fault_alloc, size: "IOMMU_FAULT_QUEUE_ALLOC" =
        iommufd_number(iommufd::IOMMUFD_CMD_FAULT_QUEUE_ALLOC);
    vfio::vfio_device_bind_iommufd, argsz: "VFIO_DEVICE_BIND_IOMMUFD" = vfio_number(18);
    vfio::vfio_device_attach_iommufd_pt, argsz: "VFIO_DEVICE_ATTACH_IOMMUFD_PT" = vfio_number(19);
    vfio::vfio_device_detach_iommufd_pt, argsz: "VFIO_DEVICE_DETACH_IOMMUFD_PT" = vfio_number(20);
}

/// Calls the kernel for something that can be refused.
pub(super) fn ioctl<A: Argument>(fd: impl AsFd, argument: &mut A) -> Result<(), Errno> {
    #[cfg(feature = "selftest")]
    super::fail::count(A::NAME)?;
    ioctl_surely(fd, argument)
}

/// Calls the kernel for something that fails only by a defect.
pub(super) fn ioctl_surely<A: Argument>(fd: impl AsFd, argument: &mut A) -> Result<(), Errno> {
    *argument.size() = size_of::<A>() as u32;
    let fd = fd.as_fd().as_raw_fd();
    loop {
        // SAFETY: the descriptor is open, and the argument is what the kernel expects for the
        // number (`Argument`).
        let result =
            unsafe { libc::ioctl(fd, A::NUMBER as libc::Ioctl, std::ptr::from_mut(argument)) };
        match result {
            0 => return Ok(()),
            _ => match std::io::Error::last_os_error().raw_os_error().map(Errno::from_raw_os_error)
            {
                Some(Errno::INTR) => {}
                error => return Err(error.unwrap_or(Errno::IO)),
            },
        }
    }
}

/// Takes over a descriptor that an ioctl has just returned.
pub(super) fn new_descriptor(number: u32) -> OwnedFd {
    // SAFETY: the kernel has opened it for this caller, and nobody else knows it.
    unsafe { OwnedFd::from_raw_fd(number as i32) }
}
