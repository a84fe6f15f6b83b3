//! `forbidden`: an access that the process may not make ends with FAULT at the first forbidden
//! address. The bytes before it are transferred, and the channel continues.

use anyhow::{Result, bail};

use super::region::{Region, Rights};
use super::verified;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const PATTERN: u64 = 0x5555_5555_5555_5555;

/// Addresses that are never mapped in a process: the first page, the non-canonical hole, and
/// addresses of the kernel.
const NEVER_MAPPED: [u64; 4] =
    [0x10, 0x8000_0000_0000_0000, 0xffff_8880_0000_0000, 0xffff_ffff_ffff_f000];

pub fn run(channel: &mut Channel) -> Result<String> {
    read_only(channel)?;
    hole(channel)?;
    no_access(channel)?;
    for address in NEVER_MAPPED {
        expect_no_access(channel, address)?;
    }
    let page = Region::anonymous(PAGE)?;
    verified::fill(channel, page.words(), PATTERN)?;
    Ok("forbidden: writes to read-only memory, accesses to unmapped and inaccessible memory".into())
}

fn read_only(channel: &mut Channel) -> Result<()> {
    let (before, mut page) = Region::anonymous(9 * PAGE)?.split(8 * PAGE);
    let (copy, written) = (Region::anonymous(PAGE)?, 100);
    page.protect(Rights::Read)?;
    let work = ring::fill(page.address() - written, 2 * written, PATTERN);
    let completion = channel.run(work)?;
    completion.expect_invalid("a write to read-only memory", page.address(), true, written)?;
    verified::expect_filled("read-only memory", page.words(), 0)?;
    let first = before.bytes() - written as usize;
    for index in 0..before.bytes() {
        let expected = if index < first { 0 } else { PATTERN as u8 };
        let found = before.words().byte(index);
        if found != expected {
            bail!("byte {index:#x} before read-only memory is {found:#04x}, not {expected:#04x}");
        }
    }
    verified::copy(channel, page.words(), copy.words())
}

/// Accesses a region with an unmapped page in the middle, so that a page request group starts with
/// pages that are present.
fn hole(channel: &mut Channel) -> Result<()> {
    let (before, rest) = Region::anonymous(9 * PAGE)?.split(5 * PAGE);
    let (hole, after) = rest.split(PAGE);
    let (address, done) = (hole.address(), before.bytes() as u64);
    drop(hole);
    let length = 9 * PAGE as u64;
    channel.run(ring::fill(before.address(), length, PATTERN))?.expect_invalid(
        "a write across an unmapped page",
        address,
        true,
        done,
    )?;
    verified::expect_filled("memory before an unmapped page", before.words(), PATTERN)?;
    verified::expect_filled("memory after an unmapped page", after.words(), 0)?;
    channel.run(ring::crc32c(before.address(), length))?.expect_invalid(
        "a read across an unmapped page",
        address,
        false,
        done,
    )?;
    expect_no_access(channel, address + 0x123)
}

fn no_access(channel: &mut Channel) -> Result<()> {
    let mut page = Region::anonymous(PAGE)?;
    page.words().scramble(1);
    let crc = page.words().crc();
    page.protect(Rights::None)?;
    expect_no_access(channel, page.address() + 8)?;
    page.protect(Rights::Write)?;
    verified::checksum(channel, page.words(), crc)
}

/// Checks that a read and a write at `address` both fault.
fn expect_no_access(channel: &mut Channel, address: u64) -> Result<()> {
    for (work, write) in [(ring::crc32c(address, 8), false), (ring::fill(address, 8, 0), true)] {
        let name = format!("an access to {address:#x}");
        channel.run(work)?.expect_invalid(&name, address, write, 0)?;
    }
    Ok(())
}
