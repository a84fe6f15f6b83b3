//! Emulated endpoints and those of the host, behind one virtual IOMMU.

use vm_memory::GuestMemoryMmap;

use super::iommufd::Iommufd;
use super::software::Software;
use super::{AddressSpace, HostError, HostIommu, Mapping, PageRequests, Translation};
use crate::address::{DomainId, EndpointId, IovaRange, Pasid};

/// The software back end, and iommufd where an endpoint needs it. Domains can have endpoints of
/// both, and come to each with the endpoints: neither has to hear of domains as such.
pub struct Both {
    /// Has the emulated endpoints. It keeps nothing of domains that could differ from the books.
    pub software: Software,
    /// Has the others.
    pub iommufd: Option<Iommufd>,
}

impl Both {
    /// Who has an endpoint.
    fn of(&self, endpoint: EndpointId) -> &dyn HostIommu {
        match &self.iommufd {
            Some(iommufd) if iommufd.abilities(endpoint).is_some() => iommufd,
            _ => &self.software,
        }
    }
}

impl HostIommu for Both {
    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        self.iommufd.as_ref().map_or(Ok(()), |iommufd| iommufd.map(domain, mapping))
    }

    fn unmap(
        &self,
        domain: DomainId,
        space: &AddressSpace,
        range: IovaRange,
    ) -> Result<(), HostError> {
        self.iommufd.as_ref().map_or(Ok(()), |iommufd| iommufd.unmap(domain, space, range))
    }

    fn unmappable(&self, endpoint: EndpointId) -> Vec<IovaRange> {
        self.of(endpoint).unmappable(endpoint)
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) {
        if let Some(iommufd) = &self.iommufd {
            iommufd.set_memory(memory);
        }
    }

    fn pasid_bits(&self, endpoint: EndpointId) -> u8 {
        self.of(endpoint).pasid_bits(endpoint)
    }

    fn page_requests(&self, endpoint: EndpointId) -> Option<PageRequests> {
        self.of(endpoint).page_requests(endpoint)
    }

    fn route(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        to: &Translation,
    ) -> Result<(), HostError> {
        self.of(endpoint).route(endpoint, pasid, to)
    }
}
