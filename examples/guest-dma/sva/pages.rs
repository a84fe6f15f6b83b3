//! What the kernel says of this process's pages.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use super::region::Region;
use crate::Result;
use crate::memory::{Content, PAGE};

/// An entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Page(u64);

impl Page {
    pub fn is_present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }

    /// The page frame it is in, if it is present.
    pub fn frame(self) -> Option<u64> {
        self.is_present().then_some(self.0 & ((1 << 55) - 1))
    }
}

/// The pages of some memory, which is not touched by that.
pub fn pages(words: &[AtomicU64]) -> Result<Vec<Page>> {
    let mut entries = vec![0; words.bytes() / PAGE * 8];
    let offset = words.address() / PAGE as u64 * 8;
    File::open("/proc/self/pagemap")
        .and_then(|file| file.read_exact_at(&mut entries, offset))
        .map_err(|error| format!("cannot read /proc/self/pagemap: {error}"))?;
    let (entries, _) = entries.as_chunks::<8>();
    Ok(entries.iter().map(|entry| Page(u64::from_le_bytes(*entry))).collect())
}

/// How many bytes of some memory are resident.
pub fn resident(words: &[AtomicU64]) -> Result<usize> {
    Ok(pages(words)?.into_iter().filter(|page| page.is_present()).count() * PAGE)
}

/// That nobody has touched the memory yet.
pub fn expect_untouched(words: &[AtomicU64]) -> Result<()> {
    match resident(words)? {
        0 => Ok(()),
        bytes => Err(format!("{bytes} bytes of memory to be touched first are resident already")),
    }
}

/// A field of the region's entry in /proc/self/smaps, in bytes.
pub fn smaps(region: &Region, field: &str) -> Result<usize> {
    let text = read("/proc/self/smaps")?;
    let (first, end) = (region.address(), region.address() + region.bytes() as u64);
    let head = format!("{first:x}-{end:x} ");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&head));
    lines
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(kilobytes)
        .ok_or_else(|| format!("no {field} for {head}in /proc/self/smaps"))
}

/// A field of /proc/self/status, in bytes.
pub fn status(field: &str) -> Result<usize> {
    read("/proc/self/status")?
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(kilobytes)
        .ok_or_else(|| format!("no {field} in /proc/self/status"))
}

fn kilobytes(text: &str) -> Option<usize> {
    text.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|number| number << 10)
}

/// First address and end of the main thread's stack.
pub fn stack() -> Result<(u64, u64)> {
    let text = read("/proc/self/maps")?;
    let line = text.lines().find(|line| line.ends_with("[stack]"));
    let range = line.and_then(|line| line.split(' ').next()?.split_once('-'));
    let number = |text: &str| u64::from_str_radix(text, 16).ok();
    range
        .and_then(|(first, end)| Some((number(first)?, number(end)?)))
        .ok_or_else(|| "no [stack] in /proc/self/maps".into())
}

/// Tells the kernel something through a file.
pub fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| format!("cannot write {text} to {path}: {error}"))
}

/// All at once, since these files have no size.
fn read(path: &str) -> Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_err(|error| format!("cannot read {path}: {error}"))?;
    Ok(text)
}
