//! An accelerator whose page requests the kernel's mock device makes. For tests.
//!
//! The mock makes groups of one page. A group of the accelerator's becomes one for each of its
//! pages, and has its answer when they all have theirs.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::sim::report;
use crate::address::{EndpointId, Iova, Pasid};
use crate::host::Access;
use crate::host::dma::DmaCause;
use crate::host::iommufd::FaultQueue;
use crate::host::iommufd::mock::MockDevice;
use crate::iopf::{Iopf, PageRequest, QueueFull, Response, Source, SourceCookie};
use crate::sim::FaultReporter;

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
    accelerator: OnceLock<Arc<dyn Source>>,
    waiting: Mutex<BTreeMap<SourceCookie, Waiting>>,
}

struct Waiting {
    pasid: Option<Pasid>,
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
        device.tell(Box::new(move |name, success| listener.answered(SourceCookie(name), success)));
        Self { endpoint, device, queue, faults, groups }
    }
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<SourceCookie, Waiting>> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A page is about to be asked for.
    fn expect(&self, request: &PageRequest) {
        let mut waiting = self.lock();
        let group = waiting.entry(request.cookie).or_insert(Waiting {
            pasid: request.pasid,
            pages: 0,
            complete: false,
            success: true,
        });
        group.pages += 1;
        group.complete = request.last;
    }

    /// A page has its answer.
    fn answered(&self, cookie: SourceCookie, success: bool) {
        let mut waiting = self.lock();
        let Some(group) = waiting.get_mut(&cookie) else { return };
        group.pages -= 1;
        group.success &= success;
        if group.pages > 0 || !group.complete {
            return;
        }
        let Some(Waiting { pasid, success, .. }) = waiting.remove(&cookie) else { return };
        drop(waiting);
        let response = if success { Response::Success } else { Response::Invalid };
        if let Some(accelerator) = self.accelerator.get() {
            accelerator.respond(pasid, cookie, response);
        }
    }
}

impl FaultReporter for MockFaults {
    fn connect(&self, source: Arc<dyn Source>) {
        let _ = self.groups.accelerator.set(source);
    }

    /// The kernel always has room; what it reports is held back where it enters the fault path.
    fn request(&self, request: PageRequest) -> Result<(), QueueFull> {
        self.groups.expect(&request);
        let PageRequest { pasid, cookie, address, access, .. } = request;
        if !self.device.ask(cookie.0, pasid, address, access) {
            self.groups.answered(cookie, false);
        }
        Ok(())
    }

    fn withdraw(&self) {
        self.device.forget();
        self.groups.lock().clear();
        if let Err(error) = self.queue.refuse_all() {
            log::error!("endpoint {}: reset, but {error}", self.endpoint);
        }
        self.faults.withdraw(self.endpoint);
    }

    fn report(&self, pasid: Option<Pasid>, address: Iova, access: Access, cause: DmaCause) {
        report(&self.faults, self.endpoint, pasid, address, access, cause);
    }
}
