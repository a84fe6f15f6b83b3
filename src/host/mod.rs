//! Back ends that apply the guest's domains and attachments to endpoints.
//!
//! The device model ([`crate::viommu`]) holds the state that the guest sees; a [`HostIommu`]
//! applies it to the endpoints that it serves. The [`software`] back end serves emulated endpoints
//! and requires neither hardware nor privileges. The [`iommufd`] back end serves devices behind
//! the host's IOMMU. [`backends`] combines the two.

use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::address::{DomainId, EndpointId, IovaRange, Pasid};

pub mod address_space;
pub mod backends;
pub mod dma;
mod error;
pub mod iommufd;
pub mod software;

pub use crate::address::Access;
pub use address_space::{AddressSpace, Mapping, MappingError, Target};
pub use error::{HostError, KernelError};

/// The translation of the DMA of an endpoint, or of one of its PASIDs.
#[derive(Clone)]
pub enum Translation {
    /// All accesses are blocked: no domain is attached.
    Blocked,
    /// Addresses are guest-physical addresses.
    Bypass,
    /// The mappings of a domain.
    Domain(DomainId, Arc<AddressSpace>),
}

/// The kind of a reserved region (virtio 1.4, 5.13.6.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReservedKind {
    /// Cannot be mapped (VIRTIO_IOMMU_RESV_MEM_T_RESERVED).
    Reserved,
    /// Writes to it are message-signaled interrupts (VIRTIO_IOMMU_RESV_MEM_T_MSI).
    Msi,
}

/// A range of I/O virtual addresses that the guest must not map.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedRegion {
    /// The addresses.
    pub range: IovaRange,
    /// The kind of the region.
    pub kind: ReservedKind,
}

/// The page request interface of an endpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequests {
    /// The response to a page request with a PASID has to name that PASID (PCI Express Base
    /// Specification, 7.8.10.3, PRG Response PASID Required).
    pub response_needs_pasid: bool,
}

/// The capabilities of an endpoint together with its IOMMU. They never change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointCapabilities {
    /// Width of the endpoint's PASIDs in bits, 0 (no PASIDs) to 20.
    pub pasid_bits: u8,
    /// Present if the endpoint can make page requests.
    pub page_requests: Option<PageRequests>,
    /// The I/O virtual addresses that can be mapped, in ascending order.
    pub iova_ranges: Vec<IovaRange>,
    /// Granularity of mappings in bytes, a power of two.
    pub page_granularity: u64,
}

impl Default for EndpointCapabilities {
    /// No optional capability, and no restriction on mappings.
    fn default() -> Self {
        Self {
            pasid_bits: 0,
            page_requests: None,
            iova_ranges: vec![IovaRange::ALL],
            page_granularity: 1,
        }
    }
}

impl EndpointCapabilities {
    /// Returns the I/O virtual addresses that cannot be mapped, in ascending order.
    pub fn unmappable_ranges(&self) -> Vec<IovaRange> {
        self.iova_ranges.iter().fold(vec![IovaRange::ALL], |gaps, range| {
            gaps.iter().flat_map(|gap| gap.without(range)).collect()
        })
    }
}

/// A back end: applies translations and mappings to the endpoints that it serves.
///
/// The device model validates each request against its own state first, so that calls are always
/// consistent. When a call fails, neither the device model nor the back end changes.
pub trait HostIommu: Send + Sync {
    /// Returns the capabilities of an endpoint, or the default ones if it serves no such endpoint.
    fn capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities;

    /// Adds a mapping to a domain. The domain's [`AddressSpace`] does not contain it yet.
    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError>;

    /// Removes all mappings of a domain in `range`, which splits none of them. The domain's
    /// [`AddressSpace`] still contains them. No access uses them after the call returns.
    fn unmap(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError>;

    /// Sets the translation of an endpoint, or of one of its PASIDs. No access uses the previous
    /// translation after the call returns.
    fn set_translation(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        translation: &Translation,
    ) -> Result<(), HostError>;

    /// Replaces guest memory. Mappings and bypass translate to `memory` from now on.
    fn set_memory(&self, _memory: &GuestMemoryMmap) {}
}
