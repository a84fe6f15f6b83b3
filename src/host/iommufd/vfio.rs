//! A physical device, held through VFIO's character device (`linux/vfio.h`).

use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio;

use super::endpoint::Device;
use super::kernel::{DEVICE_POLICY, Kernel, KernelError, Object};
use super::sys::{self, Argument};
use crate::address::Pasid;

/// `VFIO_DEVICE_ATTACH_PASID` and `VFIO_DEVICE_DETACH_PASID`.
const WITH_PASID: u32 = 1;

/// A device bound to iommufd. The kernel detaches and releases it when the file is closed.
pub(super) struct VfioDevice {
    file: File,
    id: u32,
}

/// A device's file, open.
#[derive(Debug)]
pub struct VfioFile {
    file: File,
    path: PathBuf,
}

impl VfioFile {
    /// Opens `/dev/vfio/devices/vfioN`.
    ///
    /// # Errors
    /// What it is instead, or why it cannot be opened, in a sentence.
    pub fn open(path: &Path) -> Result<Self, String> {
        Ok(Self { file: open(path)?, path: path.into() })
    }
}

impl VfioDevice {
    /// Binds the device to iommufd.
    pub(super) fn bind(kernel: &Kernel, VfioFile { file, path }: VfioFile) -> Result<Self, String> {
        let mut bind = vfio::vfio_device_bind_iommufd {
            iommufd: kernel.as_fd().as_raw_fd(),
            ..Default::default()
        };
        sys::ioctl(&file, &mut bind).map_err(|errno| cannot_bind(&path, errno))?;
        Ok(Self { file, id: bind.out_devid })
    }

    fn error<A: Argument>(&self, _: &A, pasid: Option<Pasid>, errno: Errno) -> KernelError {
        KernelError::new(A::NAME, format_args!("of device {}, {pasid:?}", self.id), errno)
    }
}

impl Device for VfioDevice {
    fn id(&self) -> u32 {
        self.id
    }

    /// The kernel keeps what the answer needs.
    fn response_needs_pasid(&self) -> bool {
        false
    }

    fn attach(
        &self,
        pasid: Option<Pasid>,
        page_table: &Object,
        _: &Object,
        _: bool,
    ) -> Result<(), KernelError> {
        let mut attach = vfio::vfio_device_attach_iommufd_pt {
            flags: pasid.map_or(0, |_| WITH_PASID),
            pt_id: page_table.id(),
            pasid: pasid.map_or(0, |pasid| pasid.0),
            ..Default::default()
        };
        sys::ioctl(&self.file, &mut attach).map_err(|errno| self.error(&attach, pasid, errno))
    }

    fn detach(&self, pasid: Option<Pasid>) -> Result<(), KernelError> {
        let mut detach = vfio::vfio_device_detach_iommufd_pt {
            flags: pasid.map_or(0, |_| WITH_PASID),
            pasid: pasid.map_or(0, |pasid| pasid.0),
            ..Default::default()
        };
        sys::ioctl_surely(&self.file, &mut detach)
            .map_err(|errno| self.error(&detach, pasid, errno))
    }
}

fn open(path: &Path) -> Result<File, String> {
    let name = path.display();
    let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
    let file = file.map_err(|error| match Errno::from_io_error(&error) {
        Some(Errno::NOENT) => format!(
            "there is no {name}; give the device to vfio-pci, on a kernel with \
             CONFIG_VFIO_DEVICE_CDEV, and see /sys/bus/pci/devices/ADDRESS/vfio-dev"
        ),
        Some(Errno::PERM) => format!("cannot open {name}: {error}; {DEVICE_POLICY}"),
        Some(Errno::ACCESS) => {
            format!("cannot open {name}: {error}; give it to the daemon's user")
        }
        Some(Errno::BUSY) => format!("cannot open {name}: {error}; another program has it"),
        _ => format!("cannot open {name}: {error}"),
    })?;
    let is_device = file.metadata().is_ok_and(|metadata| is_vfio_device(&metadata));
    if is_device { Ok(file) } else { Err(no_vfio_device(path)) }
}

/// By its class in sysfs: the devices that old interfaces of VFIO have would be bound in vain.
fn is_vfio_device(metadata: &Metadata) -> bool {
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let class = std::fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
    let is_other = class.is_ok_and(|class| !class.ends_with("vfio-dev"));
    metadata.file_type().is_char_device() && !is_other
}

fn no_vfio_device(path: &Path) -> String {
    format!("{} is no VFIO device; write /dev/vfio/devices/vfioN", path.display())
}

fn cannot_bind(path: &Path, errno: Errno) -> String {
    let hint = match errno {
        Errno::NOTTY | Errno::OPNOTSUPP => return no_vfio_device(path),
        // The kernel says so of what is bound, or in use by the older interface.
        Errno::BUSY | Errno::INVAL => "another program has it, or a device of its IOMMU group",
        Errno::PERM => {
            "the host does not isolate its interrupts: turn interrupt remapping on, or load \
             iommufd with allow_unsafe_interrupts=1"
        }
        Errno::NODEV => "the device has gone",
        _ => "see the kernel's log",
    };
    let error = std::io::Error::from(errno);
    format!("cannot bind {} to iommufd: {error}; {hint}", path.display())
}
