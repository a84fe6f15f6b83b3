//! `two`: two accelerators share an address space, or do not.

use crate::accel::Wait;
use crate::memory::{Content, Memory, PAGE};
use crate::vfio::{Api, Protection, Space};
use crate::{Result, open, ring, step};

const RING: u64 = 0x1_0000_0000;
const SECOND_RING: u64 = 0x1_0000_1000;
const SHARED: u64 = 0x40_0000_0000;
const PAGES: usize = 16;
const FIRST_PATTERN: u64 = 0x1111_1111_1111_1111;
const SECOND_PATTERN: u64 = 0x2222_2222_2222_2222;

pub fn run(api: Api, first: &str, second: &str, iova: u64) -> Result<()> {
    together(api, first, second, iova)?;
    apart(api, first, second, iova)?;
    println!("both verified");
    Ok(())
}

/// In one space, what is mapped is mapped for both, and gone for both.
fn together(api: Api, first: &str, second: &str, iova: u64) -> Result<()> {
    let space = Space::new(api)?;
    let accelerators = [space.attach(first)?, space.attach(second)?];
    let mut first = space.channel(&accelerators[0], 0, RING, Wait::Interrupt)?;
    let mut second = space.channel(&accelerators[1], 0, SECOND_RING, Wait::Interrupt)?;
    let (shared, passing) = (Memory::pages(PAGES)?, Memory::pages(PAGES)?);
    let bytes = shared.bytes() as u64;
    space.map(SHARED, shared, Protection::ReadWrite)?;
    space.map(iova, passing, Protection::ReadWrite)?;

    passing.scramble(1);
    first.run(ring::copy(iova, SHARED, bytes))?.expect_success("the first's COPY", bytes)?;
    let completion = second.run(ring::crc32c(SHARED, bytes))?;
    completion.expect_success("the second's CRC32C", bytes)?;
    if completion.result != u64::from(passing.crc()) {
        return Err("the second does not see what the first has written".into());
    }
    step("one address space: the second reads what the first has written");

    space.unmap(iova, passing.bytes())?;
    for channel in [&mut first, &mut second] {
        let what = format!("{channel} after unmap");
        channel.run(ring::crc32c(iova, bytes))?.expect_fault(&what, iova, false, 0)?;
    }
    step(format!("unmapped once, {iova:#x} faults for both"));
    Ok(())
}

/// In spaces of their own, the same address is different memory, or none.
fn apart(api: Api, first: &str, second: &str, iova: u64) -> Result<()> {
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
        return Err("what one has written is not in its memory, or is in the other's".into());
    }
    step(format!("two address spaces: {SHARED:#x} is different memory for each"));

    let page = PAGE as u64;
    first_space.map(iova, Memory::pages(1)?, Protection::ReadWrite)?;
    first.run(ring::crc32c(iova, page))?.expect_success("the first's CRC32C", page)?;
    let completion = second.run(ring::crc32c(iova, page))?;
    completion.expect_fault("the second in the first's memory", iova, false, 0)?;
    step(format!("mapped for the first only, {iova:#x} faults for the second"));
    Ok(())
}
