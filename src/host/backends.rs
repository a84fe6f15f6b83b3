//! All back ends of one virtual IOMMU: emulated endpoints and host devices.

use vm_memory::GuestMemoryMmap;

use super::iommufd::Iommufd;
use super::software::Software;
use super::{EndpointCapabilities, HostError, HostIommu, Mapping, Translation};
use crate::address::{DomainId, EndpointId, IovaRange, Pasid};

/// The software back end and, if an endpoint requires it, the iommufd back end.
///
/// Calls about an endpoint go to the back end that serves it. A domain can have endpoints of both
/// back ends, so calls about a domain go to all of them.
pub struct Backends {
    /// Serves the emulated endpoints.
    pub software: Software,
    /// Serves the endpoints that are host devices.
    pub iommufd: Option<Iommufd>,
}

impl Backends {
    fn of_endpoint(&self, endpoint: EndpointId) -> &dyn HostIommu {
        match &self.iommufd {
            Some(iommufd) if iommufd.serves(endpoint) => iommufd,
            _ => &self.software,
        }
    }

    fn all(&self) -> impl Iterator<Item = &dyn HostIommu> {
        let iommufd = self.iommufd.iter().map(|iommufd| iommufd as &dyn HostIommu);
        std::iter::once(&self.software as &dyn HostIommu).chain(iommufd)
    }
}

impl HostIommu for Backends {
    fn capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        self.of_endpoint(endpoint).capabilities(endpoint)
    }

    // The software back end cannot fail, so a failure of the other one needs no rollback.
    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        self.all().try_for_each(|backend| backend.map(domain, mapping))
    }

    fn unmap(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        self.all().try_for_each(|backend| backend.unmap(domain, range))
    }

    fn set_translation(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        translation: &Translation,
    ) -> Result<(), HostError> {
        self.of_endpoint(endpoint).set_translation(endpoint, pasid, translation)
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) {
        self.all().for_each(|backend| backend.set_memory(memory));
    }
}
