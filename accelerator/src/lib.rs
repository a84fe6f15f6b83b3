//! An emulated PCI DMA accelerator with PASIDs and page requests, served over vfio-user.
//!
//! `docs/accelerator.md` specifies it for authors of drivers.
//!
//! ```text
//! server    listening socket and threads; serves clients sequentially
//! device    vfio-user messages -> configuration space, registers, memory, interrupts
//! engine    registers shared with the worker thread, which executes one slice at a time
//! exec      one slice: at most one descriptor fetch, one piece of data, one completion record
//! ```
//!
//! Every access to memory goes through [`Dma`] and stops at the first fault, which ends the
//! slice. If page requests are enabled, the descriptor continues later:
//!
//! ```text
//! exec      the slice ends with a stall: the pages that are missing
//! channel   keeps the stalled work until a group can be requested, then until its response
//! function  selects the next slice; pri has the registers and counts outstanding requests
//! engine    submits the requests without a lock; responses mark the channel and wake the worker
//! ```
//!
//! # Example
//!
//! ```no_run
//! use accelerator::{Accelerator, Access, ClientMemory, Config, Dma, DmaCause, DmaError};
//! use accelerator::{FaultHandler, PageRequest, Pasid, QueueFull, Responder};
//! use std::os::unix::net::UnixListener;
//! use std::sync::Arc;
//! use vm_memory::GuestMemoryMmap;
//!
//! /// An IOMMU without mappings.
//! struct Blocked;
//!
//! impl Dma for Blocked {
//!     fn read(&self, _: Option<Pasid>, address: u64, _: &mut [u8]) -> Result<(), DmaError> {
//!         Err(DmaError { address, done: 0, cause: DmaCause::NoDomain })
//!     }
//!
//!     fn write(&self, _: Option<Pasid>, address: u64, _: &[u8]) -> Result<(), DmaError> {
//!         Err(DmaError { address, done: 0, cause: DmaCause::NoDomain })
//!     }
//! }
//!
//! struct Log;
//!
//! impl FaultHandler for Log {
//!     fn connect(&self, _: Responder) {}
//!
//!     fn request(&self, _: PageRequest) -> Result<(), QueueFull> {
//!         Err(QueueFull)
//!     }
//!
//!     fn withdraw(&self) {}
//!
//!     fn report(&self, _: Option<Pasid>, address: u64, access: Access, cause: DmaCause) {
//!         println!("{access:?} of {address:#x}: {cause}");
//!     }
//! }
//!
//! let listener = UnixListener::bind("/run/accelerator.sock")?;
//! let config = Config {
//!     name: "accelerator".into(),
//!     thread_suffix: "0".into(),
//!     memory: ClientMemory::new(GuestMemoryMmap::new()),
//!     dma: Arc::new(Blocked),
//!     faults: Arc::new(Log),
//!     on_thread_start: |_| {},
//! };
//! let accelerator = Accelerator::start(listener, config)?;
//! # Ok::<(), std::io::Error>(())
//! ```

mod channel;
mod config;
mod device;
mod dma;
mod engine;
mod exec;
#[cfg(test)]
mod fake;
mod faults;
mod function;
mod memory;
mod msix;
mod pri;
pub mod regs;
mod server;
#[cfg(test)]
mod tests;
mod work;

pub use dma::{Access, Dma, DmaCause, DmaError, Pasid};
pub use faults::{FaultHandler, PageRequest, PrgIndex, QueueFull, Responder, Response};
pub use memory::ClientMemory;
pub use server::{Accelerator, Config, ThreadRole};
