//! `fault`: one access that the IOMMU must refuse.

use clap::{ArgGroup, Args};
use vhost_user_iommu::cli::bdf::Bdf;

use crate::accel::Wait;
use crate::memory::{Content, Memory, PAGE};
use crate::regs::Descriptor;
use crate::vfio::{Api, Protection};
use crate::{Result, address, name, open, ring, step};

const RING: u64 = 0x1_0000_0000;
const PATTERN: u64 = 0xaaaa_aaaa_aaaa_aaaa;

#[derive(Args)]
#[group(skip)]
#[command(group = ArgGroup::new("access").required(true))]
pub struct Options {
    function: Bdf,
    /// Address that is refused.
    #[arg(long, value_parser = address)]
    iova: u64,
    /// Read there.
    #[arg(long, group = "access")]
    read: bool,
    /// Write there.
    #[arg(long, group = "access")]
    write: bool,
    /// Map the page there, but only to be read: reads succeed, and writes fault.
    #[arg(long, requires = "write")]
    read_only: bool,
    /// Begin so many bytes before the address, on a page that is mapped. The address must then be
    /// the first of a page.
    #[arg(long, value_name = "BYTES", default_value_t = 0)]
    after: u64,
}

pub fn run(api: Api, options: &Options) -> Result<()> {
    options.check()?;
    let (space, accelerator) = open(api, &name(options.function))?;
    let mut channel = space.channel(&accelerator, 2, RING, Wait::Interrupt)?;
    let (before, read_only) = (Memory::pages(1)?, Memory::pages(1)?);
    if options.after > 0 {
        let address = options.page().wrapping_sub(PAGE as u64);
        space.map(address, before, Protection::ReadWrite)?;
    }
    if options.read_only {
        let (page, bytes) = (options.page(), PAGE as u64);
        space.map(page, read_only, Protection::ReadOnly)?;
        channel.run(ring::crc32c(page, bytes))?.expect_success("reading", bytes)?;
        step(format!("{page:#x} can be read"));
    }
    let completion = channel.run(options.work())?;
    completion.expect_fault("the access", options.iova, options.write, options.after)?;
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
        Err(format!(
            "--iova {:#x} --after {}: only the page before the one of the address is mapped, so \
             the address must begin a page, and {PAGE} is the limit",
            self.iova, self.after
        ))
    }

    fn page(&self) -> u64 {
        self.iova & !(PAGE as u64 - 1)
    }

    /// An access that reaches the address after what lies before it.
    fn work(&self) -> Descriptor {
        let (first, length) = (self.iova.wrapping_sub(self.after), self.after + 8);
        if self.write { ring::fill(first, length, PATTERN) } else { ring::crc32c(first, length) }
    }
}

fn check_read_only(page: Memory, options: &Options) -> Result<()> {
    if (0..PAGE).any(|index| page.byte(index) != 0) {
        return Err(format!("the page at {:#x} is read-only, and was written", options.page()));
    }
    Ok(())
}

/// What lies before the fault is done, and not a byte more or less.
fn check_before(page: Memory, options: &Options) -> Result<()> {
    let first = PAGE - options.after as usize;
    for index in 0..PAGE {
        let expected = if options.write && index >= first { PATTERN as u8 } else { 0 };
        if page.byte(index) != expected {
            return Err(format!("byte {index:#x} of the page before the fault is wrong"));
        }
    }
    Ok(())
}
