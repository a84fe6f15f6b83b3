//! Mappings of this process. Their content is atomic because devices may access it at any time.

use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::ptr::{self, NonNull};
use std::slice;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, anyhow, bail};

use crate::memory::PAGE;
use crate::place;

/// Size of a huge page, in bytes.
pub const HUGE: usize = 2 << 20;

/// The protection of a mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Rights {
    None,
    Read,
    /// Reads and writes.
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

/// The visibility of writes to a file mapping.
#[derive(Clone, Copy)]
pub enum Sharing {
    Private,
    Shared,
}

/// A range of the process's address space with one mapping, which is unmapped on drop. The adjacent
/// pages stay reserved, so that the range has a separate entry in /proc/self/smaps.
pub struct Region {
    base: NonNull<AtomicU64>,
    bytes: usize,
    rights: Rights,
}

impl Region {
    /// Maps untouched private memory in small pages.
    pub fn anonymous(bytes: usize) -> Result<Self> {
        Self::private(bytes, PAGE, Advice::NoHugePage)
    }

    fn private(bytes: usize, alignment: usize, advice: Advice) -> Result<Self> {
        let region = Self::map(bytes, alignment, libc::MAP_ANONYMOUS | libc::MAP_PRIVATE, -1)?;
        advise(region.words(), advice)?;
        Ok(region)
    }

    /// Maps untouched memory that is shared with child processes.
    pub fn shared(bytes: usize) -> Result<Self> {
        Self::map(bytes, PAGE, libc::MAP_ANONYMOUS | libc::MAP_SHARED, -1)
    }

    /// Maps untouched private memory in huge pages if possible.
    pub fn transparent_huge(bytes: usize) -> Result<Self> {
        Self::private(bytes, HUGE, Advice::HugePage)
    }

    /// Maps untouched private memory in small pages that can be collapsed to huge pages.
    pub fn aligned(bytes: usize) -> Result<Self> {
        Self::private(bytes, HUGE, Advice::NoHugePage)
    }

    /// Maps pages of the hugetlb pool.
    pub fn huge_tlb(bytes: usize) -> Result<Self> {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_HUGETLB;
        Self::map(bytes, HUGE, flags, -1)
    }

    /// Maps the first `bytes` bytes of a file.
    pub fn file(file: &File, bytes: usize, sharing: Sharing) -> Result<Self> {
        let flags = match sharing {
            Sharing::Private => libc::MAP_PRIVATE,
            Sharing::Shared => libc::MAP_SHARED,
        };
        Self::map(bytes, PAGE, flags, file.as_raw_fd())
    }

    /// Maps untouched private memory at `address`, where no mapping may exist.
    pub fn at(address: usize, bytes: usize) -> Result<Self> {
        if !place::is_reached(address as u64, bytes) {
            bail!("this scenario requires memory at {address:#x}, above the limit of --below");
        }
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_FIXED_NOREPLACE;
        let address = ptr::without_provenance_mut(address);
        // SAFETY: MAP_FIXED_NOREPLACE fails if the range has a mapping.
        unsafe { Self::from_mmap(address, bytes, flags, -1) }
    }

    fn map(bytes: usize, alignment: usize, flags: i32, fd: i32) -> Result<Self> {
        let reserved = reserve(bytes + 2 * alignment)?;
        let base = reserved.wrapping_add(alignment - reserved.addr() % alignment);
        // SAFETY: the range is within the reserved one, which no other code refers to.
        unsafe { Self::from_mmap(base, bytes, flags | libc::MAP_FIXED, fd) }
    }

    /// Maps a range.
    ///
    /// # Safety
    /// With MAP_FIXED, no other code may refer to memory in the range.
    unsafe fn from_mmap(
        address: *mut libc::c_void,
        bytes: usize,
        flags: i32,
        fd: i32,
    ) -> Result<Self> {
        let rights = Rights::Write;
        // SAFETY: the mapping replaces another one only as the caller permits.
        let base = unsafe { libc::mmap(address, bytes, rights.bits(), flags, fd, 0) };
        match NonNull::new(base.cast::<AtomicU64>()) {
            Some(base) if !ptr::eq(base.as_ptr().cast(), libc::MAP_FAILED) => {
                Ok(Self { base, bytes, rights })
            }
            _ => Err(anyhow!("cannot map {bytes} bytes: {}", io::Error::last_os_error())),
        }
    }

