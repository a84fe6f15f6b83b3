//! The faults of an emulated accelerator, as a source of the fault path.

use std::sync::Arc;

use accelerator::{DmaCause, FaultHandler, PrgIndex, QueueFull, Responder};

use crate::address::{EndpointId, Iova, Pasid};
use crate::iopf::{self, Fault, FaultReason, Iopf, PageRequest, Response, Source, SourceCookie};

/// Forwards the faults of an accelerator to the fault path.
pub(super) struct SimFaults {
    endpoint: EndpointId,
    faults: Arc<Iopf>,
}

impl SimFaults {
    pub(super) fn new(endpoint: EndpointId, faults: Arc<Iopf>) -> Self {
        Self { endpoint, faults }
    }
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
        report(&self.faults, self.endpoint, pasid, address, access, cause);
    }
}

/// Reports an unrecoverable fault of an accelerator.
pub(super) fn report(
    faults: &Iopf,
    endpoint: EndpointId,
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
    let (pasid, address) = (pasid.map(Pasid::from), Iova(address));
    faults.report_fault(Fault { endpoint, pasid, address, access: access.into(), reason });
}

/// Delivers responses to an accelerator.
pub(super) struct SimSource(pub(super) Responder);

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
