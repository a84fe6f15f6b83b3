//! `huge`: huge pages that the device makes, that are split under it, and put together.

use super::region::{Advice, HUGE, Region, Rights, advise};
use super::{pages, verified};
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const PATTERN: u64 = 0x7777_7777_7777_7777;

pub fn run(channel: &mut Channel) -> Result<String> {
    pages::write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")?;
    let region = made_by_the_device(channel)?;
    split(channel, region)?;
    collapsed(channel)?;
    from_the_pool(channel)?;
    Ok("huge: huge pages made, split, collapsed and taken from the pool".into())
}

fn expect_huge(region: &Region, bytes: usize) -> Result<()> {
    match pages::smaps(region, "AnonHugePages")? {
        found if found == bytes => Ok(()),
        found => Err(format!("{found} bytes are in huge pages, not {bytes}")),
    }
}

/// Two of them, untouched before.
fn made_by_the_device(channel: &mut Channel) -> Result<Region> {
    let region = Region::transparent_huge(2 * HUGE)?;
    pages::expect_untouched(region.words())?;
    verified::fill(channel, region.words(), PATTERN)?;
    expect_huge(&region, 2 * HUGE)?;
    region.words().scramble(1);
    verified::checksum(channel, region.words(), region.words().crc())?;
    Ok(region)
}

/// A page in the first one is unmapped, and one in the second protected.
fn split(channel: &mut Channel, region: Region) -> Result<()> {
    let length = region.bytes() as u64;
    let start = region.address();
    let (before, rest) = region.split(HUGE - 7 * PAGE);
    let (hole, rest) = rest.split(PAGE);
    let (middle, rest) = rest.split(9 * PAGE);
    let (mut read_only, behind) = rest.split(PAGE);
    let address = hole.address();
    drop(hole);
    read_only.protect(Rights::Read)?;

    for part in [&before, &middle, &read_only, &behind] {
        verified::checksum(channel, part.words(), part.words().crc())?;
    }
    channel.run(ring::fill(start, length, PATTERN))?.expect_invalid(
        "a write over a hole",
        address,
        true,
        before.bytes() as u64,
    )?;
    let kept = read_only.words().crc();
    channel.run(ring::fill(middle.address(), length / 2, PATTERN))?.expect_invalid(
        "a write",
        read_only.address(),
        true,
        middle.bytes() as u64,
    )?;
    verified::expect_crc("read-only memory", read_only.words(), kept)?;
    verified::fill(channel, behind.words(), PATTERN)
}

fn collapsed(channel: &mut Channel) -> Result<()> {
    let region = Region::aligned(HUGE)?;
    region.words().scramble(2);
    let crc = region.words().crc();
    verified::checksum(channel, region.words(), crc)?;
    expect_huge(&region, 0)?;
    // Small pages only were asked for until now.
    advise(region.words(), Advice::HugePage)?;
    let words = region.words();
    let disturb = || advise(words, Advice::Collapse);
    verified::during(disturb, || verified::checksum(channel, words, crc))?;
    expect_huge(&region, HUGE)?;
    verified::fill(channel, region.words(), PATTERN)
}

fn from_the_pool(channel: &mut Channel) -> Result<()> {
    pages::write("/proc/sys/vm/nr_hugepages", "2")?;
    let region = Region::huge_tlb(2 * HUGE)?;
    verified::fill(channel, region.words(), PATTERN)?;
    region.words().scramble(3);
    verified::checksum(channel, region.words(), region.words().crc())?;
    drop(region);
    pages::write("/proc/sys/vm/nr_hugepages", "0")
}
