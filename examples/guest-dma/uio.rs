//! Accelerators with Linux's uio_pci_generic_sva driver. The driver enables the function; opening
//! its device file binds the address space of the process to a PASID of the function.
//!
//! Registers are mapped through sysfs. mmap() of the UIO device file acquires two locks in the
//! opposite order of open() and can deadlock with it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail};

use crate::accel::{Accelerator, Interrupts};
use crate::sys::{self, Bar};
use crate::vfio::sysfs;

/// Opens a function that is bound to uio_pci_sva. Returns it with the PASID of the process.
pub fn open(name: &str) -> Result<(Accelerator, u32)> {
    let path = device_file(name)?;
    let lock = Lock::acquire(name)?;
    let file = open_file(&path)?;
    let pasid = pasid(name);
    drop(lock);
    // From here, `Drop` closes the file, also on errors.
    let uio = Uio { name: name.into(), path, file: Some(file) };
    Ok((Accelerator::new(name, registers(name)?, Box::new(uio))?, pasid?))
}

/// Returns the path of the device file of a function.
fn device_file(name: &str) -> Result<PathBuf> {
    let dir = sysfs(name).join("uio");
    let mut entries = fs::read_dir(&dir).map_err(|error| {
        anyhow!("{name} is not bound to uio_pci_sva: {}: {error}", dir.display())
    })?;
    match entries.next() {
        Some(Ok(entry)) => Ok(Path::new("/dev").join(entry.file_name())),
        _ => Err(anyhow!("{} is empty", dir.display())),
    }
}

fn open_file(path: &Path) -> Result<File> {
    File::options().read(true).write(true).open(path).map_err(|error| {
        anyhow!("cannot bind the address space of the process through {}: {error}", path.display())
    })
}

/// Returns the PASID of the address space that the most recent open of the device file has bound.
fn pasid(name: &str) -> Result<u32> {
    let path = sysfs(name).join("pasid");
    let text = fs::read_to_string(&path)
        .map_err(|error| anyhow!("cannot read {}: {error}", path.display()))?;
    text.trim()
        .parse()
        .map_err(|error| anyhow!("invalid PASID '{text}' in {}: {error}", path.display()))
}

fn registers(name: &str) -> Result<Bar> {
    let path = sysfs(name).join("resource0");
    let map_error = |error| anyhow!("{name}: cannot map BAR 0: {}: {error}", path.display());
    let file = File::options().read(true).write(true).open(&path).map_err(map_error)?;
    let size = file.metadata().map_err(map_error)?.len();
    if size != u64::from(crate::regs::BAR0_SIZE) {
        bail!("{name} is not an accelerator: BAR 0 has {size} bytes");
    }
    Bar::map(&file, 0, size as usize).map_err(map_error)
}

/// A lock on opening and closing the device file of a function. The driver stores only the address
/// space of the most recent open and reports its PASID; any close unbinds that one, also if another
/// process closes the file. Processes that share a function therefore serialize open and close.
struct Lock(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

impl Lock {
    fn acquire(name: &str) -> Result<Self> {
        let path = sysfs(name);
        File::open(&path)
            .and_then(|dir| dir.lock().map(|()| Self(dir)))
            .map_err(|error| anyhow!("cannot lock {}: {error}", path.display()))
    }
}

/// An open device file. A read returns the number of interrupts of the function's single vector.
struct Uio {
    name: String,
    path: PathBuf,
    /// `None` while it is being closed.
    file: Option<File>,
}

impl Interrupts for Uio {
    fn wait(&self, _vector: u32, seconds: u32) -> u64 {
        let Some(file) = &self.file else { return 0 };
        let mut total = [0; 4];
        let ready = sys::wait_readable(file, seconds);
        // The total includes interrupts of other programs, so it shows only that there was one.
        u64::from(ready && rustix::io::read(file, &mut total) == Ok(4))
    }
}

impl Drop for Uio {
    /// Opens the file once more, so that the following two closes unbind the address space of this
    /// process, see [`Lock`].
    fn drop(&mut self) {
        let reopened =
            Lock::acquire(&self.name).and_then(|lock| Ok((open_file(&self.path)?, lock)));
        match reopened {
            Ok((file, lock)) => drop((self.file.take(), file, lock)),
            Err(error) => eprintln!("guest-dma: cannot unbind {}: {error}", self.name),
        }
    }
}
