//! `several`: accelerators that share one address space, and fault in it at the same time.

use vhost_user_iommu::cli::bdf::Bdf;

use super::region::Region;
use super::{Options, Shared, verified};
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

/// What each of them works on.
const BYTES: usize = 512 << 10;
const ROUNDS: u64 = 4;

pub fn run(options: &Options, others: &[Bdf]) -> Result<String> {
    let all = [&[options.function], others].concat();
    let shared = all.iter().map(|function| Shared::open(*function)).collect::<Result<Vec<_>>>()?;
    if shared.iter().any(|one| one.pasid != shared[0].pasid) {
        return Err("one process has several PASIDs".into());
    }
    let channels = shared.iter().map(|one| one.channel(options));
    let mut channels = channels.collect::<Result<Vec<_>>>()?;
    for round in 0..ROUNDS {
        apart(&mut channels, round)?;
        same_pages(&mut channels)?;
        removed(&mut channels)?;
    }
    let count = channels.len();
    Ok(format!("several: {count} accelerators in one address space, {ROUNDS} rounds"))
}

/// Each copies its part to where the next one has its own, all at once.
fn apart(channels: &mut [Channel], round: u64) -> Result<()> {
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
    verified::expect_crc("the copies of all", to.words(), from.words().crc())
}

/// All fault on the same pages at once, and only read them.
fn same_pages(channels: &mut [Channel]) -> Result<()> {
    let region = Region::anonymous(BYTES)?;
    for channel in channels.iter_mut() {
        channel.start(&[ring::crc32c(region.address(), BYTES as u64)]);
    }
    let expected = u64::from(region.words().crc());
    for channel in channels.iter_mut() {
        let completions = channel.finish()?;
        verified::expect_all("CRC32C", &completions, BYTES)?;
        if completions[0].result != expected {
            return Err(format!("{channel}: {:#x}, not {expected:#x}", completions[0].result));
        }
    }
    Ok(())
}

/// What is removed is gone for each of them.
fn removed(channels: &mut [Channel]) -> Result<()> {
    let (kept, hole) = Region::anonymous(BYTES)?.split(BYTES - PAGE);
    let address = hole.address();
    let work = ring::fill(kept.address(), BYTES as u64, 1);
    for channel in channels.iter_mut() {
        channel.run(work)?.expect_success("FILL", BYTES as u64)?;
    }
    drop(hole);
    for channel in channels.iter_mut() {
        let what = format!("{channel} after munmap");
        channel.run(work)?.expect_invalid(&what, address, true, kept.bytes() as u64)?;
    }
    Ok(())
}
