//! An emulated accelerator, translated by the mock device of the kernel's iommufd selftest.
//!
//! The mock device makes the page requests. Its groups have one page: a group of the accelerator
//! becomes one group per page, and is complete when all of them are.

use std::any::Any;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use accelerator::{ClientMemory, DmaCause, FaultHandler, PrgIndex, QueueFull, Responder, Response};
use vm_memory::GuestMemoryMmap;

use super::sim::{Parts, SimFaults};
use super::{EndpointError, OpenEndpoint, RegisteredEndpoint, iommufd};
use crate::address::EndpointId;
use crate::host::backends::Backends;
use crate::host::iommufd::mock_device::MockDevice;
use crate::host::iommufd::{FaultQueue, FaultReader, SetupError};
use crate::iopf::{Iopf, PageRequest, SourceCookie};
use crate::socket::ListeningSocket;

/// An accelerator whose vfio-user socket is bound.
pub(super) struct MockEndpoint(pub(super) ListeningSocket);

impl OpenEndpoint for MockEndpoint {
    fn register(
        self: Box<Self>,
        id: EndpointId,
        host: &mut Backends,
    ) -> Result<Box<dyn RegisteredEndpoint>, EndpointError> {
        let iommufd = iommufd(host)?;
        let device = iommufd.add_mock(id)?;
        let queue = iommufd.fault_queue(id).ok_or(SetupError::NoMockPageRequests(id))?;
        let memory = ClientMemory::new(GuestMemoryMmap::new());
        let parts = Parts { id, socket: self.0, memory, dma: device.clone() };
        Ok(Box::new(RegisteredMock { parts, device, queue }))
    }
}

/// An accelerator whose mock device is bound to iommufd.
struct RegisteredMock {
    parts: Parts,
    device: Arc<MockDevice>,
    queue: Arc<FaultQueue>,
}

impl RegisteredEndpoint for RegisteredMock {
    fn start(self: Box<Self>, faults: &Arc<Iopf>) -> Result<Box<dyn Any>, EndpointError> {
        let Self { parts, device, queue } = *self;
        let reader = FaultReader::start(parts.id, queue.clone(), faults.clone())?;
        let faults = SimFaults { endpoint: parts.id, faults: faults.clone() };
        let faults = MockFaults::new(device, queue, faults);
        // The accelerator stops before the reader: tuples are dropped in order.
        Ok(Box::new((parts.start_accelerator(Arc::new(faults))?, reader)))
    }
}

/// Forwards the page requests of an accelerator to its mock device, and unrecoverable faults to
/// the fault path.
struct MockFaults {
    device: Arc<MockDevice>,
    queue: Arc<FaultQueue>,
    faults: SimFaults,
    groups: Arc<Groups>,
}

/// Outstanding groups of the accelerator.
#[derive(Default)]
struct Groups {
    accelerator: OnceLock<Responder>,
    outstanding: Mutex<BTreeMap<PrgIndex, Outstanding>>,
}

struct Outstanding {
    pasid: Option<accelerator::Pasid>,
    /// Number of pages without response.
    pages: usize,
    /// The last page has been requested.
    complete: bool,
    success: bool,
}

impl MockFaults {
    fn new(device: Arc<MockDevice>, queue: Arc<FaultQueue>, faults: SimFaults) -> Self {
        let groups = Arc::new(Groups::default());
        let listener = groups.clone();
        device.set_on_response(Box::new(move |cookie, success| {
            listener.respond(SourceCookie(cookie).into(), success)
        }));
        Self { device, queue, faults, groups }
    }
}

impl Groups {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<PrgIndex, Outstanding>> {
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a page request, before it is made.
    fn expect(&self, request: &accelerator::PageRequest) {
        let mut outstanding = self.lock();
        let group = outstanding.entry(request.group).or_insert(Outstanding {
            pasid: request.pasid,
            pages: 0,
            complete: false,
            success: true,
        });
        group.pages += 1;
        group.complete = request.last;
    }

    /// Applies the response to one page; completes the group after its last one.
    fn respond(&self, index: PrgIndex, success: bool) {
        let mut outstanding = self.lock();
        let Some(group) = outstanding.get_mut(&index) else { return };
        group.pages -= 1;
        group.success &= success;
        if group.pages > 0 || !group.complete {
            return;
        }
        let Some(Outstanding { pasid, success, .. }) = outstanding.remove(&index) else { return };
        drop(outstanding);
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

    /// Never fails: the kernel does not limit the requests, and the reader of the fault queue applies
    /// the limits of the fault path.
    fn request(&self, request: accelerator::PageRequest) -> Result<(), QueueFull> {
        self.groups.expect(&request);
        let PageRequest { pasid, cookie, address, access, .. } = request.into();
        if !self.device.request_page(cookie.0, pasid, address, access) {
            self.groups.respond(request.group, false);
        }
        Ok(())
    }

    fn withdraw(&self) {
        self.device.reset();
        self.groups.lock().clear();
        if let Err(error) = self.queue.invalidate_all() {
            log::error!(
                "endpoint {}: cannot complete page requests at reset: {error}",
                self.faults.endpoint
            );
        }
        self.faults.withdraw();
    }

    fn report(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        access: accelerator::Access,
        cause: DmaCause,
    ) {
        self.faults.report(pasid, address, access, cause);
    }
}
