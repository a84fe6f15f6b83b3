//! `swap` and `migrate`: the kernel takes pages away, or moves them, while the device works on
//! them.

use std::sync::atomic::AtomicU64;

use super::region::{Advice, Region, advise};
use super::{pages, verified};
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};

const BYTES: usize = 4 << 20;
const ROUNDS: usize = 4;
const PATTERN: u64 = 0x3333_3333_3333_3333;
/// Memory that is taken and given back in part, so that there are gaps to be closed.
const GAPS: usize = 16 << 20;

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
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    from.words().scramble(2);
    verified::copy(channel, from.words(), to.words())?;
    let both = [from.words(), to.words()];
    let disturb = || moved(&both);
    let (moved, rounds) =
        verified::during(disturb, || verified::copy(channel, from.words(), to.words()))?;
    if moved == 0 {
        return Err("no page has moved".into());
    }
    Ok(format!("migrate: {moved} pages moved in {rounds} copies"))
}

/// Has memory compacted until some of these pages have moved. Returns how many.
fn moved(memories: &[&[AtomicU64]]) -> Result<usize> {
    let mut moved = 0;
    for _ in 0..ROUNDS {
        let _gaps = gaps()?;
        let before = frames(memories)?;
        pages::write("/proc/sys/vm/compact_memory", "1")?;
        let after = frames(memories)?;
        moved += before.iter().zip(&after).filter(|(before, after)| is_move(before, after)).count();
    }
    Ok(moved)
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

/// Every second page of it is there.
fn gaps() -> Result<Region> {
    let region = Region::anonymous(GAPS)?;
    region.words().scramble(3);
    for page in region.words().chunks(PAGE / 8).step_by(2) {
        advise(page, Advice::DontNeed)?;
    }
    Ok(region)
}
