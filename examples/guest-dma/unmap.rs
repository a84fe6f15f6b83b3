//! `unmap`: what is unmapped can no longer be reached, and what takes its place can.

use crate::accel::Wait;
use crate::memory::{Content, Memory, PAGE, Scattered};
use crate::vfio::{Api, Protection};
use crate::{Result, open, ring, step};

const RING: u64 = 0x1_0000_0000;
const SOURCE: u64 = 0x40_0000_0000;
const PAGES: usize = 16;

pub fn run(api: Api, name: &str, iova: u64) -> Result<()> {
    let (space, accelerator) = open(api, name)?;
    let mut channel = space.channel(&accelerator, 1, RING, Wait::Interrupt)?;
    let source = Scattered::map(&space, SOURCE, PAGES)?;
    let old = Scattered::map(&space, iova, PAGES)?;
    let bytes = source.bytes() as u64;

    source.scramble(1);
    channel.run(ring::copy(SOURCE, iova, bytes))?.expect_success("COPY", bytes)?;
    if old.crc() != source.crc() {
        return Err("COPY to the mapping has not arrived".into());
    }
    step(format!("COPY of {bytes} bytes to {iova:#x}"));

    old.unmap(&space)?;
    let before = old.crc();
    source.scramble(2);
    let completion = channel.run(ring::copy(SOURCE, iova, bytes))?;
    completion.expect_fault("COPY after unmap", iova, true, 0)?;
    if old.crc() != before {
        return Err("memory that was unmapped has been written".into());
    }
    step(format!("unmapped: {completion}, and the memory is as before"));

    let new = Memory::pages(PAGES)?;
    space.map(iova, new, Protection::ReadWrite)?;
    channel.run(ring::copy(SOURCE, iova, bytes))?.expect_success("COPY again", bytes)?;
    if new.crc() != source.crc() || old.crc() != before {
        return Err("COPY to the new mapping went elsewhere".into());
    }
    step(format!("COPY to other memory at {iova:#x}"));

    // One page in the middle, mapped alone, so that it can go alone.
    space.unmap(iova, new.bytes())?;
    let halves = Scattered::map(&space, iova, PAGES)?;
    let middle = (PAGES / 2 * PAGE) as u64;
    space.unmap(iova + middle, PAGE)?;
    let completion = channel.run(ring::copy(SOURCE, iova, bytes))?;
    completion.expect_fault("COPY over a hole", iova + middle, true, middle)?;
    if (0..middle as usize).any(|index| halves.byte(index) != source.byte(index)) {
        return Err("COPY over a hole has not done what lies before it".into());
    }
    step(format!("a hole in the middle: {completion}"));
    println!("unmapped");
    Ok(())
}
