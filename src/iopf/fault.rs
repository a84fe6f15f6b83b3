//! Unrecoverable faults.

use std::fmt;

use crate::address::{Access, EndpointId, Iova, Pasid};

/// The reason of a fault (virtio 1.4, 5.13.6.8, fault reporting).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultReason {
    /// The endpoint is not attached to a domain (VIRTIO_IOMMU_FAULT_R_DOMAIN).
    Domain,
    /// No mapping allows the access (VIRTIO_IOMMU_FAULT_R_MAPPING).
    Mapping,
}

/// An unrecoverable fault: the access failed, and the endpoint does not retry it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// The endpoint that issued the access.
    pub endpoint: EndpointId,
    /// The PASID of the access, if it had one.
    pub pasid: Option<Pasid>,
    /// The address of the first byte that was not accessed.
    pub address: Iova,
    /// The type of the access.
    pub access: Access,
    /// Why the access failed.
    pub reason: FaultReason,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.access.write { "write to" } else { "read from" };
        write!(f, "fault of endpoint {}", self.endpoint)?;
        if let Some(pasid) = self.pasid {
            write!(f, ", PASID {pasid}")?;
        }
        write!(f, ": {access} {}, reason {:?}", self.address, self.reason)
    }
}

/// The outcome of reporting a [`Fault`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultOutcome {
    /// Counted only, by [`Handler::Direct`](super::Handler::Direct).
    Direct,
    /// Queued for the event queue.
    Queued,
    /// Dropped and counted, because the fault queue of the endpoint is full.
    Dropped,
}
