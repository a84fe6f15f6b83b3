//! What a fault is.

use std::fmt;

use crate::address::{EndpointId, Iova, Pasid};
use crate::host::Access;

/// Why an access faulted (virtio 1.4, IOMMU device, fault reporting).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// The endpoint is attached to no domain (VIRTIO_IOMMU_FAULT_R_DOMAIN).
    Domain,
    /// No mapping allows the access (VIRTIO_IOMMU_FAULT_R_MAPPING).
    Mapping,
}

/// An access that did not take place, and whose endpoint has given it up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Whose access it was.
    pub endpoint: EndpointId,
    /// The address space it named, if not the endpoint's own.
    pub pasid: Option<Pasid>,
    /// The first byte that was not accessed.
    pub address: Iova,
    /// What it wanted to do.
    pub access: Access,
    /// Why it failed.
    pub reason: FaultReason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verb = if self.access.write { "write" } else { "read" };
        write!(f, "fault: endpoint {}", self.endpoint)?;
        if let Some(pasid) = self.pasid {
            write!(f, " PASID {pasid}")?;
        }
        write!(f, ", {verb} of {}, reason {:?}", self.address, self.reason)
    }
}
