//! Both VFIO interfaces: groups in a container with a type 1 IOMMU (supported by Debian's cloud
//! kernel), and device files with iommufd.

use std::fs::{self, File};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};
use clap::ValueEnum;
use rustix::event::EventfdFlags;
use vfio_bindings::bindings::vfio;

use crate::accel::{Accelerator, Access, Channel, Interrupts, Wait};
use crate::memory::{Content, Memory};
use crate::regs;
use crate::ring::Ring;
use crate::sys::{self, Argument};

const COMMAND: u64 = 0x04;
const COMMAND_MEMORY: u16 = 1 << 1;
const COMMAND_BUS_MASTER: u16 = 1 << 2;

/// A VFIO interface.
#[derive(Clone, Copy, ValueEnum, Debug, PartialEq, Eq)]
pub enum Api {
    /// Groups in a container (/dev/vfio/vfio).
    Group,
    /// Device files (/dev/vfio/devices) with iommufd (/dev/iommu).
    Cdev,
}

impl Api {
    /// Returns the interface of this kernel, the newer one if it has both.
    pub fn detect() -> Result<Self> {
        if Path::new("/dev/iommu").exists() && Path::new("/dev/vfio/devices").exists() {
            Ok(Self::Cdev)
        } else if Path::new("/dev/vfio/vfio").exists() {
            Ok(Self::Group)
        } else {
            Err(anyhow!(
                "found neither /dev/vfio/vfio nor /dev/iommu with /dev/vfio/devices; load vfio-pci \
                 and bind the function to it"
            ))
        }
    }
}

/// The access that a mapping permits.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    ReadOnly,
    ReadWrite,
}

/// An I/O address space. Dropping it removes all of its mappings.
pub enum Space {
    Container(File),
    Ioas { iommufd: File, id: u32 },
}

impl Space {
    pub fn new(api: Api) -> Result<Self> {
        match api {
            Api::Group => container().map(Self::Container),
            Api::Cdev => ioas(),
        }
    }

    /// Opens an accelerator that is bound to vfio-pci and attaches it to this space.
    pub fn attach(&self, name: &str) -> Result<Accelerator> {
        let device = self.open(name)?;
        device.enable()?;
        let (bar, eventfds) = (device.registers()?, device.interrupts()?);
        Accelerator::new(name, bar, Box::new(Vectors { eventfds, _device: device }))
    }

    /// Enables channel `index` with a new page at `iova` for the ring and its records.
    pub fn channel<'a>(
        &self,
        accelerator: &'a Accelerator,
        index: u32,
        iova: u64,
        wait: Wait,
    ) -> Result<Channel<'a>> {
        let page = Memory::pages(1)?;
        self.map(iova, page, Protection::ReadWrite)?;
        Channel::new(accelerator, index, wait, Access::Domain, Ring::in_page(page, iova))
    }

    fn open(&self, name: &str) -> Result<Device> {
        let (file, group) = match self {
            Self::Container(container) => {
                let (file, group) = attach_by_group(container, name)?;
                (file, Some(group))
            }
            Self::Ioas { iommufd, id } => (attach_by_cdev(iommufd, *id, name)?, None),
        };
        Ok(Device { file, _group: group, name: name.into() })
    }

    /// Maps memory at `iova`.
    pub fn map(&self, iova: u64, memory: Memory, protection: Protection) -> Result<()> {
        let words = memory.words();
        let writable = protection == Protection::ReadWrite;
        let result = match self {
            Self::Container(container) => sys::map_type1(container, iova, words, writable),
            Self::Ioas { iommufd, id } => sys::map_ioas(iommufd, *id, iova, words, writable),
        };
        let bytes = memory.bytes();
        result.map_err(|error| anyhow!("cannot map {bytes} bytes at {iova:#x}: {error}"))
    }

    /// Removes the mappings of a range, which must be mapped completely.
    pub fn unmap(&self, iova: u64, bytes: usize) -> Result<()> {
        let removed = match self {
            Self::Container(container) => {
                let mut unmap = sys::Type1Unmap {
                    argsz: sys::Type1Unmap::SIZE,
                    flags: 0,
                    iova,
                    size: bytes as u64,
                };
                sys::ioctl(container, &mut unmap).map(|()| unmap.size)
            }
            Self::Ioas { iommufd, id } => {
                let size = sys::IoasUnmap::SIZE;
                let mut unmap = sys::IoasUnmap { size, ioas_id: *id, iova, length: bytes as u64 };
                sys::ioctl(iommufd, &mut unmap).map(|()| unmap.length)
            }
        };
        match removed {
            Ok(removed) if removed == bytes as u64 => Ok(()),
            Ok(removed) => Err(anyhow!("unmapped {removed} of {bytes} bytes at {iova:#x}")),
            Err(error) => Err(anyhow!("cannot unmap {bytes} bytes at {iova:#x}: {error}")),
        }
    }
}

