//! The ioctls of iommufd and VFIO: their numbers, their structures, and the system call.
//!
//! A structure without addresses and descriptors is valid with any values, so [`ioctl`] is safe.
//! The others require [`ioctl_unchecked`], which the functions of [`Context`](super::Context)
//! and [`VfioDevice`](super::vfio::VfioDevice) call with what they borrow or own.
//!
//! `iommufd-ioctls` 0.4 is not used because it lacks fault queues, IOAS_COPY and IOAS_IOVA_RANGES,
//! and its safe functions accept structures with unchecked addresses. `vfio-ioctls` 0.10 builds on
//! it and requires the KVM crates. With one place that calls the kernel, tests can inject failures
//! of any ioctl.

use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use iommufd_bindings as iommufd;
use rustix::io::{Errno, retry_on_intr};
use vfio_bindings::bindings::vfio;

/// The structure that an ioctl accesses.
///
/// # Safety
/// The ioctl `NUMBER` accesses only this structure and the memory that addresses in it refer to.
pub(super) unsafe trait Argument {
    /// The ioctl's name in the kernel's header.
    const NAME: &'static str;
    /// The ioctl's number.
    const NUMBER: u32;

    /// Returns the first field, which is the size of the structure in bytes.
    fn size_mut(&mut self) -> &mut u32;
}

/// A structure that is valid with any values.
///
/// # Safety
/// No field is an address or a file descriptor.
pub(super) unsafe trait PlainArgument: Argument {}

macro_rules! arguments {
    ($($structure:ty, $size:ident: $name:literal = $number:expr;)*) => {
        // SAFETY: the kernel's header defines the number for this structure.
        $(unsafe impl Argument for $structure {
            const NAME: &'static str = $name;
            const NUMBER: u32 = $number;

            fn size_mut(&mut self) -> &mut u32 {
                &mut self.$size
            }
        })*

        /// The numbers of these ioctls.
        pub(super) const NUMBERS: &[u32] = &[$($number),*];
    };
}

macro_rules! plain_arguments {
    ($($structure:ty;)*) => {
        // SAFETY: the fields are object numbers, flags, I/O virtual addresses and lengths.
        $(unsafe impl PlainArgument for $structure {})*
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

plain_arguments! {
    iommufd::iommu_destroy;
    iommufd::iommu_ioas_alloc;
    iommufd::iommu_ioas_copy;
    iommufd::iommu_ioas_unmap;
    iommufd::iommu_fault_alloc;
    vfio::vfio_device_attach_iommufd_pt;
    vfio::vfio_device_detach_iommufd_pt;
}

/// Fails if a test has requested that this call fails. For calls that the kernel can reject.
pub(super) fn inject_failure<A: Argument>() -> Result<(), Errno> {
    #[cfg(feature = "selftest")]
    super::inject::count_call(A::NAME)?;
    Ok(())
}

/// Makes an ioctl with a structure that is valid with any values.
pub(super) fn ioctl<A: PlainArgument>(fd: impl AsFd, argument: &mut A) -> Result<(), Errno> {
    // SAFETY: there is no address and no descriptor in the argument.
    unsafe { ioctl_unchecked(fd, argument) }
}

/// Makes an ioctl.
///
/// # Safety
/// Addresses in `argument` refer to memory that the kernel may access as its header specifies, and
/// descriptors in it are open.
pub(super) unsafe fn ioctl_unchecked<A: Argument>(
    fd: impl AsFd,
    argument: &mut A,
) -> Result<(), Errno> {
    *argument.size_mut() = size_of::<A>() as u32;
    let fd = fd.as_fd().as_raw_fd();
    retry_on_intr(|| {
        let argument = std::ptr::from_mut(argument);
        // SAFETY: the descriptor is open, the structure is the one of this number (`Argument`),
        // and the caller vouches for its contents.
        match unsafe { libc::ioctl(fd, A::NUMBER as libc::Ioctl, argument) } {
            0 => Ok(()),
            _ => Err(Errno::from_io_error(&std::io::Error::last_os_error()).unwrap_or(Errno::IO)),
        }
    })
}

/// Takes ownership of a descriptor that an ioctl has returned.
///
/// # Safety
/// The kernel has opened the descriptor for the caller, and nothing else owns it.
pub(super) unsafe fn owned_fd(number: u32) -> OwnedFd {
    // SAFETY: the caller vouches for it.
    unsafe { OwnedFd::from_raw_fd(number as i32) }
}
