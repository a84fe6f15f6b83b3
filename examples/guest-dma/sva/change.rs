//! `change`: mappings that are removed, replaced and protected while the device works in them.

use super::region::{Region, Rights, Sharing};
use super::{file, verified};
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring::{self, Completion};

const BYTES: usize = 4 << 20;
const PIECES: u64 = 15;
/// How often a change may come too late to meet the device at work.
const TRIES: usize = 20;

pub fn run(channel: &mut Channel) -> Result<String> {
    until_in_time("munmap", || removed(channel))?;
    until_in_time("mprotect", || protected(channel))?;
    replaced(channel)?;
    Ok(format!("change: munmap, mprotect and mmap over {} MiB under DMA", BYTES >> 20))
}

fn until_in_time(what: &str, mut attempt: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..TRIES {
        if attempt()? {
            return Ok(());
        }
    }
    Err(format!("{what} always came when the device had done its work"))
}

/// Starts a long row of work over the whole range; some of it is done on return.
fn start(channel: &mut Channel, address: u64) -> Result<()> {
    let fill = |piece| ring::fill(address, BYTES as u64, piece);
    channel.start(&(1..=PIECES).map(fill).collect::<Vec<_>>());
    channel.wait_for_first()
}

/// A part of the range that has changed.
struct Changed {
    what: &'static str,
    /// First byte of the whole range.
    start: u64,
    /// Bytes that the part leaves alone before it.
    before: usize,
    bytes: usize,
}

impl Changed {
    /// What was under way has succeeded until the change came, and failed from then on: one piece
    /// of work where it just was, all others at the first byte of what has changed. Returns whether
    /// the change met the device at work.
    fn check(&self, completions: &[Completion]) -> Result<bool> {
        let good = completions.partition_point(|one| one.fault_address == 0);
        let (good, bad) = completions.split_at(good);
        verified::expect_all(self.what, good, BYTES)?;
        let Some((met, later)) = bad.split_first() else { return Ok(false) };
        self.check_met(met)?;
        later.iter().try_for_each(|one| self.expect_first_byte(one))?;
        Ok(true)
    }

    fn check_met(&self, completion: &Completion) -> Result<()> {
        let done = completion.bytes_done;
        let part = self.before..self.before + self.bytes;
        if !part.contains(&(done as usize)) || !done.is_multiple_of(PAGE as u64) {
            return Err(format!("{}: FILL has stopped elsewhere: {completion}", self.what));
        }
        completion.expect_invalid(self.what, self.start + done, true, done)
    }

    fn expect_first_byte(&self, completion: &Completion) -> Result<()> {
        let done = self.before as u64;
        completion.expect_invalid(self.what, self.start + done, true, done)
    }
}

fn removed(channel: &mut Channel) -> Result<bool> {
    let region = Region::anonymous(BYTES)?;
    let start_of_all = region.address();
    start(channel, start_of_all)?;
    let (before, rest) = region.split(BYTES / 2 + PAGE);
    let (hole, behind) = rest.split(16 * PAGE);
    let changed = Changed {
        what: "munmap under DMA",
        start: start_of_all,
        before: before.bytes(),
        bytes: hole.bytes(),
    };
    drop(hole);
    let in_time = changed.check(&channel.finish()?)?;
    changed.expect_first_byte(&channel.run(ring::fill(start_of_all, BYTES as u64, !0))?)?;
    verified::fill(channel, behind.words(), 0)?;
    Ok(in_time)
}

fn protected(channel: &mut Channel) -> Result<bool> {
    let (before, mut rest) = Region::anonymous(BYTES)?.split(PAGE);
    start(channel, before.address())?;
    rest.protect(Rights::Read)?;
    let crc = rest.words().crc();
    let changed = Changed {
        what: "mprotect under DMA",
        start: before.address(),
        before: before.bytes(),
        bytes: rest.bytes(),
    };
    let in_time = changed.check(&channel.finish()?)?;
    verified::expect_crc("protected memory", rest.words(), crc)?;
    changed.expect_first_byte(&channel.run(ring::fill(before.address(), BYTES as u64, !0))?)?;
    rest.protect(Rights::Write)?;
    verified::fill(channel, rest.words(), !0)?;
    Ok(in_time)
}

/// The device goes on in what has taken the mapping's place, and no more in what was there.
fn replaced(channel: &mut Channel) -> Result<()> {
    let file = file::in_memory(BYTES)?;
    let alias = Region::file(&file, BYTES, Sharing::Shared)?;
    let mut region = Region::file(&file, BYTES, Sharing::Shared)?;
    start(channel, region.address())?;
    region.replace()?;
    let crc = alias.words().crc();
    let completions = channel.finish()?;
    verified::expect_all("mmap under DMA", &completions, BYTES)?;
    verified::fill(channel, region.words(), !1)?;
    verified::expect_crc("memory that was replaced", alias.words(), crc)
}
