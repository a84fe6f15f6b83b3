//! `swap` and `migrate`: the kernel takes pages away, or moves them, while the device works on
//! them.

use std::sync::atomic::{AtomicU64, Ordering};

use super::region::{Advice, Region, advise};
use super::{pages, verified};
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};

const BYTES: usize = 2 << 20;
const ROUNDS: usize = 4;
const PATTERN: u64 = 0x3333_3333_3333_3333;
/// Pages that are taken, and given back, for each page of a buffer.
const GAPS: usize = 6;

pub fn swap(channel: &mut Channel) -> Result<String> {
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    from.words().scramble(1);
    let crc = from.words().crc();
    verified::checksum(channel, from.words(), crc)?;
    let out = swap_out(&from)?;
    verified::checksum(channel, from.words(), crc)?;

    verified::fill(channel, to.words(), PATTERN)?;
    swap_out(&to)?;
    verified::expect_filled("memory that was swapped out", to.words(), PATTERN)?;
    swap_out(&to)?;
    verified::copy(channel, from.words(), to.words())?;

    let both = [from.words(), to.words()];
    let disturb = || taken_away(&both);
    let (taken, rounds) =
        verified::during(disturb, || verified::copy(channel, from.words(), to.words()))?;
    if taken == 0 {
        return Err("no page was taken away from the device".into());
    }
    let out = out >> 20;
    Ok(format!("swap: {out} MiB out and in; {taken} pages taken away in {rounds} copies"))
}

/// Writes a region to swap space. Returns how many bytes really went there.
fn swap_out(region: &Region) -> Result<usize> {
    advise(region.words(), Advice::PageOut)?;
    let (out, resident) = (pages::smaps(region, "Swap")?, pages::smaps(region, "Rss")?);
    if out < region.bytes() / 2 {
        return Err(format!("{out} bytes were swapped out, {resident} are resident; is swap on?"));
    }
    Ok(out)
}

/// Has pages swapped out again and again. Returns how many were seen to be gone.
fn taken_away(memories: &[&[AtomicU64]]) -> Result<usize> {
    let mut taken = 0;
    for _ in 0..ROUNDS {
        for memory in memories {
            advise(memory, Advice::PageOut)?;
            taken += (memory.bytes() - pages::resident(memory)?) / PAGE;
        }
    }
    Ok(taken)
}

pub fn migrate(channel: &mut Channel) -> Result<String> {
    let (mut moved, mut copies) = (0, 0);
    for round in 0..ROUNDS as u64 {
        let (from, to) = spread()?;
        from.words().scramble(round);
        verified::copy(channel, from.words(), to.words())?;
        let both = [from.words(), to.words()];
        let disturb = || compacted(&both);
        let (pages, rounds) =
            verified::during(disturb, || verified::copy(channel, from.words(), to.words()))?;
        (moved, copies) = (moved + pages, copies + rounds);
    }
    if moved == 0 {
        return Err("no page has moved".into());
    }
    Ok(format!("migrate: {moved} pages moved in {copies} copies"))
}

/// Two regions whose pages lie far from each other in memory, with gaps that wait to be closed.
fn spread() -> Result<(Region, Region)> {
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    let gaps = Region::anonymous(GAPS * BYTES)?;
    let touch = |region: &Region, page: usize| {
        region.words()[page * PAGE / 8].store(1, Ordering::Relaxed);
    };
    for page in 0..BYTES / PAGE {
        touch(&from, page);
        touch(&to, page);
        (0..GAPS).for_each(|gap| touch(&gaps, page * GAPS + gap));
    }
    Ok((from, to))
}

/// Has memory compacted. Returns how many of these pages have moved.
fn compacted(memories: &[&[AtomicU64]]) -> Result<usize> {
    let before = frames(memories)?;
    pages::write("/proc/sys/vm/compact_memory", "1")?;
    let after = frames(memories)?;
    Ok(before.iter().zip(&after).filter(|(before, after)| is_move(before, after)).count())
}

fn is_move(before: &Option<u64>, after: &Option<u64>) -> bool {
    matches!((before, after), (Some(before), Some(after)) if before != after)
}

fn frames(memories: &[&[AtomicU64]]) -> Result<Vec<Option<u64>>> {
    let mut frames = Vec::new();
    for memory in memories {
        frames.extend(pages::pages(memory)?.into_iter().map(pages::Page::frame));
    }
    Ok(frames)
}
