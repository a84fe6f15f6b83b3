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

pub use dma::{Access, Dma, DmaCause, DmaError, Pasid};
pub use faults::{FaultHandler, PageRequest, PrgIndex, QueueFull, Responder, Response};
pub use memory::ClientMemory;
pub use server::{Accelerator, Config, ThreadRole};
