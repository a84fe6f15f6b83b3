//! A host device, through its VFIO character device (`linux/vfio.h`).

use std::fs::{File, Metadata, OpenOptions};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use vfio_bindings::bindings::vfio;

use super::context::{Context, Object};
use super::device::Device;
use super::error::SetupError;
use super::ioctl::{self, Argument};
use crate::address::Pasid;
use crate::host::KernelError;

/// `VFIO_DEVICE_ATTACH_PASID` and `VFIO_DEVICE_DETACH_PASID`.
const WITH_PASID: u32 = 1;

/// An open VFIO character device.
#[derive(Debug)]
pub struct VfioFile {
    file: File,
    path: PathBuf,
}

impl VfioFile {
    /// Opens `/dev/vfio/devices/vfioN`.
    ///
    /// # Errors
    /// If it cannot be opened, or is not a VFIO character device.
    pub fn open(path: &Path) -> Result<Self, SetupError> {
        let flags = rustix::fs::OFlags::NONBLOCK.bits() as i32;
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(path);
        let file = file.map_err(|source| SetupError::OpenDevice { path: path.into(), source })?;
        if !file.metadata().is_ok_and(|metadata| is_vfio_device(&metadata)) {
            return Err(SetupError::NotVfio(path.into()));
        }
        Ok(Self { file, path: path.into() })
    }
}

/// Returns whether a file belongs to the class of VFIO devices in sysfs. Files of older VFIO
/// interfaces do not, and would fail only later.
fn is_vfio_device(metadata: &Metadata) -> bool {
    let number = metadata.rdev();
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let class = std::fs::read_link(format!("/sys/dev/char/{major}:{minor}/subsystem"));
    let is_other = class.is_ok_and(|class| !class.ends_with("vfio-dev"));
    metadata.file_type().is_char_device() && !is_other
}

/// A device bound to iommufd. The kernel detaches and releases it when the file is closed.
pub(super) struct VfioDevice {
    file: File,
    id: u32,
}

impl VfioDevice {
    /// Binds the device to an iommufd context.
    pub(super) fn bind(context: &Context, file: VfioFile) -> Result<Self, SetupError> {
        let VfioFile { file, path } = file;
        let mut bind = vfio::vfio_device_bind_iommufd {
            iommufd: context.as_fd().as_raw_fd(),
            ..Default::default()
        };
        let bound = ioctl::inject_failure::<vfio::vfio_device_bind_iommufd>().and_then(|()| {
            // SAFETY: the descriptor is that of the borrowed context, and there is no token.
            unsafe { ioctl::ioctl_unchecked(&file, &mut bind) }
        });
        match bound {
            Ok(()) => Ok(Self { file, id: bind.out_devid }),
            Err(Errno::NOTTY | Errno::OPNOTSUPP) => Err(SetupError::NotVfio(path)),
            Err(errno) => Err(SetupError::Bind { path, errno }),
        }
    }

    fn error<A: Argument>(&self, _: &A, pasid: Option<Pasid>, errno: Errno) -> KernelError {
        match pasid {
            Some(pasid) => {
                KernelError::new(A::NAME, format_args!("device {}, PASID {pasid}", self.id), errno)
            }
            None => KernelError::new(A::NAME, format_args!("device {}", self.id), errno),
        }
    }
}

impl Device for VfioDevice {
    fn id(&self) -> u32 {
        self.id
    }

    /// The kernel keeps the PASID of each group.
    fn response_needs_pasid(&self) -> bool {
        false
    }

    fn attach(
        &self,
        pasid: Option<Pasid>,
        hwpt: &Object,
        _: &Object,
        _: bool,
    ) -> Result<(), KernelError> {
        let mut attach = vfio::vfio_device_attach_iommufd_pt {
            flags: pasid.map_or(0, |_| WITH_PASID),
            pt_id: hwpt.id(),
            pasid: pasid.map_or(0, |pasid| pasid.0),
            ..Default::default()
        };
        ioctl::inject_failure::<vfio::vfio_device_attach_iommufd_pt>()
            .and_then(|()| ioctl::ioctl(&self.file, &mut attach))
            .map_err(|errno| self.error(&attach, pasid, errno))
    }

    fn detach(&self, pasid: Option<Pasid>) -> Result<(), KernelError> {
        let mut detach = vfio::vfio_device_detach_iommufd_pt {
            flags: pasid.map_or(0, |_| WITH_PASID),
            pasid: pasid.map_or(0, |pasid| pasid.0),
            ..Default::default()
        };
        ioctl::ioctl(&self.file, &mut detach).map_err(|errno| self.error(&detach, pasid, errno))
    }
}
