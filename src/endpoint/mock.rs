//! An accelerator whose page requests the kernel's mock device makes. For tests.
//!
//! The mock makes groups of one page. A group of the accelerator's becomes one for each of its
//! pages, and has its answer when they all have theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use accelerator::{DmaCause, FaultHandler, PrgIndex, QueueFull, Responder, Response};

use super::sim::report;
use crate::address::EndpointId;
use crate::host::iommufd::FaultQueue;
use crate::host::iommufd::mock_device::MockDevice;
use crate::iopf::{Iopf, PageRequest, SourceCookie};

/// Where the faults of an accelerator on a mock device go.
pub(super) struct MockFaults {
    endpoint: EndpointId,
    device: Arc<MockDevice>,
    queue: Arc<FaultQueue>,
    faults: Arc<Iopf>,
    groups: Arc<Groups>,
}

/// The accelerator's groups that wait for their answers.
#[derive(Default)]
struct Groups {
    accelerator: OnceLock<Responder>,
    waiting: Mutex<BTreeMap<PrgIndex, Waiting>>,
}

struct Waiting {
    pasid: Option<accelerator::Pasid>,
    /// Pages without answer.
    pages: usize,
    /// All pages have been asked for.
    complete: bool,
    success: bool,
}

impl MockFaults {
    pub(super) fn new(
        endpoint: EndpointId,
        device: Arc<MockDevice>,
        queue: Arc<FaultQueue>,
        faults: Arc<Iopf>,
    ) -> Self {
        let groups = Arc::new(Groups::default());
        let listener = groups.clone();
        device.set_on_response(Box::new(move |name, success| {
            listener.answered(SourceCookie(name).into(), success)
        }));
        Self { endpoint, device, queue, faults, groups }
    }
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PrgIndex, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page is about to be asked for.
    fn expect(&self, request: &accelerator::PageRequest) {
        let mut waiting = self.lock();
        let group = waiting.entry(request.group).or_insert(Waiting {
            pasid: request.pasid,
            pages: 0,
            complete: false,
            success: true,
        });
        group.pages += 1;
        group.complete = request.last;
    }

    /// A page has its answer.
    fn answered(&self, index: PrgIndex, success: bool) {
        let mut waiting = self.lock();
        let Some(group) = waiting.get_mut(&index) else { return };
        group.pages -= 1;
        group.success &= success;
        if group.pages > 0 || !group.complete {
            return;
        }
        let Some(Waiting { pasid, success, .. }) = waiting.remove(&index) else { return };
        drop(waiting);
        let response = if success { Response::Success } else { Response::Invalid };
        if let Some(accelerator) = self.accelerator.get() {
            accelerator.respond(pasid, index, response);
        }
    }
}

impl FaultHandler for MockFaults {
    fn connect(&self, responder: Responder) {
        let _ = self.groups.accelerator.set(responder);
    }

    /// The kernel always has room; what it reports is held back where it enters the fault path.
    fn request(&self, request: accelerator::PageRequest) -> Result<(), QueueFull> {
        self.groups.expect(&request);
        let PageRequest { pasid, cookie, address, access, .. } = request.into();
        if !self.device.request_page(cookie.0, pasid, address, access) {
            self.groups.answered(request.group, false);
        }
        Ok(())
    }

    fn withdraw(&self) {
        self.device.reset();
        self.groups.lock().clear();
        if let Err(error) = self.queue.invalidate_all() {
            log::error!("endpoint {}: reset, but {error}", self.endpoint);
        }
        self.faults.withdraw(self.endpoint);
    }

    fn report(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        access: accelerator::Access,
        cause: DmaCause,
    ) {
        report(&self.faults, self.endpoint, pasid, address, access, cause);
    }
}
