//! `refuse`: accesses that the processor would not be allowed either end with FAULT at the right
//! address, after what lies before it, and the channel goes on.

use super::region::{Region, Rights};
use super::verified;
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const PATTERN: u64 = 0x5555_5555_5555_5555;

/// Where no process has memory: the first page, the hole between the halves, the kernel.
const NEVER_MAPPED: [u64; 4] =
    [0x10, 0x8000_0000_0000_0000, 0xffff_8880_0000_0000, 0xffff_ffff_ffff_f000];

pub fn run(channel: &mut Channel) -> Result<String> {
    read_only(channel)?;
    hole(channel)?;
    no_access(channel)?;
    for address in NEVER_MAPPED {
        refused_everywhere(channel, address)?;
    }
    let page = Region::anonymous(PAGE)?;
    verified::fill(channel, page.words(), PATTERN)?;
    Ok("refuse: writes to read-only memory, and accesses to none".into())
}

fn read_only(channel: &mut Channel) -> Result<()> {
    let (before, mut page) = Region::anonymous(9 * PAGE)?.split(8 * PAGE);
    let (untouched, written) = (Region::anonymous(PAGE)?, 100);
    page.protect(Rights::Read)?;
    let work = ring::fill(page.address() - written, 2 * written, PATTERN);
    let completion = channel.run(work)?;
    completion.expect_invalid("a write to read-only memory", page.address(), true, written)?;
    verified::expect_filled("read-only memory", page.words(), 0)?;
    let first = before.bytes() - written as usize;
    if (0..before.bytes())
        .any(|index| before.words().byte(index) != if index < first { 0 } else { PATTERN as u8 })
    {
        return Err("what lies before read-only memory has not been written to the byte".into());
    }
    verified::copy(channel, page.words(), untouched.words())
}

/// In the middle, so that a group of page requests begins on memory that is there.
fn hole(channel: &mut Channel) -> Result<()> {
    let (before, rest) = Region::anonymous(9 * PAGE)?.split(5 * PAGE);
    let (hole, behind) = rest.split(PAGE);
    let (address, done) = (hole.address(), before.bytes() as u64);
    drop(hole);
    let length = 9 * PAGE as u64;
    channel.run(ring::fill(before.address(), length, PATTERN))?.expect_invalid(
        "a write over a hole",
        address,
        true,
        done,
    )?;
    verified::expect_filled("memory before a hole", before.words(), PATTERN)?;
    verified::expect_filled("memory behind a hole", behind.words(), 0)?;
    channel.run(ring::crc32c(before.address(), length))?.expect_invalid(
        "a read over a hole",
        address,
        false,
        done,
    )?;
    refused_everywhere(channel, address + 0x123)
}

fn no_access(channel: &mut Channel) -> Result<()> {
    let mut page = Region::anonymous(PAGE)?;
    page.words().scramble(1);
    let crc = page.words().crc();
    page.protect(Rights::None)?;
    refused_everywhere(channel, page.address() + 8)?;
    page.protect(Rights::Write)?;
    verified::checksum(channel, page.words(), crc)
}

/// Neither reads nor writes get through to an address.
fn refused_everywhere(channel: &mut Channel, address: u64) -> Result<()> {
    for (work, write) in [(ring::crc32c(address, 8), false), (ring::fill(address, 8, 0), true)] {
        let what = format!("an access to {address:#x}");
        channel.run(work)?.expect_invalid(&what, address, write, 0)?;
    }
    Ok(())
}
