//! An emulated accelerator, translated by the software back end.

use std::any::Any;
use std::io;
use std::sync::Arc;

use accelerator::{
    Accelerator, ClientMemory, Config, Dma, DmaCause, FaultHandler, PrgIndex, QueueFull, Responder,
    ThreadRole,
};
use vm_memory::GuestMemoryMmap;

use super::{EndpointError, OpenEndpoint, RegisteredEndpoint};
use crate::address::{EndpointId, Iova, Pasid};
use crate::host::backends::Backends;
use crate::iopf::{self, Fault, FaultReason, Iopf, PageRequest, Response, Source, SourceCookie};
use crate::sandbox::{Role, enter_role};
use crate::socket::ListeningSocket;

/// An accelerator whose vfio-user socket is bound.
pub(super) struct SimEndpoint(pub(super) ListeningSocket);

/// An accelerator that is registered with a back end.
pub(super) struct Parts {
    pub(super) id: EndpointId,
    pub(super) socket: ListeningSocket,
    pub(super) memory: ClientMemory,
    pub(super) dma: Arc<dyn Dma>,
}

impl OpenEndpoint for SimEndpoint {
    fn register(
        self: Box<Self>,
        id: EndpointId,
        host: &mut Backends,
    ) -> Result<Box<dyn RegisteredEndpoint>, EndpointError> {
        let memory = ClientMemory::new(GuestMemoryMmap::new());
        let dma = host.software.add_endpoint(id, memory.clone());
        Ok(Box::new(Parts { id, socket: self.0, memory, dma }))
    }
}

impl RegisteredEndpoint for Parts {
    fn start(self: Box<Self>, faults: &Arc<Iopf>) -> Result<Box<dyn Any>, EndpointError> {
        let faults = SimFaults { endpoint: self.id, faults: faults.clone() };
        Ok(Box::new(self.start_accelerator(Arc::new(faults))?))
    }
}

impl Parts {
    /// Starts the accelerator. Returns it with its socket, whose file must be removed after the
    /// accelerator has stopped.
    pub(super) fn start_accelerator(
        self,
        faults: Arc<dyn FaultHandler>,
    ) -> io::Result<(Accelerator, ListeningSocket)> {
        let config = Config {
            name: format!("endpoint {}", self.id),
            thread_suffix: format!("{:x}", self.id.0),
            memory: self.memory,
            dma: self.dma,
            faults,
            on_thread_start: |role| match role {
                ThreadRole::Worker => enter_role(Role::Accelerator),
                ThreadRole::Server => enter_role(Role::VfioUser),
            },
        };
        let listener = self.socket.listener().try_clone()?;
        Ok((Accelerator::start(listener, config)?, self.socket))
    }
}

/// Forwards the faults of an accelerator to the fault path.
pub(super) struct SimFaults {
    pub(super) endpoint: EndpointId,
    pub(super) faults: Arc<Iopf>,
}

impl FaultHandler for SimFaults {
    fn connect(&self, responder: Responder) {
        self.faults.set_source(self.endpoint, Arc::new(SimSource(responder)));
    }

    fn request(&self, request: accelerator::PageRequest) -> Result<(), QueueFull> {
        self.faults
            .report_page_request(self.endpoint, request.into())
            .map_err(|iopf::QueueFull| QueueFull)
    }

    fn withdraw(&self) {
        self.faults.withdraw(self.endpoint);
    }

    fn report(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        access: accelerator::Access,
        cause: DmaCause,
    ) {
        let reason = match cause {
            DmaCause::NoDomain => FaultReason::Domain,
            DmaCause::NotMapped => FaultReason::Mapping,
            DmaCause::NotMemory => return,
        };
        self.faults.report_fault(Fault {
            endpoint: self.endpoint,
            pasid: pasid.map(Pasid::from),
            address: Iova(address),
            access: access.into(),
            reason,
        });
    }
}

/// Delivers responses to an accelerator.
struct SimSource(Responder);

impl Source for SimSource {
    fn respond(&self, pasid: Option<Pasid>, cookie: SourceCookie, response: Response) {
        let response = match response {
            Response::Success => accelerator::Response::Success,
            Response::Invalid => accelerator::Response::Invalid,
            Response::Failure => accelerator::Response::Failure,
        };
        self.0.respond(pasid.map(Into::into), cookie.into(), response);
    }

    fn capacity_available(&self) {
        self.0.capacity_available();
    }
}

// The only conversions between the accelerator's and the fault path's group identifiers.

impl From<PrgIndex> for SourceCookie {
    fn from(index: PrgIndex) -> Self {
        Self(index.0)
    }
}

impl From<SourceCookie> for PrgIndex {
    fn from(cookie: SourceCookie) -> Self {
        Self(cookie.0)
    }
}

impl From<accelerator::PageRequest> for PageRequest {
    fn from(request: accelerator::PageRequest) -> Self {
        let accelerator::PageRequest { pasid, group, address, access, last } = request;
        Self {
            pasid: pasid.map(Pasid::from),
            cookie: group.into(),
            address: Iova(address),
            access: access.into(),
            exec: false,
            privileged: false,
            last,
        }
    }
}
