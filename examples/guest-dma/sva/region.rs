//! Mappings that come and go. Devices may have their addresses, so all content is atomic.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use crate::memory::PAGE;
use crate::{Result, place};

/// Size of a huge page, in bytes.
pub const HUGE: usize = 2 << 20;

#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    None,
    Read,
    Write,
}

impl Rights {
    fn bits(self) -> i32 {
        match self {
            Self::None => libc::PROT_NONE,
            Self::Read => libc::PROT_READ,
            Self::Write => libc::PROT_READ | libc::PROT_WRITE,
        }
    }
}

#[derive(Clone, Copy)]
pub enum Sharing {
    Private,
    Shared,
}

/// A range of the process's address space that has one mapping; removed when dropped. Pages around
/// it are reserved for good, so that it has an entry of its own in smaps.
pub struct Region {
    base: NonNull<AtomicU64>,
    bytes: usize,
    rights: Rights,
}

impl Region {
    /// Memory of its own, never touched, in small pages.
    pub fn anonymous(bytes: usize) -> Result<Self> {
        Self::private(bytes, PAGE, Advice::NoHugePage)
    }

    fn private(bytes: usize, alignment: usize, advice: Advice) -> Result<Self> {
        let region = Self::map(bytes, alignment, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE, -1)?;
        advise(region.words(), advice)?;
        Ok(region)
    }

    /// As `anonymous`, but shared with children.
    pub fn shared(bytes: usize) -> Result<Self> {
        Self::map(bytes, PAGE, libc::MAP_ANONYMOUS | libc::MAP_SHARED, -1)
    }

    /// As `anonymous`, in huge pages where possible.
    pub fn transparent_huge(bytes: usize) -> Result<Self> {
        Self::private(bytes, HUGE, Advice::HugePage)
    }

    /// As `anonymous`, in small pages, so that huge ones can take their place.
    pub fn aligned(bytes: usize) -> Result<Self> {
        Self::private(bytes, HUGE, Advice::NoHugePage)
    }

    /// Memory from the pool of huge pages.
    pub fn huge_tlb(bytes: usize) -> Result<Self> {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_HUGETLB;
        Self::map(bytes, HUGE, flags, -1)
    }

    /// The start of a file.
    pub fn file(file: &File, bytes: usize, sharing: Sharing) -> Result<Self> {
        let flags = match sharing {
            Sharing::Private => libc::MAP_PRIVATE,
            Sharing::Shared => libc::MAP_SHARED,
        };
        Self::map(bytes, PAGE, flags, file.as_raw_fd())
    }

    /// Memory of its own at an address where nothing is.
    pub fn at(address: usize, bytes: usize) -> Result<Self> {
        if !place::is_reached(address as u64, bytes) {
            return Err(format!(
                "this scenario needs memory at {address:#x}, which --below forbids"
            ));
        }
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        let address = ptr::without_provenance_mut(address);
        // SAFETY: a new mapping; if something is there already, the kernel refuses.
        unsafe { Self::from_mmap(address, bytes, flags, -1) }
    }

    fn map(bytes: usize, alignment: usize, flags: i32, fd: i32) -> Result<Self> {
        let reserved = reserve(bytes + 2 * alignment)?;
        let base = reserved.wrapping_add(alignment - reserved.addr() % alignment);
        // SAFETY: in the middle of what was just reserved, and nobody else knows of.
        unsafe { Self::from_mmap(base, bytes, flags | libc::MAP_FIXED, fd) }
    }

    /// # Safety
    /// With MAP_FIXED, nobody else may use the range.
    unsafe fn from_mmap(
        address: *mut libc::c_void,
        bytes: usize,
        flags: i32,
        fd: i32,
    ) -> Result<Self> {
        let rights = Rights::Write;
        // SAFETY: a new mapping, where the caller allows it.
        let base = unsafe { libc::mmap(address, bytes, rights.bits(), flags, fd, 0) };
        match NonNull::new(base.cast::<AtomicU64>()) {
            Some(base) if !ptr::eq(base.as_ptr().cast(), libc::MAP_FAILED) => {
                Ok(Self { base, bytes, rights })
            }
            _ => Err(format!("cannot map {bytes} bytes: {}", io::Error::last_os_error())),
        }
    }

    pub fn words(&self) -> &[AtomicU64] {
        assert!(self.rights != Rights::None, "the program may not look at this memory now");
        // SAFETY: mapped, aligned and readable as long as `self` is borrowed. Writes to what is
        // only readable, and accesses beyond a file's end, end the program.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.bytes / size_of::<AtomicU64>()) }
    }

    pub fn address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn protect(&mut self, rights: Rights) -> Result<()> {
        // SAFETY: the range is this one's own, and nobody borrows its content.
        let result =
            unsafe { libc::mprotect(self.base.as_ptr().cast(), self.bytes, rights.bits()) };
        checked(result, "change the protection")?;
        self.rights = rights;
        Ok(())
    }

    /// Puts new memory, never touched, in its place.
    pub fn replace(&mut self) -> Result<()> {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: the range is this one's own, and nobody borrows its content.
        let new = unsafe { Self::from_mmap(self.base.as_ptr().cast(), self.bytes, flags, -1) }?;
        // Not dropped: that would remove what has just been made.
        std::mem::forget(std::mem::replace(self, new));
        Ok(())
    }

    /// The parts before and behind an offset, a multiple of the page size within.
    pub fn split(self, offset: usize) -> (Self, Self) {
        assert!(offset.is_multiple_of(PAGE) && 0 < offset && offset < self.bytes);
        let (base, bytes, rights) = (self.base, self.bytes, self.rights);
        std::mem::forget(self);
        // SAFETY: within the mapping, as just checked.
        let second = unsafe { base.byte_add(offset) };
        (Self { base, bytes: offset, rights }, Self { base: second, bytes: bytes - offset, rights })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the range is this one's own, and nobody borrows its content.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Addresses that nothing else will get.
fn reserve(bytes: usize) -> Result<*mut libc::c_void> {
    place::map(bytes, libc::PROT_NONE)
        .map_err(|error| format!("cannot reserve {bytes} bytes: {error}"))
}

#[derive(Clone, Copy, Debug)]
pub enum Advice {
    /// Give the pages up: what is read there next is zero, or the file's.
    DontNeed,
    /// Write the pages to swap space or file.
    PageOut,
    HugePage,
    NoHugePage,
    /// Put small pages together.
    Collapse,
}

/// Advises the kernel on whole pages, which are as if a device had changed them at most.
pub fn advise(words: &[AtomicU64], advice: Advice) -> Result<()> {
    let number = match advice {
        Advice::DontNeed => libc::MADV_DONTNEED,
        Advice::PageOut => libc::MADV_PAGEOUT,
        Advice::HugePage => libc::MADV_HUGEPAGE,
        Advice::NoHugePage => libc::MADV_NOHUGEPAGE,
        Advice::Collapse => libc::MADV_COLLAPSE,
    };
    let base = words.as_ptr().cast_mut().cast();
    // SAFETY: the pages stay mapped, and atomics may change at any time.
    let result = unsafe { libc::madvise(base, size_of_val(words), number) };
    checked(result, &format!("follow the advice {advice:?}"))
}

fn checked(result: i32, what: &str) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(format!("the kernel cannot {what}: {}", io::Error::last_os_error())),
    }
}

/// The same memory, to be shared with a device.
pub fn atomic(words: Box<[u64]>) -> Box<[AtomicU64]> {
    // SAFETY: both have the same layout (on the 64-bit machines that this is for), and the box is
    // not used otherwise any more.
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) }
}
