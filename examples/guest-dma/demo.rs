//! `demo`: what the IOMMU does, told to somebody who watches.

use crate::accel::Wait;
use crate::memory::Scattered;
use crate::vfio::{Api, group_of};
use crate::{Result, open, ring};

const RING: u64 = 0x1_0000_0000;
const SOURCE: u64 = 0x40_0000_0000;
const PAGES: usize = 1024;

pub fn run(api: Api, name: &str, iova: u64) -> Result<()> {
    let group = group_of(name)?;
    let (space, accelerator) = open(api, name)?;
    let mut channel = space.channel(&accelerator, 0, RING, Wait::Interrupt)?;
    println!("{name} is a DMA accelerator in IOMMU group {group}; this program drives it.");

    let source = Scattered::map(&space, SOURCE, PAGES)?;
    let target = Scattered::map(&space, iova, PAGES)?;
    let bytes = source.bytes() as u64;
    source.scramble(1);
    println!(
        "Mapped 2 x {PAGES} scattered pages: to the device they are {} MiB in one",
        bytes >> 20
    );
    println!("  piece at {SOURCE:#x}, and as much at {iova:#x}.");

    channel.run(ring::copy(SOURCE, iova, bytes))?.expect_success("COPY", bytes)?;
    println!("The accelerator has copied {bytes} bytes from one to the other.");
    let completion = channel.run(ring::crc32c(iova, bytes))?;
    completion.expect_success("CRC32C", bytes)?;
    let (device, processor) = (completion.result, target.crc());
    println!("Checksum of the copy: {device:#010x} says the accelerator,");
    println!("                      {processor:#010x} says the processor.");
    if device != u64::from(processor) || processor != source.crc() {
        return Err("the copy is not what was sent".into());
    }
    println!("VERIFIED: the copy is right.");

    target.unmap(&space)?;
    println!("Unmapped {iova:#x}. Now the accelerator is told to write there again:");
    source.scramble(2);
    let completion = channel.run(ring::copy(SOURCE, iova, bytes))?;
    completion.expect_fault("COPY after unmap", iova, true, 0)?;
    println!("  {completion}.");
    if target.crc() != processor {
        return Err("memory that was unmapped has been written".into());
    }
    println!("REFUSED: the memory is as it was.");
    Ok(())
}