fn container() -> Result<File> {
    let container = open(Path::new("/dev/vfio/vfio"))?;
    match sys::api_version(&container) {
        Ok(version) if version == vfio::VFIO_API_VERSION as i32 => Ok(container),
        Ok(version) => Err(anyhow!("/dev/vfio/vfio has unsupported API version {version}")),
        Err(error) => Err(anyhow!("cannot read the API version of /dev/vfio/vfio: {error}")),
    }
}

fn ioas() -> Result<Space> {
    let iommufd = open(Path::new("/dev/iommu"))?;
    let mut alloc = sys::IoasAlloc { size: sys::IoasAlloc::SIZE, flags: 0, out_ioas_id: 0 };
    sys::ioctl(&iommufd, &mut alloc)
        .map_err(|error| anyhow!("cannot allocate an IOAS with /dev/iommu: {error}"))?;
    Ok(Space::Ioas { iommufd, id: alloc.out_ioas_id })
}

fn attach_by_group(container: &File, name: &str) -> Result<(File, File)> {
    let number = group_of(name)?;
    let group = open(&Path::new("/dev/vfio").join(&number))?;
    let mut status =
        vfio::vfio_group_status { argsz: vfio::vfio_group_status::SIZE, ..Default::default() };
    sys::ioctl(&group, &mut status)
        .map_err(|error| anyhow!("cannot read the status of group {number}: {error}"))?;
    if status.flags & vfio::VFIO_GROUP_FLAGS_VIABLE == 0 {
        bail!("group {number} has functions that are not bound to vfio-pci");
    }
    sys::set_container(&group, container)
        .map_err(|error| anyhow!("cannot add group {number} to a container: {error}"))?;
    choose_type1(container, name)?;
    let device = sys::device_of_group(&group, name)
        .map_err(|error| anyhow!("cannot open {name} through group {number}: {error}"))?;
    Ok((device, group))
}

/// Sets the IOMMU type of a container, which the first group determines.
fn choose_type1(container: &File, name: &str) -> Result<()> {
    match sys::set_iommu(container, vfio::VFIO_TYPE1v2_IOMMU) {
        // The container already has a type.
        Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Ok(()),
        Err(error) if error.raw_os_error() == Some(libc::EPERM) => Err(anyhow!(
            "cannot attach {name}: {error}; without interrupt remapping, write Y to \
             /sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts"
        )),
        other => other.map_err(|error| {
            anyhow!("cannot set the IOMMU type of the container of {name}: {error}")
        }),
    }
}

fn attach_by_cdev(iommufd: &File, ioas: u32, name: &str) -> Result<File> {
    let device = open(&cdev_of(name)?)?;
    let mut bind = vfio::vfio_device_bind_iommufd {
        argsz: vfio::vfio_device_bind_iommufd::SIZE,
        iommufd: iommufd.as_raw_fd(),
        ..Default::default()
    };
    sys::ioctl(&device, &mut bind).map_err(|error| {
        anyhow!(
            "cannot bind {name} to /dev/iommu: {error}; without interrupt remapping, write Y \
             to /sys/module/iommufd/parameters/allow_unsafe_interrupts"
        )
    })?;
    let mut attach = vfio::vfio_device_attach_iommufd_pt {
        argsz: vfio::vfio_device_attach_iommufd_pt::SIZE,
        pt_id: ioas,
        ..Default::default()
    };
    sys::ioctl(&device, &mut attach)
        .map_err(|error| anyhow!("cannot attach {name} to the IOAS: {error}"))?;
    Ok(device)
}

/// Returns the number of a function's IOMMU group.
pub fn group_of(name: &str) -> Result<String> {
    let link = sysfs(name).join("iommu_group");
    let target = fs::read_link(&link)
        .map_err(|error| anyhow!("{name} is not behind an IOMMU: {}: {error}", link.display()))?;
    Ok(target.file_name().unwrap_or_default().to_string_lossy().into_owned())
}

