//! Guest program that submits work to the accelerator and verifies the results on the CPU. With
//! vfio-pci, the program maps memory for the accelerator at IOVAs of its choice. With uio_pci_sva
//! (`sva`), the accelerator uses the address space of the process.
//!
//! ```text
//! main        command line, exit status
//! verify ...  one module for each command; sva has several
//! accel       driver of the accelerator
//! ring        descriptors and completion records
//! memory      DMA buffers, their content and checksums
//! place       virtual addresses of DMA buffers
//! vfio        I/O address spaces and devices, through groups or iommufd
//! uio         devices that share the address space of the process
//! sys         unsafe code
//! ```
//!
//! `scripts/guest/build-program` builds a static executable that runs in any guest.

mod accel;
mod crc32c;
mod demo;
mod endless;
mod fault;
mod memory;
mod place;
mod ring;
mod sva;
mod sys;
mod two;
mod uio;
mod unmap;
mod verify;
mod vfio;

use std::process::ExitCode;

use accelerator::regs;
use anyhow::{Result, anyhow, bail};
use clap::{Parser, Subcommand};

use crate::vfio::{Api, Space};

/// Test DMA of the emulated accelerator through the IOMMU.
///
/// A function is identified by its PCI address and must be bound to vfio-pci, or to uio_pci_sva
/// for "sva". The exit status is 0 if all checks pass.
#[derive(Parser)]
struct Args {
    /// VFIO interface [default: the newest that the kernel supports].
    #[arg(long, global = true)]
    api: Option<Api>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Verify COPY, CRC32C, FILL and COMPARE, with interrupts and by polling.
    Verify {
        /// PCI address of the accelerator.
        #[arg(value_parser = pci_name)]
        function: String,
        /// Number of pages of each buffer, a power of two, at least 8.
        #[arg(long, default_value_t = 1024, value_parser = verify::pages)]
        pages: usize,
    },
    /// Access an unmapped or read-only page and print the completion record.
    Fault(fault::Options),
    /// Verify accesses after mappings are removed and replaced.
    Unmap {
        /// PCI address of the accelerator.
        #[arg(value_parser = pci_name)]
        function: String,
        /// IOVA of the mapping, a multiple of the page size.
        #[arg(long, default_value = "0x5000000000", value_parser = address)]
        iova: u64,
    },
    /// Verify two accelerators in a shared address space, then in separate ones.
    Two {
        /// PCI address of the first accelerator.
        #[arg(value_parser = pci_name)]
        first: String,
        /// PCI address of the second accelerator.
        #[arg(value_parser = pci_name)]
        second: String,
        /// IOVA of the mapping that is removed.
        #[arg(long, default_value = "0x6000000000", value_parser = address)]
        iova: u64,
    },
    /// Copy and verify repeatedly with the same mappings until a file exists.
    Loop {
        /// PCI address of the accelerator.
        #[arg(value_parser = pci_name)]
        function: String,
        /// Stop when this file exists.
        #[arg(long, value_name = "FILE")]
        until_file: std::path::PathBuf,
        /// Write the number of completed rounds to this file.
        #[arg(long, value_name = "FILE")]
        progress: Option<std::path::PathBuf>,
    },
    /// Demonstrate a verified copy, then a fault after its mapping is removed.
    Demo {
        /// PCI address of the accelerator.
        #[arg(value_parser = pci_name)]
        function: String,
        /// IOVA of the mapping that is removed.
        #[arg(long, default_value = "0xcafe000000", value_parser = address)]
        iova: u64,
    },
    /// Share the address space of the process with the accelerator, through uio_pci_sva.
    Sva(sva::Options),
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("guest-dma: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<()> {
    let api = || args.api.map_or_else(Api::detect, Ok);
    match &args.command {
        Command::Verify { function, pages } => verify::run(api()?, function, *pages),
        Command::Fault(options) => fault::run(api()?, options),
        Command::Unmap { function, iova } => unmap::run(api()?, function, *iova),
        Command::Two { first, second, iova } => two::run(api()?, first, second, *iova),
        Command::Loop { function, until_file, progress } => {
            endless::run(api()?, function, until_file, progress.as_deref())
        }
        Command::Demo { function, iova } => demo::run(api()?, function, *iova),
        Command::Sva(options) => sva::run(options),
    }
}

/// Parses a PCI address, and returns the name of the function in sysfs and VFIO.
fn pci_name(text: &str) -> Result<String> {
    match text.matches(':').count() {
        1 => Ok(format!("0000:{text}")),
        2 => Ok(text.to_owned()),
        _ => bail!("must be a PCI address, BB:DD.F or SSSS:BB:DD.F, as in 00:02.0"),
    }
}

/// Opens a function in a new I/O address space.
fn open(api: Api, name: &str) -> Result<(Space, accel::Accelerator)> {
    let space = Space::new(api)?;
    let accelerator = space.attach(name)?;
    Ok((space, accelerator))
}

/// Parses a hexadecimal address, with or without 0x.
fn address(text: &str) -> Result<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
        .map_err(|error| anyhow!("must be a hexadecimal address: {error}"))
}

/// Prints a check that has passed.
fn step(text: impl std::fmt::Display) {
    println!("ok: {text}");
}
