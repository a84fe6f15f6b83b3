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
//! page, and stopped at the first fault.

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
pub mod regs;
mod server;
#[cfg(test)]
mod tests;

use crate::address::{Iova, Pasid};
use crate::host::Access;
use crate::host::dma::DmaCause;

pub use server::Sim;

/// Takes the translation faults of an endpoint.
pub trait FaultReporter: Send + Sync {
    /// Called once for each descriptor or record that a fault stopped, never with
    /// [`DmaCause::NotMemory`]. Runs on the accelerator's worker thread, without locks of this
    /// module: it may take its time, but the endpoint's channels and its guest wait meanwhile.
    fn report(&self, pasid: Option<Pasid>, address: Iova, access: Access, cause: DmaCause);
}
