//! Errors of preparing iommufd and the devices of endpoints.

use std::io;
use std::path::PathBuf;

use rustix::io::Errno;

use crate::address::EndpointId;
use crate::host::KernelError;

/// Advice for a device file that cannot be opened although its mode permits it.
const DEVICE_POLICY: &str =
    "the device policy of the daemon's cgroup denies access; a systemd unit needs DeviceAllow=";

/// An error of preparing iommufd or a device for an endpoint.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// `/dev/iommu` cannot be opened.
    #[error("cannot open /dev/iommu: {errno}; {}", open_advice(*errno))]
    OpenIommufd {
        /// The reason.
        #[source]
        errno: Errno,
    },
    /// iommufd cannot create the IOAS of guest memory.
    #[error("cannot use /dev/iommu: {0}")]
    Iommufd(#[from] KernelError),
    /// A VFIO character device cannot be opened.
    #[error("cannot open {}: {source}{}", path.display(), open_device_advice(source))]
    OpenDevice {
        /// The device file.
        path: PathBuf,
        /// The reason.
        source: io::Error,
    },
    /// A file that is not a VFIO character device.
    #[error("{} is not a VFIO character device; specify /dev/vfio/devices/vfioN", .0.display())]
    NotVfio(PathBuf),
    /// A VFIO device cannot be bound to iommufd.
    #[error("cannot bind {} to iommufd: {errno}; {}", path.display(), bind_advice(*errno))]
    Bind {
        /// The device file.
        path: PathBuf,
        /// The reason.
        #[source]
        errno: Errno,
    },
    /// The endpoint gets no fault queue.
    #[error(
        "cannot create a fault queue for endpoint {endpoint}: {source}{}",
        queue_advice(source)
    )]
    FaultQueue {
        /// The endpoint.
        endpoint: EndpointId,
        /// The reason.
        source: KernelError,
    },
    /// The device cannot be attached, not even without page requests and PASIDs.
    #[error("cannot attach endpoint {endpoint} to an IOAS: {source}")]
    Attach {
        /// The endpoint.
        endpoint: EndpointId,
        /// The reason.
        source: KernelError,
    },
    /// The mock device of the kernel's selftest cannot be created.
    #[cfg(feature = "selftest")]
    #[error(
        "cannot create the mock device of endpoint {endpoint}: {source}; \
         requires a kernel with CONFIG_IOMMUFD_TEST"
    )]
    MockDevice {
        /// The endpoint.
        endpoint: EndpointId,
        /// The reason.
        source: KernelError,
    },
    /// The mock device of the kernel's selftest makes no page requests.
    #[cfg(feature = "selftest")]
    #[error("the mock device of endpoint {0} makes no page requests")]
    NoMockPageRequests(EndpointId),
}

fn open_advice(errno: Errno) -> &'static str {
    match errno {
        Errno::NOENT | Errno::NODEV => {
            "load the module iommufd, or use a kernel with CONFIG_IOMMUFD"
        }
        Errno::ACCESS => "give the daemon's user access to it, for instance with a udev rule",
        Errno::PERM => DEVICE_POLICY,
        _ => "endpoints of the kind vfio require it",
    }
}

fn open_device_advice(error: &io::Error) -> String {
    match Errno::from_io_error(error) {
        Some(Errno::NOENT) => {
            "; bind the device to vfio-pci on a kernel with CONFIG_VFIO_DEVICE_CDEV, and see \
             /sys/bus/pci/devices/ADDRESS/vfio-dev for its number"
        }
        Some(Errno::PERM) => return format!("; {DEVICE_POLICY}"),
        Some(Errno::ACCESS) => "; give the daemon's user access to it",
        Some(Errno::BUSY) => "; another program uses it",
        _ => "",
    }
    .to_owned()
}

fn bind_advice(errno: Errno) -> &'static str {
    match errno {
        // Also for a device that is in use through a VFIO group, or already bound.
        Errno::BUSY | Errno::INVAL => "another program uses it, or a device of its IOMMU group",
        Errno::PERM => {
            "the host does not isolate its interrupts: enable interrupt remapping, or load \
             iommufd with allow_unsafe_interrupts=1"
        }
        Errno::NODEV => "the device has been removed",
        _ => "see the kernel log",
    }
}

fn queue_advice(error: &KernelError) -> &'static str {
    match error.errno {
        Errno::NOTTY | Errno::OPNOTSUPP => "; fault queues require Linux 6.11 or newer",
        _ => "",
    }
}
