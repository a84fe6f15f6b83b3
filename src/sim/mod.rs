//! The `sim` endpoint: an emulated DMA accelerator, shown to the guest as a PCI function over
//! vfio-user. `docs/accelerator.md` describes it to those who write drivers for it.
//!
//! ```text
//! server    socket, one client after the other
//! device    vfio-user messages -> configuration space, registers, memory, interrupts
//! engine    registers shared with the worker thread, which runs one turn after the other
//! exec      one turn: at most one descriptor read, one piece of data, one completion record
//! ```
//!
//! Every access of the worker goes through [`Dma`](crate::host::dma::Dma): translated page by
//! page, and stopped at the first fault. A fault ends a turn; where page requests are enabled, it
//! does not end the work:
//!
//! ```text
//! exec      the turn ends: stalled, with the pages it misses
//! channel   keeps the work and what it waits for: room to ask, or an answer
//! function  hands out turns; pri has the registers, counts what is outstanding, gives out room
//! engine    makes the requests, without lock; answers only mark the channel and wake the worker
//! ```

mod channel;
mod config;
mod device;
mod engine;
mod exec;
#[cfg(test)]
mod fake;
mod function;
mod memory;
mod msix;
mod pri;
pub mod regs;
mod server;
#[cfg(test)]
mod tests;

use crate::address::{Iova, Pasid};
use crate::host::Access;
use crate::host::dma::DmaCause;
use crate::iopf::{PageRequest, QueueFull, Source};
use std::sync::Arc;

pub use server::Sim;

/// Takes the translation faults of an endpoint.
///
/// No method is called with locks of this module held.
pub trait FaultReporter: Send + Sync {
    /// Says where answers to page requests go. Called once, before anything else.
    fn connect(&self, source: Arc<dyn Source>);

    /// Makes a page request. The requests of a group follow each other; only the first of them
    /// can find no room. Never blocks. The answer can come before this returns.
    fn request(&self, request: PageRequest) -> Result<(), QueueFull>;

    /// The function was reset: it has forgotten all its page requests, complete or not.
    fn withdraw(&self);

    /// Called once for each descriptor or record that a fault stopped, never with
    /// [`DmaCause::NotMemory`]. Runs on the accelerator's worker thread: it may take its time, but
    /// the endpoint's channels and its guest wait meanwhile.
    fn report(&self, pasid: Option<Pasid>, address: Iova, access: Access, cause: DmaCause);
}
