//! `sva`: the accelerator works in this process's own address space. It is handed plain pointers,
//! to the ring too; nothing is pinned, and nothing is mapped for it. Where it meets a page that is
//! not there, it asks, and the guest's kernel answers as it would answer the processor.
//!
//! ```text
//! touch ...   one module for each scenario or two
//! verified    work that the processor checks
//! region      mappings that come and go      } unsafe
//! fork        child processes                } code
//! pages       what the kernel says of pages
//! ```

mod change;
mod demo;
mod file;
mod fork;
mod forking;
mod huge;
mod kill;
mod latency;
mod pages;
mod processes;
mod reclaim;
mod refuse;
mod region;
mod several;
mod stack;
mod stream;
mod touch;
mod verified;

use std::path::PathBuf;

use clap::{Args, Subcommand};
use vhost_user_iommu::cli::bdf::Bdf;

use crate::accel::{Accelerator, Access, Channel, Wait};
use crate::memory::Memory;
use crate::ring::{Area, Ring};
use crate::{Result, name, place, regs, uio};

#[derive(Args)]
pub struct Options {
    function: Bdf,
    /// Channel of the accelerator.
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u32).range(..regs::CHANNELS as i64))]
    channel: u32,
    /// Most pages of a page request group.
    #[arg(long, default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=i64::from(regs::MAX_GROUP_PAGES)))]
    group_pages: u32,
    /// Look at completion records instead of waiting for interrupts.
    #[arg(long)]
    poll: bool,
    /// Keep all memory that the accelerator is handed below this address (hexadecimal with 0x,
    /// else decimal), for accelerators that do not reach all of a process. Heap and stack stay
    /// where they are: "touch" leaves them out then, and "stack" fails.
    #[arg(long, value_name = "ADDRESS", value_parser = limit)]
    below: Option<u64>,
    #[command(subcommand)]
    scenario: Scenario,
}

#[derive(Subcommand)]
enum Scenario {
    /// Memory that nobody has touched: the heap, the stack, new mappings, records of the ring.
    Touch,
    /// Accesses that the process itself would die of.
    Refuse,
    /// Private and shared mappings of a file.
    File {
        /// Where to make the file.
        #[arg(long)]
        dir: PathBuf,
    },
    /// Huge pages: made by the device, split and put together again.
    Huge,
    /// Copy on write: a child with its snapshot, while the device goes on in the parent.
    Fork,
    /// Mappings that are removed, replaced and protected while the device works in them.
    Change,
    /// Pages that are swapped out while the device works on them.
    Swap,
    /// Pages that move while the device works on them.
    Migrate,
    /// The stack, where the process has not been yet.
    Stack,
    /// A lot of memory, a part at a time.
    Stream {
        /// MiB in all.
        #[arg(long, default_value_t = 1024)]
        total: usize,
        /// MiB that may be resident.
        #[arg(long, default_value_t = 64)]
        window: usize,
    },
    /// How long the device waits for a page, as the process sees it.
    Latency {
        /// Faults, one at a time.
        #[arg(long, default_value_t = 1000)]
        faults: usize,
    },
    /// Processes that are killed while the device works for them.
    Kill,
    /// Works until killed.
    Endless,
    /// Many processes, each with a channel of its own, from the first channel on.
    Processes {
        #[arg(long, default_value_t = regs::CHANNELS as u32)]
        count: u32,
    },
    /// One of these processes.
    Worker,
    /// Several accelerators at once in one address space.
    Several { others: Vec<Bdf> },
    /// A tour for people.
    Demo {
        /// MiB that the accelerator moves.
        #[arg(long, default_value_t = 64)]
        total: usize,
    },
}

/// An address in hexadecimal with 0x, else in decimal.
fn limit(text: &str) -> Result<u64> {
    match text.strip_prefix("0x") {
        Some(_) => crate::address(text),
        None => text.parse().map_err(|error| format!("'{text}' is no address: {error}")),
    }
}

pub fn run(options: &Options) -> Result<()> {
    options.below.map_or(Ok(()), place::keep_below)?;
    let verified = match &options.scenario {
        Scenario::Touch => with_channel(options, touch::run),
        Scenario::Refuse => with_channel(options, refuse::run),
        Scenario::File { dir } => with_channel(options, |channel| file::run(channel, dir)),
        Scenario::Huge => with_channel(options, huge::run),
        Scenario::Fork => with_channel(options, forking::run),
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

/// Runs what needs a single channel.
fn with_channel(
    options: &Options,
    scenario: impl FnOnce(&mut Channel) -> Result<String>,
) -> Result<String> {
    let shared = Shared::open(options.function)?;
    scenario(&mut shared.channel(options)?)
}

/// An accelerator that shares this process's address space.
struct Shared {
    accelerator: Accelerator,
    pasid: u32,
}

impl Shared {
    fn open(function: Bdf) -> Result<Self> {
        let (accelerator, pasid) = uio::open(&name(function))?;
        if !accelerator.has(regs::FEATURE_PASID | regs::FEATURE_PAGE_REQUEST) {
            return Err(format!("{function} knows no page requests"));
        }
        Ok(Self { accelerator, pasid })
    }

    fn channel(&self, options: &Options) -> Result<Channel<'_>> {
        let wait = if options.poll { Wait::Poll } else { Wait::SharedInterrupt };
        let access = Access::Process { pasid: self.pasid, group_pages: options.group_pages };
        let ring = Ring::new(own_page()?, own_page()?);
        Channel::new(&self.accelerator, options.channel, wait, access, ring)
    }
}

/// A page that the device sees where the process does.
fn own_page() -> Result<Area> {
    let words = Memory::pages(1)?.words();
    Ok(Area { words, address: words.as_ptr().addr() as u64 })
}