    pub fn words(&self) -> &[AtomicU64] {
        assert!(self.rights != Rights::None, "the process has no access to this region");
        // SAFETY: the range is mapped, aligned and readable while `self` is borrowed. A write to
        // a read-only region and an access past the end of a file terminate the process.
        unsafe { slice::from_raw_parts(self.base.as_ptr(), self.bytes / size_of::<AtomicU64>()) }
    }

    pub fn address(&self) -> u64 {
        self.base.as_ptr().addr() as u64
    }

    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// Changes the protection of the region.
    pub fn protect(&mut self, rights: Rights) -> Result<()> {
        // SAFETY: the region owns the range, and its content is not borrowed.
        let result =
            unsafe { libc::mprotect(self.base.as_ptr().cast(), self.bytes, rights.bits()) };
        check(result, "change the protection of memory")?;
        self.rights = rights;
        Ok(())
    }

    /// Replaces the mapping with untouched private memory.
    pub fn replace(&mut self) -> Result<()> {
        let flags = libc::MAP_ANONYMOUS | libc::MAP_PRIVATE | libc::MAP_FIXED;
        // SAFETY: the region owns the range, and its content is not borrowed.
        let new = unsafe { Self::from_mmap(self.base.as_ptr().cast(), self.bytes, flags, -1) }?;
        // Dropping the old region would unmap the new one.
        std::mem::forget(std::mem::replace(self, new));
        Ok(())
    }

    /// Splits the region at an offset, in bytes: a multiple of the page size inside the region.
    pub fn split(self, offset: usize) -> (Self, Self) {
        assert!(offset.is_multiple_of(PAGE) && 0 < offset && offset < self.bytes);
        let (base, bytes, rights) = (self.base, self.bytes, self.rights);
        std::mem::forget(self);
        // SAFETY: the assertion ensures that the offset is within the mapping.
        let second = unsafe { base.byte_add(offset) };
        (Self { base, bytes: offset, rights }, Self { base: second, bytes: bytes - offset, rights })
    }
}

impl Drop for Region {
    fn drop(&mut self) {
        // SAFETY: the region owns the range, and its content is not borrowed.
        unsafe { libc::munmap(self.base.as_ptr().cast(), self.bytes) };
    }
}

/// Reserves a range of addresses that no other mapping gets.
fn reserve(bytes: usize) -> Result<*mut libc::c_void> {
    place::map(bytes, libc::PROT_NONE)
        .map_err(|error| anyhow!("cannot reserve {bytes} bytes: {error}"))
}

/// Advice for madvise(2).
#[derive(Clone, Copy, Debug)]
pub enum Advice {
    /// Free the pages. The next read returns zero or the content of the file.
    DontNeed,
    /// Reclaim the pages: write them to swap space or to the file.
    PageOut,
    HugePage,
    NoHugePage,
    /// Collapse small pages to huge pages.
    Collapse,
}

/// Advises the kernel about whole pages. Their content changes at most as if a device wrote to it.
pub fn advise(words: &[AtomicU64], advice: Advice) -> Result<()> {
    let number = match advice {
        Advice::DontNeed => libc::MADV_DONTNEED,
        Advice::PageOut => libc::MADV_PAGEOUT,
        Advice::HugePage => libc::MADV_HUGEPAGE,
        Advice::NoHugePage => libc::MADV_NOHUGEPAGE,
        Advice::Collapse => libc::MADV_COLLAPSE,
    };
    let base = words.as_ptr().cast_mut().cast();
    // SAFETY: the pages stay mapped, and the value of an atomic may change at any time.
    let result = unsafe { libc::madvise(base, size_of_val(words), number) };
    check(result, &format!("apply {advice:?} to memory"))
}

/// Checks the result of a system call, which errors describe as `action`.
fn check(result: i32, action: &str) -> Result<()> {
    match result {
        0 => Ok(()),
        _ => Err(anyhow!("cannot {action}: {}", io::Error::last_os_error())),
    }
}

/// Converts memory to words that can be shared with a device.
pub fn into_atomic(words: Box<[u64]>) -> Box<[AtomicU64]> {
    // SAFETY: both types have the same layout on 64-bit machines, and the box has no other
    // owner.
    unsafe { Box::from_raw(Box::into_raw(words) as *mut [AtomicU64]) }
}
