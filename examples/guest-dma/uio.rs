//! Accelerators through Linux's uio_pci_generic_sva: the driver enables the function, and opening
//! its file gives the function the opener's address space, under a PASID.
//!
//! Registers are mapped through sysfs. UIO's own mapping takes a lock that UIO holds while it opens
//! a file, under a lock that opening needs as well.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use crate::Result;
use crate::accel::{Accelerator, Interrupts};
use crate::sys::{self, Bar};
use crate::vfio::sysfs;

/// Opens a function that is bound to uio_pci_sva. Returns the process's PASID too.
pub fn open(name: &str) -> Result<(Accelerator, u32)> {
    let path = file_of(name)?;
    let turn = Turn::wait(name)?;
    let file = open_file(&path)?;
    let pasid = pasid(name);
    drop(turn);
    // From here on the file is closed as it must be, whatever happens.
    let uio = Uio { name: name.into(), path, file: Some(file) };
    Ok((Accelerator::new(name, registers(name)?, Box::new(uio))?, pasid?))
}

fn file_of(name: &str) -> Result<PathBuf> {
    let dir = sysfs(name).join("uio");
    let not_bound =
        |error| format!("{name} is not bound to uio_pci_sva: {}: {error}", dir.display());
    match fs::read_dir(&dir).map_err(not_bound)?.next() {
        Some(Ok(entry)) => Ok(Path::new("/dev").join(entry.file_name())),
        _ => Err(format!("{} is empty", dir.display())),
    }
}

fn open_file(path: &Path) -> Result<File> {
    File::options().read(true).write(true).open(path).map_err(|error| {
        format!("cannot share this process's address space through {}: {error}", path.display())
    })
}

/// The PASID of the address space that the last open of the function's file has bound.
fn pasid(name: &str) -> Result<u32> {
    let path = sysfs(name).join("pasid");
    let text = fs::read_to_string(&path)
        .map_err(|error| format!("cannot read {}: {error}", path.display()))?;
    text.trim().parse().map_err(|error| format!("{}: '{text}': {error}", path.display()))
}

fn registers(name: &str) -> Result<Bar> {
    let path = sysfs(name).join("resource0");
    let failed = |error| format!("{name}: cannot map BAR 0: {}: {error}", path.display());
    let file = File::options().read(true).write(true).open(&path).map_err(failed)?;
    let size = file.metadata().map_err(failed)?.len();
    if size != u64::from(crate::regs::BAR0_SIZE) {
        return Err(format!("{name}: BAR 0 has {size} bytes; no accelerator"));
    }
    Bar::map(&file, 0, size as usize).map_err(failed)
}

/// The right to open and to close the function's file. The driver remembers one address space
/// for the function, that of the last open, and tells its PASID; a close gives up that one,
/// whoever closes. Processes that share a function therefore take turns.
struct Turn(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

impl Turn {
    fn wait(name: &str) -> Result<Self> {
        let path = sysfs(name);
        File::open(&path)
            .and_then(|dir| dir.lock().map(|()| Self(dir)))
            .map_err(|error| format!("cannot lock {}: {error}", path.display()))
    }
}

/// The function's file: a read tells how many interrupts its one vector has seen.
struct Uio {
    name: String,
    path: PathBuf,
    /// Taken when it is closed.
    file: Option<File>,
}

impl Interrupts for Uio {
    fn wait(&self, _vector: u32, seconds: u32) -> u64 {
        let Some(file) = &self.file else { return 0 };
        let mut total = [0; 4];
        let came = sys::wait_readable(file, seconds);
        // The count has begun before this program did: only that it has changed is of interest.
        u64::from(came && rustix::io::read(file, &mut total) == Ok(4))
    }
}

impl Drop for Uio {
    /// See [`Turn`]: opening once more makes this process's address space the one that the next
    /// two closes give up.
    fn drop(&mut self) {
        let again = Turn::wait(&self.name).and_then(|turn| Ok((open_file(&self.path)?, turn)));
        match again {
            Ok((file, turn)) => drop((self.file.take(), file, turn)),
            Err(error) => eprintln!("guest-dma: {}: cannot be left: {error}", self.name),
        }
    }
}
