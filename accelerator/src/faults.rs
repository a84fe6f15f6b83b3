//! Page requests and unrecoverable faults.

use crate::dma::{Access, DmaCause, Pasid};
use crate::engine::Engine;
use std::sync::Arc;

/// Page Request Group Index (PCI Express base specification, 10.4.1).
///
/// Unique among the outstanding groups of the function. It has 32 bits instead of 9, so that a
/// late response does not match a newer group.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PrgIndex(pub u32);

/// A page request (PCI Express base specification, 10.4.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// PASID of the access.
    pub pasid: Option<Pasid>,
    /// Group of the request.
    pub group: PrgIndex,
    /// I/O virtual address of the page's first byte; pages have
    /// [`REQUEST_PAGE_SIZE`](crate::regs::REQUEST_PAGE_SIZE) bytes.
    pub address: u64,
    /// Direction of the access that faulted.
    pub access: Access,
    /// Whether this is the last request of the group.
    pub last: bool,
}

/// Response to a page request group (PCI Express base specification, 10.4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The pages are accessible: the function repeats the access.
    Success,
    /// At least one page cannot be made accessible: the access fails.
    Invalid,
    /// The page request interface has failed: the function makes no more requests.
    Failure,
}

/// The handler's queue of page request groups is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the queue of page request groups is full")]
pub struct QueueFull;

/// Handler of the function's page requests and unrecoverable faults.
///
/// The accelerator calls all methods without its locks.
pub trait FaultHandler: Send + Sync {
    /// Receives the handle for page responses. Called once, before any other method.
    fn connect(&self, responder: Responder);

    /// Submits a page request. The requests of a group are submitted consecutively. Must not
    /// block. The handler may respond before this method returns.
    ///
    /// # Errors
    /// [`QueueFull`] for the first request of a group, which was not queued. The accelerator
    /// submits the group again after [`Responder::capacity_available`].
    fn request(&self, request: PageRequest) -> Result<(), QueueFull>;

    /// Cancels all page requests of the function: it was reset, and expects no responses.
    fn withdraw(&self);

    /// Reports an unrecoverable translation fault, once for each descriptor or completion record
    /// that it affects. `cause` is never [`DmaCause::NotMemory`]. The worker thread executes no
    /// descriptor until this method returns.
    fn report(&self, pasid: Option<Pasid>, address: u64, access: Access, cause: DmaCause);
}

/// Delivers page responses to the accelerator.
///
/// Its methods do not block and do not call the [`FaultHandler`].
#[derive(Clone)]
pub struct Responder(Arc<Engine>);

impl Responder {
    pub(crate) fn new(engine: Arc<Engine>) -> Self {
        Self(engine)
    }

    /// Completes a page request group. A response to a group that is not outstanding sets
    /// Unexpected Page Request Group Index (10.5.2.3) and has no other effect.
    pub fn respond(&self, pasid: Option<Pasid>, group: PrgIndex, response: Response) {
        self.0.respond(pasid, group, response);
    }

    /// Notifies the accelerator that the handler can queue groups again after [`QueueFull`].
    pub fn capacity_available(&self) {
        self.0.capacity_available();
    }
}