/// Returns the path of the VFIO device file of a function.
fn cdev_of(name: &str) -> Result<PathBuf> {
    let dir = sysfs(name).join("vfio-dev");
    let mut entries = fs::read_dir(&dir).map_err(|error| {
        anyhow!(
            "{name} is not bound to vfio-pci, or is not behind an IOMMU: {}: {error}",
            dir.display()
        )
    })?;
    match entries.next() {
        Some(Ok(entry)) => Ok(Path::new("/dev/vfio/devices").join(entry.file_name())),
        _ => Err(anyhow!("{} is empty", dir.display())),
    }
}

/// Returns the sysfs directory of a function.
pub fn sysfs(name: &str) -> PathBuf {
    Path::new("/sys/bus/pci/devices").join(name)
}

fn open(path: &Path) -> Result<File> {
    let result = File::options().read(true).write(true).open(path);
    result.map_err(|error| anyhow!("cannot open {}: {error}", path.display()))
}

/// An open VFIO device.
struct Device {
    file: File,
    // Closed after the device.
    _group: Option<File>,
    name: String,
}

impl Device {
    /// Returns the offset of a region in the device file, and its size in bytes.
    fn region(&self, index: u32) -> Result<(u64, u64)> {
        let argsz = vfio::vfio_region_info::SIZE;
        let mut info = vfio::vfio_region_info { argsz, index, ..Default::default() };
        sys::ioctl(&self.file, &mut info)
            .map_err(|error| anyhow!("{}: cannot query region {index}: {error}", self.name))?;
        Ok((info.offset, info.size))
    }

    /// Enables memory space and bus master.
    fn enable(&self) -> Result<()> {
        let (config, _) = self.region(vfio::VFIO_PCI_CONFIG_REGION_INDEX)?;
        let access_error =
            |error| anyhow!("{}: cannot access the command register: {error}", self.name);
        let mut command = [0; 2];
        self.file.read_exact_at(&mut command, config + COMMAND).map_err(access_error)?;
        let enabled = u16::from_le_bytes(command) | COMMAND_MEMORY | COMMAND_BUS_MASTER;
        self.file.write_all_at(&enabled.to_le_bytes(), config + COMMAND).map_err(access_error)
    }

    fn registers(&self) -> Result<sys::Bar> {
        let (offset, size) = self.region(vfio::VFIO_PCI_BAR0_REGION_INDEX)?;
        if size != u64::from(regs::BAR0_SIZE) {
            bail!("{} is not an accelerator: BAR 0 has {size} bytes", self.name);
        }
        sys::Bar::map(&self.file, offset, size as usize)
            .map_err(|error| anyhow!("{}: cannot map BAR 0: {error}", self.name))
    }

    /// Creates a non-blocking eventfd for each MSI-X vector.
    fn interrupts(&self) -> Result<Vec<Eventfd>> {
        let flags = EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK;
        let eventfds: Vec<_> = (0..regs::VECTORS)
            .map(|_| rustix::event::eventfd(0, flags).map(|fd| Eventfd(fd.into())))
            .collect::<std::result::Result<_, _>>()
            .map_err(|error| anyhow!("cannot create an eventfd: {error}"))?;
        let mut set = sys::EventfdSet {
            argsz: sys::EventfdSet::SIZE,
            flags: vfio::VFIO_IRQ_SET_DATA_EVENTFD | vfio::VFIO_IRQ_SET_ACTION_TRIGGER,
            index: vfio::VFIO_PCI_MSIX_IRQ_INDEX,
            start: 0,
            count: regs::VECTORS as u32,
            eventfds: std::array::from_fn(|index| eventfds[index].0.as_raw_fd()),
        };
        sys::ioctl(&self.file, &mut set)
            .map_err(|error| anyhow!("{}: cannot set up MSI-X: {error}", self.name))?;
        Ok(eventfds)
    }
}

/// Counts the interrupts of a vector.
struct Eventfd(File);

impl Eventfd {
    /// Returns the number of interrupts since the previous call.
    fn take(&self) -> u64 {
        let mut count = [0; 8];
        match rustix::io::read(self.0.as_fd(), &mut count) {
            Ok(8) => u64::from_ne_bytes(count),
            _ => 0,
        }
    }
}

/// The interrupts of a function, with an eventfd for each vector.
struct Vectors {
    eventfds: Vec<Eventfd>,
    // Closed after them.
    _device: Device,
}

impl Interrupts for Vectors {
    fn wait(&self, vector: u32, seconds: u32) -> u64 {
        let eventfd = &self.eventfds[vector as usize];
        if sys::wait_readable(&eventfd.0, seconds) { eventfd.take() } else { 0 }
    }
}
