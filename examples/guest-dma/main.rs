//! A program for guests: gives work to the accelerator, and checks with the processor what became
//! of it. Through vfio-pci, memory is mapped for the accelerator at addresses of the program's
//! choice; through uio_pci_sva (`sva`), the accelerator has the program's own address space.
//!
//! ```text
//! main        command line, exit status
//! verify ...  one module for each command; sva has several
//! accel       the accelerator's driver
//! ring        descriptors and completion records
//! memory      buffers, their content and checksums
//! place       where memory lies
//! vfio        address spaces and devices, by either interface of VFIO
//! uio         devices in this process's address space
//! sys         unsafe code
//! ```
//!
//! `scripts/guest/build-program` makes it a static program that runs in any guest.

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
use clap::{Parser, Subcommand};
use vhost_user_iommu::cli::bdf::Bdf;

use crate::vfio::{Api, Space};

/// Errors are sentences for the one who runs the program.
type Result<T> = std::result::Result<T, String>;

/// Has accelerators access memory behind the IOMMU, and checks what they did.
///
/// Functions are given by their PCI address and must be bound to vfio-pci, or to uio_pci_sva for
/// "sva". The exit status is 0
/// if everything was as it should be.
#[derive(Parser)]
struct Args {
    /// VFIO's interface; by default the newest that the kernel has.
    #[arg(long, global = true)]
    api: Option<Api>,
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Copy, checksum, fill and compare, with interrupts and by polling.
    Verify {
        function: Bdf,
        /// Pages of each buffer, a power of two.
        #[arg(long, default_value_t = 1024, value_parser = verify::pages)]
        pages: usize,
    },
    /// Access what is not mapped (or only to be read) and show what the accelerator is told.
    Fault(fault::Options),
    /// Remove and replace mappings between accesses.
    Unmap {
        function: Bdf,
        /// Address of the mapping, a multiple of the page size.
        #[arg(long, default_value = "0x5000000000", value_parser = address)]
        iova: u64,
    },
    /// Two accelerators in one address space, then each in its own.
    Two {
        first: Bdf,
        second: Bdf,
        /// Address that faults in the end.
        #[arg(long, default_value = "0x6000000000", value_parser = address)]
        iova: u64,
    },
    /// Go on copying and checking with mappings made once, until a file exists.
    Loop {
        function: Bdf,
        #[arg(long, value_name = "FILE")]
        until_file: std::path::PathBuf,
        /// File that says how many rounds are done.
        #[arg(long, value_name = "FILE")]
        progress: Option<std::path::PathBuf>,
    },
    /// A tour for people: data moved and verified, then a mapping removed and a fault.
    Demo {
        function: Bdf,
        /// Address of the mapping that is removed.
        #[arg(long, default_value = "0xcafe000000", value_parser = address)]
        iova: u64,
    },
    /// Work in this process's own address space, through uio_pci_sva instead of vfio-pci.
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
        Command::Verify { function, pages } => verify::run(api()?, &name(*function), *pages),
        Command::Fault(options) => fault::run(api()?, options),
        Command::Unmap { function, iova } => unmap::run(api()?, &name(*function), *iova),
        Command::Two { first, second, iova } => {
            two::run(api()?, &name(*first), &name(*second), *iova)
        }
        Command::Loop { function, until_file, progress } => {
            endless::run(api()?, &name(*function), until_file, progress.as_deref())
        }
        Command::Demo { function, iova } => demo::run(api()?, &name(*function), *iova),
        Command::Sva(options) => sva::run(options),
    }
}

/// A function's name as sysfs and VFIO know it.
fn name(function: Bdf) -> String {
    function.to_string()
}

/// Opens a function in a space of its own.
fn open(api: Api, name: &str) -> Result<(Space, accel::Accelerator)> {
    let space = Space::new(api)?;
    let accelerator = space.attach(name)?;
    Ok((space, accelerator))
}

/// An address in hexadecimal, with or without 0x.
fn address(text: &str) -> Result<u64> {
    u64::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16)
        .map_err(|error| format!("'{text}' is no hexadecimal address: {error}"))
}

/// Says that something was as it should be.
fn step(text: impl std::fmt::Display) {
    println!("ok: {text}");
}
