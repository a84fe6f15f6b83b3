//! The state of this process's pages, and settings of the kernel's memory management, in /proc and
//! /sys.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, anyhow};

use super::region::Region;
use crate::memory::{Content, PAGE};

/// An entry of /proc/self/pagemap (Documentation/admin-guide/mm/pagemap.rst).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Page(u64);

impl Page {
    pub fn is_present(self) -> bool {
        self.0 >> 63 & 1 == 1
    }

    /// Returns the page frame number if the page is present.
    pub fn frame(self) -> Option<u64> {
        self.is_present().then_some(self.0 & ((1 << 55) - 1))
    }
}

/// Returns the state of the pages of `words` without touching them.
pub fn pages(words: &[AtomicU64]) -> Result<Vec<Page>> {
    let mut entries = vec![0; words.bytes() / PAGE * 8];
    let offset = words.address() / PAGE as u64 * 8;
    File::open("/proc/self/pagemap")
        .and_then(|file| file.read_exact_at(&mut entries, offset))
        .map_err(|error| anyhow!("cannot read /proc/self/pagemap: {error}"))?;
    let (entries, _) = entries.as_chunks::<8>();
    Ok(entries.iter().map(|entry| Page(u64::from_le_bytes(*entry))).collect())
}

/// Returns the number of resident bytes of `words`.
pub fn resident(words: &[AtomicU64]) -> Result<usize> {
    Ok(pages(words)?.into_iter().filter(|page| page.is_present()).count() * PAGE)
}

/// Checks that no page of `words` is resident.
pub fn expect_untouched(words: &[AtomicU64]) -> Result<()> {
    match resident(words)? {
        0 => Ok(()),
        bytes => Err(anyhow!("{bytes} bytes of untouched memory are already resident")),
    }
}

/// Returns a field of the region's entry in /proc/self/smaps, in bytes.
pub fn smaps(region: &Region, field: &str) -> Result<usize> {
    let text = read("/proc/self/smaps")?;
    let (first, end) = (region.address(), region.address() + region.bytes() as u64);
    let head = format!("{first:x}-{end:x} ");
    let mut lines = text.lines().skip_while(|line| !line.starts_with(&head));
    lines
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(parse_kilobytes)
        .ok_or_else(|| anyhow!("field {field} of {head}not found in /proc/self/smaps"))
}

/// Returns a field of /proc/self/status, in bytes.
pub fn status(field: &str) -> Result<usize> {
    read("/proc/self/status")?
        .lines()
        .find_map(|line| line.strip_prefix(field)?.strip_prefix(':'))
        .and_then(parse_kilobytes)
        .ok_or_else(|| anyhow!("field {field} not found in /proc/self/status"))
}

/// Parses a size in kB. Returns it in bytes.
fn parse_kilobytes(text: &str) -> Option<usize> {
    text.trim().strip_suffix(" kB")?.trim().parse::<usize>().ok().map(|number| number << 10)
}

/// Returns the first address and the exclusive end of the main thread's stack.
pub fn stack() -> Result<(u64, u64)> {
    let text = read("/proc/self/maps")?;
    let line = text.lines().find(|line| line.ends_with("[stack]"));
    line.and_then(parse_range).ok_or_else(|| anyhow!("[stack] not found in /proc/self/maps"))
}

/// Parses the address range at the start of a line of /proc/self/maps.
fn parse_range(line: &str) -> Option<(u64, u64)> {
    let (first, end) = line.split(' ').next()?.split_once('-')?;
    Some((u64::from_str_radix(first, 16).ok()?, u64::from_str_radix(end, 16).ok()?))
}

/// Writes a setting of the kernel.
pub fn write(path: &str, text: &str) -> Result<()> {
    fs::write(path, text).map_err(|error| anyhow!("cannot write {text} to {path}: {error}"))
}

/// Reads a file of /proc to its end, because its reported size is zero.
fn read(path: &str) -> Result<String> {
    let mut text = String::new();
    File::open(path)
        .and_then(|mut file| file.read_to_string(&mut text))
        .map_err(|error| anyhow!("cannot read {path}: {error}"))?;
    Ok(text)
}
