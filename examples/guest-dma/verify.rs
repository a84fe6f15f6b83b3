//! `verify`: all operations on scattered memory, verified on the CPU.

use anyhow::{Result, anyhow, bail};

use crate::accel::{Accelerator, Wait};
use crate::memory::Scattered;
use crate::regs;
use crate::vfio::{Api, Space};
use crate::{open, ring, step};

const RING: u64 = 0x1_0000_0000;
const SECOND_RING: u64 = 0x1_0000_1000;
const SOURCE: u64 = 0x40_0000_0000;
// Outside the range of four-level page tables: no layer may truncate addresses.
const DESTINATION: u64 = 0x7fff_8000_0000_0000;

/// Size of one COPY in bytes, small enough for the ring to wrap several times.
const PIECE: usize = 64 << 10;

/// An unaligned range of the destination.
const HOLE: usize = 0x1235;
const HOLE_BYTES: usize = 0x2fff;
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

/// Parses the number of pages of a buffer.
pub fn pages(text: &str) -> Result<usize> {
    match text.parse::<usize>() {
        Ok(pages) if pages.is_power_of_two() && pages >= 8 => Ok(pages),
        _ => Err(anyhow!("must be a power of two that is at least 8")),
    }
}

pub fn run(api: Api, name: &str, pages: usize) -> Result<()> {
    let (space, accelerator) = open(api, name)?;
    step(format!("{name} is an accelerator (VFIO interface: {api:?})"));
    let source = Scattered::map(&space, SOURCE, pages)?;
    let destination = Scattered::map(&space, DESTINATION, pages)?;
    source.scramble(1);
    step(format!("{pages} pages mapped at {SOURCE:#x} and at {DESTINATION:#x}"));

    let check = Check { space, accelerator, source, destination };
    check.copy()?;
    check.checksum()?;
    check.fill()?;
    check.compare()?;
    println!("verified {} bytes", check.source.bytes());
    Ok(())
}

struct Check {
    accelerator: Accelerator,
    space: Space,
    source: Scattered,
    destination: Scattered,
}

impl Check {
    fn copy(&self) -> Result<()> {
        let mut channel = self.space.channel(&self.accelerator, 0, RING, Wait::Interrupt)?;
        let bytes = self.source.bytes();
        let length = PIECE.min(bytes);
        let work: Vec<_> = (0..bytes as u64)
            .step_by(length)
            .map(|offset| ring::copy(SOURCE + offset, DESTINATION + offset, length as u64))
            .collect();
        for (index, completion) in channel.run_all(&work)?.iter().enumerate() {
            completion.expect_success(&format!("COPY {index}"), length as u64)?;
        }
        let (expected, found) = (self.source.crc(), self.destination.crc());
        if found != expected {
            bail!("COPY: expected CRC-32C {expected:#010x}, got {found:#010x}");
        }
        step(format!("COPY of {bytes} bytes in {} descriptors, by interrupt", work.len()));
        Ok(())
    }

    fn checksum(&self) -> Result<()> {
        // `copy` uses another channel, vector and kind of completion.
        let mut channel = self.space.channel(&self.accelerator, 5, SECOND_RING, Wait::Poll)?;
        let bytes = self.destination.bytes() as u64;
        let completion = channel.run(ring::crc32c(DESTINATION, bytes))?;
        completion.expect_success("CRC32C", bytes)?;
        let expected = u64::from(self.source.crc());
        if completion.result != expected {
            bail!("CRC32C: expected {expected:#x}, got {:#x}", completion.result);
        }
        step(format!("CRC32C of the copy is {expected:#010x}, by polling"));
        self.space.unmap(SECOND_RING, crate::memory::PAGE)
    }

    fn fill(&self) -> Result<()> {
        let mut channel = self.space.channel(&self.accelerator, 5, SECOND_RING, Wait::Interrupt)?;
        let work = ring::fill(DESTINATION + HOLE as u64, HOLE_BYTES as u64, PATTERN);
        channel.run(work)?.expect_success("FILL", HOLE_BYTES as u64)?;
        for index in 0..self.destination.bytes() {
            let expected = match index.checked_sub(HOLE) {
                Some(offset) if offset < HOLE_BYTES => PATTERN.to_le_bytes()[offset % 8],
                _ => self.source.byte(index),
            };
            let found = self.destination.byte(index);
            if found != expected {
                bail!("FILL: byte {index:#x}: expected {expected:#x}, got {found:#x}");
            }
        }
        step(format!("FILL writes exactly {HOLE_BYTES} bytes at offset {HOLE:#x}"));
        self.space.unmap(SECOND_RING, crate::memory::PAGE)
    }

    fn compare(&self) -> Result<()> {
        let mut channel = self.space.channel(&self.accelerator, 7, SECOND_RING, Wait::Interrupt)?;
        let bytes = self.source.bytes() as u64;
        let completion = channel.run(ring::compare(SOURCE, DESTINATION, bytes))?;
        let found = (completion.status, completion.result);
        if found != (regs::STATUS_MISMATCH, HOLE as u64) {
            bail!("COMPARE: expected MISMATCH at {HOLE:#x}, got {completion}");
        }
        channel
            .run(ring::compare(SOURCE, DESTINATION, HOLE as u64))?
            .expect_success("COMPARE of equal buffers", HOLE as u64)?;
        step(format!("COMPARE finds the first difference at offset {HOLE:#x}"));
        Ok(())
    }
}
