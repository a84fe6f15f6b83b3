//! `unmap`: accesses fault after a mapping is removed, and reach the mapping that replaces it.

use anyhow::{Result, bail};

use crate::accel::Wait;
use crate::memory::{Content, Memory, PAGE, Scattered};
use crate::vfio::{Api, Protection};
use crate::{open, ring, step};

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
        bail!("COPY: the destination differs from the source");
    }
    step(format!("COPY of {bytes} bytes to {iova:#x}"));

    old.unmap(&space)?;
    let before = old.crc();
    source.scramble(2);
    let completion = channel.run(ring::copy(SOURCE, iova, bytes))?;
    completion.expect_fault("COPY after unmap", iova, true, 0)?;
    if old.crc() != before {
        bail!("the accelerator has written to unmapped memory");
    }
    step(format!("COPY after unmap: {completion}; the memory is unchanged"));

    let new = Memory::pages(PAGES)?;
    space.map(iova, new, Protection::ReadWrite)?;
    channel
        .run(ring::copy(SOURCE, iova, bytes))?
        .expect_success("COPY to the new mapping", bytes)?;
    if new.crc() != source.crc() || old.crc() != before {
        bail!("COPY to the new mapping: incorrect content of the new or the old memory");
    }
    step(format!("COPY to the new mapping at {iova:#x}"));

    // Each page has a separate mapping, so that a page in the middle can be removed.
    space.unmap(iova, new.bytes())?;
    let halves = Scattered::map(&space, iova, PAGES)?;
    let middle = (PAGES / 2 * PAGE) as u64;
    space.unmap(iova + middle, PAGE)?;
    let completion = channel.run(ring::copy(SOURCE, iova, bytes))?;
    completion.expect_fault("COPY over a hole", iova + middle, true, middle)?;
    if (0..middle as usize).any(|index| halves.byte(index) != source.byte(index)) {
        bail!("COPY over a hole: the bytes before the hole differ from the source");
    }
    step(format!("COPY over a hole: {completion}"));
    println!("unmapped");
    Ok(())
}
