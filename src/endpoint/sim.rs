//! The way of an emulated endpoint's faults to the fault path.

use std::sync::Arc;

use crate::address::{EndpointId, Iova, Pasid};
use crate::host::Access;
use crate::host::dma::DmaCause;
use crate::iopf::{Fault, FaultReason, Iopf, PageRequest, QueueFull, Source};
use crate::sim::FaultReporter;

/// Where the faults of an emulated endpoint enter the fault path.
pub(super) struct SimFaults {
    endpoint: EndpointId,
    faults: Arc<Iopf>,
}

impl SimFaults {
    pub(super) fn new(endpoint: EndpointId, faults: Arc<Iopf>) -> Self {
        Self { endpoint, faults }
    }
}

impl FaultReporter for SimFaults {
    fn connect(&self, source: Arc<dyn Source>) {
        self.faults.set_source(self.endpoint, source);
    }

    fn request(&self, request: PageRequest) -> Result<(), QueueFull> {
        self.faults.report_page_request(self.endpoint, request)
    }

    fn withdraw(&self) {
        self.faults.withdraw(self.endpoint);
    }

    fn report(&self, pasid: Option<Pasid>, address: Iova, access: Access, cause: DmaCause) {
        report(&self.faults, self.endpoint, pasid, address, access, cause);
    }
}

/// Reports an access that an IOMMU has stopped for good.
pub(super) fn report(
    faults: &Iopf,
    endpoint: EndpointId,
    pasid: Option<Pasid>,
    address: Iova,
    access: Access,
    cause: DmaCause,
) {
    let reason = match cause {
        DmaCause::NoDomain => FaultReason::Domain,
        DmaCause::NotMapped => FaultReason::Mapping,
        DmaCause::NotMemory => return,
    };
    faults.report_fault(Fault { endpoint, pasid, address, access, reason });
}
