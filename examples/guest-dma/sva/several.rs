//! `several`: accelerators share one address space and fault concurrently.

use std::iter;

use anyhow::{Result, bail};

use super::region::Region;
use super::{BoundAccelerator, Options, verified};
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

/// Bytes that each accelerator accesses.
const BYTES: usize = 512 << 10;
const ROUNDS: u64 = 4;

pub fn run(options: &Options, others: &[String]) -> Result<String> {
    let accelerators = iter::once(&options.function)
        .chain(others)
        .map(|function| BoundAccelerator::open(function))
        .collect::<Result<Vec<_>>>()?;
    if accelerators.iter().any(|other| other.pasid != accelerators[0].pasid) {
        bail!("the accelerators have different PASIDs for one process");
    }
    let mut channels = accelerators
        .iter()
        .map(|accelerator| accelerator.channel(options))
        .collect::<Result<Vec<_>>>()?;
    for round in 0..ROUNDS {
        copy_separate_parts(&mut channels, round)?;
        read_same_pages(&mut channels)?;
        fill_across_hole(&mut channels)?;
    }
    let count = channels.len();
    Ok(format!("several: {count} accelerators in one address space, {ROUNDS} rounds"))
}

/// Copies adjacent parts of one region concurrently, one with each accelerator.
fn copy_separate_parts(channels: &mut [Channel], round: u64) -> Result<()> {
    let total = channels.len() * BYTES;
    let (from, to) = (Region::anonymous(total)?, Region::anonymous(total)?);
    from.words().scramble(round);
    for (index, channel) in channels.iter_mut().enumerate() {
        let offset = (index * BYTES) as u64;
        let (source, destination) = (from.address() + offset, to.address() + offset);
        channel.start(&[ring::copy(source, destination, BYTES as u64)]);
    }
    for channel in channels.iter_mut() {
        verified::expect_all("COPY", &channel.finish()?, BYTES)?;
    }
    verified::expect_crc("the copy of all parts", to.words(), from.words().crc())
}

/// Reads the same untouched pages concurrently with all accelerators.
fn read_same_pages(channels: &mut [Channel]) -> Result<()> {
    let region = Region::anonymous(BYTES)?;
    for channel in channels.iter_mut() {
        channel.start(&[ring::crc32c(region.address(), BYTES as u64)]);
    }
    let expected = u64::from(region.words().crc());
    for channel in channels.iter_mut() {
        let completions = channel.finish()?;
        verified::expect_all("CRC32C", &completions, BYTES)?;
        let result = completions[0].result;
        if result != expected {
            bail!("{channel}: CRC32C is {result:#x}, not {expected:#x}");
        }
    }
    Ok(())
}

/// Checks that no accelerator can access a page after munmap.
fn fill_across_hole(channels: &mut [Channel]) -> Result<()> {
    let (kept, hole) = Region::anonymous(BYTES)?.split(BYTES - PAGE);
    let address = hole.address();
    let work = ring::fill(kept.address(), BYTES as u64, 1);
    for channel in channels.iter_mut() {
        channel.run(work)?.expect_success("FILL", BYTES as u64)?;
    }
    drop(hole);
    for channel in channels.iter_mut() {
        let name = format!("{channel} after munmap");
        channel.run(work)?.expect_invalid(&name, address, true, kept.bytes() as u64)?;
    }
    Ok(())
}
