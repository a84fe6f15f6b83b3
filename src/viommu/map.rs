//! MAP and UNMAP.

use std::sync::Arc;

use super::status::RequestError;
use super::{Settings, Viommu, check_limit};
use crate::address::{Access, DomainId, Gpa, IovaRange};
use crate::host::{AddressSpace, Mapping};

impl Viommu {
    /// Adds a mapping (5.13.6.5).
    pub(super) fn map(
        &mut self,
        id: DomainId,
        virt: (u64, u64),
        phys_start: Gpa,
        access: Access,
    ) -> Result<(), RequestError> {
        let space = self.address_space(id)?;
        let mapping = Mapping { range: iova_range(virt)?, gpa: phys_start, access };
        check_mapping(&self.settings, &mapping)?;
        space.check_unmapped(mapping.range)?;
        check_limit("mappings", self.mappings, self.settings.limits.mappings)?;
        self.host.map(id, &mapping)?;
        space.insert(mapping);
        self.mappings += 1;
        Ok(())
    }

    /// Removes all mappings in a range (5.13.6.6).
    pub(super) fn unmap(&mut self, id: DomainId, virt: (u64, u64)) -> Result<(), RequestError> {
        let space = self.address_space(id)?;
        let range = iova_range(virt)?;
        space.check_no_split(range)?;
        self.host.unmap(id, range)?;
        self.mappings -= space.remove(range);
        Ok(())
    }

    fn address_space(&self, id: DomainId) -> Result<&Arc<AddressSpace>, RequestError> {
        let domain = self.domains.get(&id).ok_or(RequestError::NoDomain(id))?;
        domain.space().ok_or(RequestError::BypassDomain(id))
    }
}

fn iova_range((virt_start, virt_end): (u64, u64)) -> Result<IovaRange, RequestError> {
    IovaRange::new(virt_start, virt_end).ok_or(RequestError::InvertedRange { virt_start, virt_end })
}

/// Checks the addresses of a mapping (5.13.6.5.2).
fn check_mapping(settings: &Settings, mapping: &Mapping) -> Result<(), RequestError> {
    let &Mapping { range, gpa: Gpa(phys_start), .. } = mapping;
    let page_size = settings.page_size;
    if !range.is_aligned(page_size) || phys_start & (page_size - 1) != 0 {
        return Err(RequestError::Unaligned { range, page_size });
    }
    if !settings.input_range.covers(&range) || phys_start.checked_add(range.span()).is_none() {
        return Err(RequestError::OutOfRange(range));
    }
    if settings.reserved.iter().any(|region| region.range.overlaps(&range)) {
        return Err(RequestError::ReservedRegion(range));
    }
    Ok(())
}
