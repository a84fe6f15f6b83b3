//! What the host does with the guest's domains and endpoints.
//!
//! The device model ([`crate::viommu`]) keeps the books; a [`HostIommu`] makes them true for the
//! endpoints it serves. The [`software`] back end needs neither hardware nor privileges; that of
//! [`iommufd`] is for devices of the host, whose IOMMU translates. A daemon can have [`both`].

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::address::{DomainId, EndpointId, IovaRange, Pasid};

pub mod address_space;
pub mod both;
pub mod dma;
pub mod iommufd;
pub mod software;

pub use crate::address::Access;
pub use address_space::{AddressSpace, Mapping, SpaceError, Target};

/// What becomes of the accesses of an endpoint, or of one of its PASIDs.
#[derive(Clone)]
pub enum Translation {
    /// None is let through: attached to no domain.
    Blocked,
    /// Every address is a guest-physical address.
    Bypass,
    /// Through the mappings of a domain.
    Domain(DomainId, Arc<AddressSpace>),
}

/// Which kind of doorbell or memory a region that the guest must not map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Never mapped (VIRTIO_IOMMU_RESV_MEM_T_RESERVED).
    Reserved,
    /// Writes there are message-signalled interrupts (VIRTIO_IOMMU_RESV_MEM_T_MSI).
    Msi,
}

/// A range of I/O virtual addresses that the guest must not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// Its addresses.
    pub range: IovaRange,
    /// What it is.
    pub kind: ReservedKind,
}

/// A change that the host did not make; everything is as it was before.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The host has no memory, or the limit on pinned memory is reached.
    #[error("the host is out of memory or over a limit: {0}")]
    NoMemory(String),
    /// The host cannot map these addresses.
    #[error("not possible at these addresses: {0}")]
    Refused(String),
    /// The endpoint cannot do that.
    #[error("not supported by the endpoint: {0}")]
    Unsupported(String),
    /// Anything else.
    #[error("{0}")]
    Failed(String),
}

/// How the page requests of an endpoint are to be answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequests {
    /// The answer to a request with a PASID has to name it (PCI Express base specification,
    /// 7.8.10.3, PRG Response PASID Required).
    pub response_needs_pasid: bool,
}

/// A back end: makes domains, mappings and attachments true on the host.
///
/// The device model checks each request against its own books first and calls only for changes
/// that are consistent; when a call fails, the books stay as they were.
pub trait HostIommu: Send + Sync {
    /// A domain came into being. Its books come with [`route`](Self::route), which is enough for
    /// back ends that keep nothing of domains that nothing of theirs is attached to.
    fn create_domain(&self, _domain: DomainId) -> Result<(), HostError> {
        Ok(())
    }

    /// A domain to which nothing is attached any more went away, with its mappings.
    fn destroy_domain(&self, _domain: DomainId) {}

    /// Adds a mapping to a domain.
    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError>;

    /// Removes all mappings inside `range`; it cuts none. The mappings are still in `space`.
    /// When it returns, no access goes through them.
    fn unmap(
        &self,
        domain: DomainId,
        space: &AddressSpace,
        range: IovaRange,
    ) -> Result<(), HostError>;

    /// Addresses that cannot be mapped for an endpoint, beside those that the device model knows
    /// to be reserved.
    fn unmappable(&self, _endpoint: EndpointId) -> Vec<IovaRange> {
        Vec::new()
    }

    /// Guest memory is `memory` from now on: what mappings lead to changes with it.
    fn set_memory(&self, _memory: &GuestMemoryMmap) {}

    /// How many bits the PASIDs of an endpoint have, at most 20; 0 when it has none.
    fn pasid_bits(&self, endpoint: EndpointId) -> u8;

    /// Whether and how an endpoint makes page requests.
    fn page_requests(&self, endpoint: EndpointId) -> Option<PageRequests>;

    /// Sends the accesses of an endpoint (of one of its PASIDs) through `to`. When it returns,
    /// no access goes through the translation before.
    fn route(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        to: &Translation,
    ) -> Result<(), HostError>;
}
