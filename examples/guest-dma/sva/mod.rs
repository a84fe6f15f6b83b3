//! `sva`: shared virtual addressing. The accelerator works in this process's address space: its
//! ring, records and buffers are plain pointers, and no memory is pinned or mapped for it. An access
//! to a page that is not present causes a page request, which the guest's kernel handles like a
//! page fault of the processor.
//!
//! ```text
//! touch ...   one module for each scenario or two
//! verified    work whose result the processor checks
//! region      mappings of the process        } unsafe
//! child       child processes                } code
//! procfs      page state and settings of the kernel
//! ```

mod change;
mod child;
mod demo;
mod file;
mod forbidden;
mod fork;
mod huge;
mod kill;
mod latency;
mod processes;
mod procfs;
mod reclaim;
mod region;
mod several;
mod stack;
mod stream;
mod touch;
mod verified;

use std::path::PathBuf;

use anyhow::{Result, anyhow, bail};
use clap::{Args, Subcommand};

use crate::accel::{Accelerator, Access, Channel, Wait};
use crate::memory::Memory;
use crate::ring::{Area, Ring};
use crate::{pci_name, place, regs, uio};

#[derive(Args)]
pub struct Options {
    /// PCI address of the accelerator.
    #[arg(value_parser = pci_name)]
    function: String,
    /// Channel of the accelerator.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..regs::CHANNELS as i64))]
    channel: u32,
    /// Maximum number of pages in a page request group.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(regs::MAX_GROUP_PAGES)))]
    group_pages: u32,
    /// Poll completion records instead of waiting for interrupts.
    #[arg(long)]
    poll: bool,
    /// Allocate all memory for the accelerator below this address (hexadecimal with 0x, else
    /// decimal), for accelerators that cannot address the whole process. The heap and the stack do
    /// not move: "touch" skips them if they are above the limit, and "stack" fails.
    #[arg(long, value_name = "ADDRESS", value_parser = parse_limit)]
    below: Option<u64>,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Access untouched memory: the heap, the stack, new mappings and the ring's records.
    Touch,
    /// Make accesses that would terminate the process if the processor made them.
    Forbidden,
    /// Access private and shared mappings of a file.
    File {
        /// Directory in which the file is created.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Access huge pages: allocated by the device, split and collapsed.
    Huge,
    /// Access copy-on-write pages: the device works in the parent, a child keeps its snapshot.
    Fork,
    /// Unmap, replace and protect mappings while the device accesses them.
    Change,
    /// Swap pages out while the device accesses them.
    Swap,
    /// Migrate pages while the device accesses them.
    Migrate,
    /// Access the stack, including pages that the process has not touched.
    Stack,
    /// Access a large amount of memory sequentially.
    Stream {
        /// Total size in MiB.
        #[arg(long, default_value_t = 1024)]
        total: usize,
        /// Maximum resident size in MiB.
        #[arg(long, default_value_t = 64)]
        window: usize,
    },
    /// Measure the duration of a fault of the device in the process.
    Latency {
        /// Number of faults, one at a time.
        #[arg(long, default_value_t = 1000)]
        faults: usize,
    },
    /// Kill processes while the device works for them.
    Kill,
    /// Work until killed.
    Endless,
    /// Run many processes, each with its own channel, starting with channel 0.
    Processes {
        /// Number of processes.
        #[arg(long, default_value_t = regs::CHANNELS as u32)]
        count: u32,
    },
    /// Run one of the processes of "processes".
    Worker,
    /// Run several accelerators concurrently in one address space.
    Several {
        /// PCI addresses of the other accelerators.
        #[arg(value_parser = pci_name)]
        others: Vec<String>,
    },
    /// Show shared virtual addressing step by step.
    Demo {
        /// MiB that the accelerator copies.
        #[arg(long, default_value_t = 64)]
        total: usize,
    },
}

/// Parses an address: hexadecimal with 0x, else decimal.
fn parse_limit(text: &str) -> Result<u64> {
    match text.strip_prefix("0x") {
        Some(_) => crate::address(text),
        None => text.parse().map_err(|error| anyhow!("invalid address '{text}': {error}")),
    }
}

pub fn run(options: &Options) -> Result<()> {
    options.below.map_or(Ok(()), place::keep_below)?;
    let verified = match &options.scenario {
        Scenario::Touch => with_channel(options, touch::run),
        Scenario::Forbidden => with_channel(options, forbidden::run),
        Scenario::File { dir } => with_channel(options, |channel| file::run(channel, dir)),
        Scenario::Huge => with_channel(options, huge::run),
        Scenario::Fork => with_channel(options, fork::run),
        Scenario::Change => with_channel(options, change::run),
        Scenario::Swap => with_channel(options, reclaim::swap),
        Scenario::Migrate => with_channel(options, reclaim::migrate),
        Scenario::Stack => with_channel(options, stack::run),
        Scenario::Stream { total, window } => {
            with_channel(options, |channel| stream::run(channel, total << 20, window << 20))
        }
        Scenario::Latency { faults } => {
            with_channel(options, |channel| latency::run(channel, *faults))
        }
        Scenario::Kill => kill::run(options),
        Scenario::Endless => with_channel(options, kill::endless),
        Scenario::Processes { count } => processes::run(options, *count),
        Scenario::Worker => processes::worker(options),
        Scenario::Several { others } => several::run(options, others),
        Scenario::Demo { total } => demo::run(options, total << 20),
    };
    println!("ok: {}", verified?);
    Ok(())
}

/// Runs a scenario that uses a single channel.
fn with_channel(
    options: &Options,
    scenario: impl FnOnce(&mut Channel) -> Result<String>,
) -> Result<String> {
    let bound = BoundAccelerator::open(&options.function)?;
    scenario(&mut bound.channel(options)?)
}

/// An accelerator that is bound to this process's address space, under a PASID.
struct BoundAccelerator {
    accelerator: Accelerator,
    pasid: u32,
}

impl BoundAccelerator {
    fn open(function: &str) -> Result<Self> {
        let (accelerator, pasid) = uio::open(function)?;
        if !accelerator.has(regs::FEATURE_PASID | regs::FEATURE_PAGE_REQUEST) {
            bail!("{function} does not support PASIDs and page requests");
        }
        Ok(Self { accelerator, pasid })
    }

    fn channel(&self, options: &Options) -> Result<Channel<'_>> {
        let wait = if options.poll { Wait::Poll } else { Wait::SharedInterrupt };
        let access = Access::Process { pasid: self.pasid, group_pages: options.group_pages };
        let ring = Ring::new(allocate_page()?, allocate_page()?);
        Channel::new(&self.accelerator, options.channel, wait, access, ring)
    }
}

/// Allocates a page that the device accesses at the process's address.
fn allocate_page() -> Result<Area> {
    let words = Memory::pages(1)?.words();
    Ok(Area { words, address: words.as_ptr().addr() as u64 })
}
