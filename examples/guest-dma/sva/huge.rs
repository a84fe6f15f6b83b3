//! `huge`: huge pages are allocated by faults of the device, split, and collapsed during DMA.

use anyhow::{Result, anyhow};

use super::region::{Advice, HUGE, Region, Rights, advise};
use super::{procfs, verified};
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const PATTERN: u64 = 0x7777_7777_7777_7777;

pub fn run(channel: &mut Channel) -> Result<String> {
    procfs::write("/sys/kernel/mm/transparent_hugepage/enabled", "madvise")?;
    let region = allocate(channel)?;
    split(channel, region)?;
    collapse(channel)?;
    access_hugetlb(channel)?;
    Ok("huge: transparent huge pages allocated, split and collapsed, hugetlb pages accessed".into())
}

fn expect_huge(region: &Region, bytes: usize) -> Result<()> {
    match procfs::smaps(region, "AnonHugePages")? {
        found if found == bytes => Ok(()),
        found => Err(anyhow!("{found} bytes are in huge pages, not {bytes}")),
    }
}

/// Fills two untouched huge pages, which faults of the device allocate.
fn allocate(channel: &mut Channel) -> Result<Region> {
    let region = Region::transparent_huge(2 * HUGE)?;
    procfs::expect_untouched(region.words())?;
    verified::fill(channel, region.words(), PATTERN)?;
    expect_huge(&region, 2 * HUGE)?;
    region.words().scramble(1);
    verified::checksum(channel, region.words(), region.words().crc())?;
    Ok(region)
}

/// Unmaps a small page of the first huge page, and protects one of the second.
fn split(channel: &mut Channel, region: Region) -> Result<()> {
    let length = region.bytes() as u64;
    let start = region.address();
    let (before, rest) = region.split(HUGE - 7 * PAGE);
    let (hole, rest) = rest.split(PAGE);
    let (middle, rest) = rest.split(9 * PAGE);
    let (mut read_only, after) = rest.split(PAGE);
    let address = hole.address();
    drop(hole);
    read_only.protect(Rights::Read)?;

    for part in [&before, &middle, &read_only, &after] {
        verified::checksum(channel, part.words(), part.words().crc())?;
    }
    channel.run(ring::fill(start, length, PATTERN))?.expect_invalid(
        "a write across an unmapped page",
        address,
        true,
        before.bytes() as u64,
    )?;
    let crc = read_only.words().crc();
    channel.run(ring::fill(middle.address(), length / 2, PATTERN))?.expect_invalid(
        "a write across a read-only page",
        read_only.address(),
        true,
        middle.bytes() as u64,
    )?;
    verified::expect_crc("read-only memory", read_only.words(), crc)?;
    verified::fill(channel, after.words(), PATTERN)
}

/// Collapses small pages to a huge page while the device reads them.
fn collapse(channel: &mut Channel) -> Result<()> {
    let region = Region::aligned(HUGE)?;
    let words = region.words();
    words.scramble(2);
    let crc = words.crc();
    verified::checksum(channel, words, crc)?;
    expect_huge(&region, 0)?;
    // The region was created with MADV_NOHUGEPAGE.
    advise(words, Advice::HugePage)?;
    verified::repeat_during(
        || advise(words, Advice::Collapse),
        || verified::checksum(channel, words, crc),
    )?;
    expect_huge(&region, HUGE)?;
    verified::fill(channel, words, PATTERN)
}

/// Accesses pages of the hugetlb pool.
fn access_hugetlb(channel: &mut Channel) -> Result<()> {
    procfs::write("/proc/sys/vm/nr_hugepages", "2")?;
    let region = Region::huge_tlb(2 * HUGE)?;
    verified::fill(channel, region.words(), PATTERN)?;
    region.words().scramble(3);
    verified::checksum(channel, region.words(), region.words().crc())?;
    drop(region);
    procfs::write("/proc/sys/vm/nr_hugepages", "0")
}
