//! `demo`: shows translated DMA and a fault, for a spectator.

use anyhow::{Result, bail};

use crate::accel::Wait;
use crate::memory::Scattered;
use crate::vfio::{Api, group_of};
use crate::{open, ring};

const RING: u64 = 0x1_0000_0000;
const SOURCE: u64 = 0x40_0000_0000;
const PAGES: usize = 1024;

pub fn run(api: Api, name: &str, iova: u64) -> Result<()> {
    let group = group_of(name)?;
    let (space, accelerator) = open(api, name)?;
    let mut channel = space.channel(&accelerator, 0, RING, Wait::Interrupt)?;
    println!("{name} is a DMA accelerator in IOMMU group {group}.");

    let source = Scattered::map(&space, SOURCE, PAGES)?;
    let target = Scattered::map(&space, iova, PAGES)?;
    let bytes = source.bytes() as u64;
    source.scramble(1);
    println!("Mapped 2 x {PAGES} scattered pages: for the device they are two contiguous");
    println!("  buffers of {} MiB, at {SOURCE:#x} and {iova:#x}.", bytes >> 20);

    channel.run(ring::copy(SOURCE, iova, bytes))?.expect_success("COPY", bytes)?;
    println!("The accelerator has copied {bytes} bytes from the first to the second.");
    let completion = channel.run(ring::crc32c(iova, bytes))?;
    completion.expect_success("CRC32C", bytes)?;
    let (device, processor) = (completion.result, target.crc());
    println!("Checksum of the copy: {device:#010x} (accelerator)");
    println!("                      {processor:#010x} (CPU)");
    if device != u64::from(processor) || processor != source.crc() {
        bail!("the copy differs from the source");
    }
    println!("VERIFIED: the copy is correct.");

    target.unmap(&space)?;
    println!("Unmapped {iova:#x}. The accelerator writes to this address again:");
    source.scramble(2);
    let completion = channel.run(ring::copy(SOURCE, iova, bytes))?;
    completion.expect_fault("COPY after unmap", iova, true, 0)?;
    println!("  {completion}.");
    if target.crc() != processor {
        bail!("the accelerator has written to unmapped memory");
    }
    println!("REJECTED: the memory is unchanged.");
    Ok(())
}
