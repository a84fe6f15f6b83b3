//! `change`: mappings are removed, replaced and protected while the device accesses them.

use anyhow::{Result, anyhow, bail};

use super::region::{Region, Rights, Sharing};
use super::{file, verified};
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring::{self, Completion};

const BYTES: usize = 4 << 20;
/// Number of descriptors that the device has when the mapping changes.
const PIECES: u64 = 15;
/// Maximum number of attempts to change the mapping before the device has done its work.
const ATTEMPTS: usize = 20;

pub fn run(channel: &mut Channel) -> Result<String> {
    repeat_until_during_dma("munmap", || unmap(channel))?;
    repeat_until_during_dma("mprotect", || protect(channel))?;
    replace(channel)?;
    Ok(format!("change: munmap, mprotect and mmap over {} MiB during DMA", BYTES >> 20))
}

fn repeat_until_during_dma(change: &str, mut attempt: impl FnMut() -> Result<bool>) -> Result<()> {
    for _ in 0..ATTEMPTS {
        if attempt()? {
            return Ok(());
        }
    }
    Err(anyhow!("the device's work was done before {change} in all {ATTEMPTS} attempts"))
}

/// Starts a series of FILLs over the whole region. At least one of them is done on return.
fn start(channel: &mut Channel, address: u64) -> Result<()> {
    let work: Vec<_> = (1..=PIECES).map(|piece| ring::fill(address, BYTES as u64, piece)).collect();
    channel.start(&work);
    channel.wait_for_first()
}

/// The part of a region that a system call makes inaccessible to writes.
struct ChangedPart {
    /// The system call, for errors.
    name: &'static str,
    /// Address of the region.
    region: u64,
    /// Offset of the part in the region, in bytes.
    offset: usize,
    bytes: usize,
}

impl ChangedPart {
    /// Checks FILLs of the whole region around the change: they succeed before it. The one in
    /// progress faults anywhere in the part, the ones after it at the part's first byte. Returns
    /// whether the change was made during DMA.
    fn check(&self, completions: &[Completion]) -> Result<bool> {
        let succeeded = completions.partition_point(|one| one.fault_address == 0);
        let (succeeded, faulted) = completions.split_at(succeeded);
        verified::expect_all(self.name, succeeded, BYTES)?;
        let Some((in_progress, later)) = faulted.split_first() else { return Ok(false) };
        self.expect_fault_within(in_progress)?;
        later.iter().try_for_each(|one| self.expect_fault_at_start(one))?;
        Ok(true)
    }

    fn expect_fault_within(&self, completion: &Completion) -> Result<()> {
        let done = completion.bytes_done;
        let part = self.offset..self.offset + self.bytes;
        if !part.contains(&(done as usize)) || !done.is_multiple_of(PAGE as u64) {
            bail!("{}: FILL stopped outside the part: {completion}", self.name);
        }
        completion.expect_invalid(self.name, self.region + done, true, done)
    }

    fn expect_fault_at_start(&self, completion: &Completion) -> Result<()> {
        let done = self.offset as u64;
        completion.expect_invalid(self.name, self.region + done, true, done)
    }
}

/// Unmaps pages in the middle of a region during DMA. Returns false if the work was already done.
fn unmap(channel: &mut Channel) -> Result<bool> {
    let region = Region::anonymous(BYTES)?;
    let address = region.address();
    start(channel, address)?;
    let (before, rest) = region.split(BYTES / 2 + PAGE);
    let (hole, after) = rest.split(16 * PAGE);
    let changed = ChangedPart {
        name: "munmap during DMA",
        region: address,
        offset: before.bytes(),
        bytes: hole.bytes(),
    };
    drop(hole);
    let during_dma = changed.check(&channel.finish()?)?;
    changed.expect_fault_at_start(&channel.run(ring::fill(address, BYTES as u64, !0))?)?;
    verified::fill(channel, after.words(), 0)?;
    Ok(during_dma)
}

/// Makes all but the first page of a region read-only during DMA. Returns false if the work was
/// already done.
fn protect(channel: &mut Channel) -> Result<bool> {
    let (before, mut rest) = Region::anonymous(BYTES)?.split(PAGE);
    start(channel, before.address())?;
    rest.protect(Rights::Read)?;
    let crc = rest.words().crc();
    let changed = ChangedPart {
        name: "mprotect during DMA",
        region: before.address(),
        offset: before.bytes(),
        bytes: rest.bytes(),
    };
    let during_dma = changed.check(&channel.finish()?)?;
    verified::expect_crc("protected memory", rest.words(), crc)?;
    changed.expect_fault_at_start(&channel.run(ring::fill(
        before.address(),
        BYTES as u64,
        !0,
    ))?)?;
    rest.protect(Rights::Write)?;
    verified::fill(channel, rest.words(), !0)?;
    Ok(during_dma)
}

/// Replaces a mapping during DMA. The device must continue in the new mapping, and must not write to
/// the file of the old one.
fn replace(channel: &mut Channel) -> Result<()> {
    let file = file::in_memory(BYTES)?;
    let alias = Region::file(&file, BYTES, Sharing::Shared)?;
    let mut region = Region::file(&file, BYTES, Sharing::Shared)?;
    start(channel, region.address())?;
    region.replace()?;
    let crc = alias.words().crc();
    let completions = channel.finish()?;
    verified::expect_all("mmap during DMA", &completions, BYTES)?;
    verified::fill(channel, region.words(), !1)?;
    verified::expect_crc("the file of the replaced mapping", alias.words(), crc)
}
