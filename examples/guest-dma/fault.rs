//! `fault`: one access that must cause an unrecoverable fault.

use anyhow::{Result, anyhow, bail};
use clap::{ArgGroup, Args};

use crate::accel::Wait;
use crate::memory::{Content, Memory, PAGE};
use crate::regs::Descriptor;
use crate::vfio::{Api, Protection};
use crate::{address, open, pci_name, ring, step};

const RING: u64 = 0x1_0000_0000;
const PATTERN: u64 = 0xaaaa_aaaa_aaaa_aaaa;

#[derive(Args)]
#[group(skip)]
#[command(group = ArgGroup::new("access").required(true))]
pub struct Options {
    /// PCI address of the accelerator.
    #[arg(value_parser = pci_name)]
    function: String,
    /// First address that must fault.
    #[arg(long, value_parser = address)]
    iova: u64,
    /// Read from the address.
    #[arg(long, group = "access")]
    read: bool,
    /// Write to the address.
    #[arg(long, group = "access")]
    write: bool,
    /// Map the page read-only: a read must succeed and a write must fault.
    #[arg(long, requires = "write")]
    read_only: bool,
    /// Start the access this number of bytes before the address, on a mapped page. The address
    /// must be a multiple of the page size.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    after: u64,
}

pub fn run(api: Api, options: &Options) -> Result<()> {
    options.check()?;
    let (space, accelerator) = open(api, &options.function)?;
    let mut channel = space.channel(&accelerator, 2, RING, Wait::Interrupt)?;
    let (before, read_only) = (Memory::pages(1)?, Memory::pages(1)?);
    if options.after > 0 {
        let address = options.page().wrapping_sub(PAGE as u64);
        space.map(address, before, Protection::ReadWrite)?;
    }
    if options.read_only {
        let (page, bytes) = (options.page(), PAGE as u64);
        space.map(page, read_only, Protection::ReadOnly)?;
        channel.run(ring::crc32c(page, bytes))?.expect_success("read", bytes)?;
        step(format!("the page at {page:#x} is readable"));
    }
    let completion = channel.run(options.work())?;
    completion.expect_fault("access", options.iova, options.write, options.after)?;
    check_read_only(read_only, options)?;
    check_before(before, options)?;
    println!("{completion}");
    Ok(())
}

impl Options {
    fn check(&self) -> Result<()> {
        if self.after == 0 || self.iova == self.page() && self.after <= PAGE as u64 {
            return Ok(());
        }
        Err(anyhow!(
            "--iova {:#x} --after {}: the address must be a multiple of {PAGE}, and the number of \
             bytes must not exceed {PAGE}, because only the preceding page is mapped",
            self.iova,
            self.after
        ))
    }

    fn page(&self) -> u64 {
        self.iova & !(PAGE as u64 - 1)
    }

    /// Returns an access that starts `after` bytes before the address and ends beyond it.
    fn work(&self) -> Descriptor {
        let (first, length) = (self.iova.wrapping_sub(self.after), self.after + 8);
        if self.write { ring::fill(first, length, PATTERN) } else { ring::crc32c(first, length) }
    }
}

fn check_read_only(page: Memory, options: &Options) -> Result<()> {
    if (0..PAGE).any(|index| page.byte(index) != 0) {
        bail!("the accelerator has written to the read-only page at {:#x}", options.page());
    }
    Ok(())
}

/// Checks that exactly the bytes before the fault are written.
fn check_before(page: Memory, options: &Options) -> Result<()> {
    let first = PAGE - options.after as usize;
    for index in 0..PAGE {
        let expected = if options.write && index >= first { PATTERN as u8 } else { 0 };
        if page.byte(index) != expected {
            bail!("byte {index:#x} of the page before the fault is incorrect");
        }
    }
    Ok(())
}
