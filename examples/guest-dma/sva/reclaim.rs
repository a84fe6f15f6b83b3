//! `swap` and `migrate`: the kernel reclaims or migrates pages while the device accesses them.

use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, bail};

use super::region::{Advice, Region, advise};
use super::{procfs, verified};
use crate::accel::Channel;
use crate::memory::{Content, PAGE};

const BYTES: usize = 2 << 20;
const ROUNDS: usize = 4;
const PATTERN: u64 = 0x3333_3333_3333_3333;
/// Number of pages that are allocated and freed for each page of a buffer, to fragment memory.
const GAPS: usize = 6;

pub fn swap(channel: &mut Channel) -> Result<String> {
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    from.words().scramble(1);
    let crc = from.words().crc();
    verified::checksum(channel, from.words(), crc)?;
    let swapped = swap_out(&from)?;
    verified::checksum(channel, from.words(), crc)?;

    verified::fill(channel, to.words(), PATTERN)?;
    swap_out(&to)?;
    verified::expect_filled("memory that was swapped out", to.words(), PATTERN)?;
    swap_out(&to)?;
    verified::copy(channel, from.words(), to.words())?;

    let (from, to) = (from.words(), to.words());
    let (reclaimed, copies) =
        verified::repeat_during(|| page_out(&[from, to]), || verified::copy(channel, from, to))?;
    if reclaimed == 0 {
        bail!("no page was reclaimed during DMA");
    }
    let swapped = swapped >> 20;
    Ok(format!(
        "swap: {swapped} MiB out and in; {reclaimed} pages reclaimed during {copies} copies"
    ))
}

/// Swaps a region out. Returns the number of bytes in swap space.
fn swap_out(region: &Region) -> Result<usize> {
    advise(region.words(), Advice::PageOut)?;
    let (swapped, resident) = (procfs::smaps(region, "Swap")?, procfs::smaps(region, "Rss")?);
    if swapped < region.bytes() / 2 {
        bail!(
            "only {swapped} of {} bytes were swapped out, {resident} are resident; enable swap",
            region.bytes()
        );
    }
    Ok(swapped)
}

/// Pages memory out repeatedly. Returns the number of pages that were observed as not present.
fn page_out(memories: &[&[AtomicU64]]) -> Result<usize> {
    let mut reclaimed = 0;
    for _ in 0..ROUNDS {
        for memory in memories {
            advise(memory, Advice::PageOut)?;
            reclaimed += (memory.bytes() - procfs::resident(memory)?) / PAGE;
        }
    }
    Ok(reclaimed)
}

pub fn migrate(channel: &mut Channel) -> Result<String> {
    let (mut migrated, mut copies) = (0, 0);
    for round in 0..ROUNDS as u64 {
        let (from, to) = allocate_fragmented()?;
        let (from, to) = (from.words(), to.words());
        from.scramble(round);
        verified::copy(channel, from, to)?;
        let (pages, rounds) =
            verified::repeat_during(|| compact(&[from, to]), || verified::copy(channel, from, to))?;
        (migrated, copies) = (migrated + pages, copies + rounds);
    }
    if migrated == 0 {
        bail!("no page was migrated during DMA");
    }
    Ok(format!("migrate: {migrated} pages migrated during {copies} copies"))
}

/// Allocates two regions with free page frames between theirs, which compaction closes.
fn allocate_fragmented() -> Result<(Region, Region)> {
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    let gaps = Region::anonymous(GAPS * BYTES)?;
    for page in 0..BYTES / PAGE {
        touch(&from, page);
        touch(&to, page);
        (0..GAPS).for_each(|gap| touch(&gaps, page * GAPS + gap));
    }
    Ok((from, to))
}

fn touch(region: &Region, page: usize) {
    region.words()[page * PAGE / 8].store(1, Ordering::Relaxed);
}

/// Compacts the memory of the system. Returns the number of pages of `memories` that were migrated.
fn compact(memories: &[&[AtomicU64]]) -> Result<usize> {
    let before = frames(memories)?;
    procfs::write("/proc/sys/vm/compact_memory", "1")?;
    let after = frames(memories)?;
    Ok(before.iter().zip(&after).filter(|(before, after)| is_migrated(before, after)).count())
}

fn is_migrated(before: &Option<u64>, after: &Option<u64>) -> bool {
    matches!((before, after), (Some(before), Some(after)) if before != after)
}

fn frames(memories: &[&[AtomicU64]]) -> Result<Vec<Option<u64>>> {
    let mut frames = Vec::new();
    for memory in memories {
        frames.extend(procfs::pages(memory)?.into_iter().map(procfs::Page::frame));
    }
    Ok(frames)
}
