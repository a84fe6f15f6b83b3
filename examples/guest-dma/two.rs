//! `two`: two accelerators in a shared I/O address space, then in separate ones.

use anyhow::{Result, bail};

use crate::accel::Wait;
use crate::memory::{Content, Memory, PAGE};
use crate::vfio::{Api, Protection, Space};
use crate::{open, ring, step};

const RING: u64 = 0x1_0000_0000;
const SECOND_RING: u64 = 0x1_0000_1000;
const SHARED: u64 = 0x40_0000_0000;
const PAGES: usize = 16;
const FIRST_PATTERN: u64 = 0x1111_1111_1111_1111;
const SECOND_PATTERN: u64 = 0x2222_2222_2222_2222;

pub fn run(api: Api, first: &str, second: &str, iova: u64) -> Result<()> {
    shared_space(api, first, second, iova)?;
    separate_spaces(api, first, second, iova)?;
    println!("both verified");
    Ok(())
}

/// Checks that mappings are added and removed for both.
fn shared_space(api: Api, first: &str, second: &str, iova: u64) -> Result<()> {
    let space = Space::new(api)?;
    let accelerators = [space.attach(first)?, space.attach(second)?];
    let mut first = space.channel(&accelerators[0], 0, RING, Wait::Interrupt)?;
    let mut second = space.channel(&accelerators[1], 0, SECOND_RING, Wait::Interrupt)?;
    let (shared, removed) = (Memory::pages(PAGES)?, Memory::pages(PAGES)?);
    let bytes = shared.bytes() as u64;
    space.map(SHARED, shared, Protection::ReadWrite)?;
    space.map(iova, removed, Protection::ReadWrite)?;

    removed.scramble(1);
    first.run(ring::copy(iova, SHARED, bytes))?.expect_success("COPY by the first", bytes)?;
    let completion = second.run(ring::crc32c(SHARED, bytes))?;
    completion.expect_success("CRC32C by the second", bytes)?;
    if completion.result != u64::from(removed.crc()) {
        bail!("CRC32C by the second: checksum of the first's data is incorrect");
    }
    step("shared address space: the second reads data that the first has written");

    space.unmap(iova, removed.bytes())?;
    for channel in [&mut first, &mut second] {
        let what = format!("{channel} after unmap");
        channel.run(ring::crc32c(iova, bytes))?.expect_fault(&what, iova, false, 0)?;
    }
    step(format!("after unmap, {iova:#x} faults for both"));
    Ok(())
}

/// Checks that a mapping in one space does not affect the other.
fn separate_spaces(api: Api, first: &str, second: &str, iova: u64) -> Result<()> {
    let (first_space, first) = open(api, first)?;
    let (second_space, second) = open(api, second)?;
    let (first_memory, second_memory) = (Memory::pages(PAGES)?, Memory::pages(PAGES)?);
    first_space.map(SHARED, first_memory, Protection::ReadWrite)?;
    second_space.map(SHARED, second_memory, Protection::ReadWrite)?;
    let mut first = first_space.channel(&first, 0, RING, Wait::Interrupt)?;
    let mut second = second_space.channel(&second, 0, RING, Wait::Interrupt)?;

    let bytes = first_memory.bytes() as u64;
    for (channel, pattern) in [(&mut first, FIRST_PATTERN), (&mut second, SECOND_PATTERN)] {
        let what = format!("{channel}: FILL");
        channel.run(ring::fill(SHARED, bytes, pattern))?.expect_success(&what, bytes)?;
    }
    if !first_memory.is_filled(FIRST_PATTERN) || !second_memory.is_filled(SECOND_PATTERN) {
        bail!("FILL: the memory of one accelerator has incorrect content");
    }
    step(format!("separate address spaces: {SHARED:#x} translates to different memory"));

    let page = PAGE as u64;
    first_space.map(iova, Memory::pages(1)?, Protection::ReadWrite)?;
    first.run(ring::crc32c(iova, page))?.expect_success("CRC32C by the first", page)?;
    let completion = second.run(ring::crc32c(iova, page))?;
    completion.expect_fault("CRC32C by the second", iova, false, 0)?;
    step(format!("mapped only for the first, {iova:#x} faults for the second"));
    Ok(())
}
