//! The back end for emulated endpoints, which translates in software.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use accelerator::{ClientMemory, Dma, DmaCause, DmaError};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion,
};

use super::dma::in_pieces;
use super::{
    Access, EndpointCapabilities, HostError, HostIommu, Mapping, PageRequests, ReservedRegion,
    Target, Translation,
};
use crate::address::{DomainId, EndpointId, Gpa, Iova, IovaRange, Pasid};

/// Width of the PASIDs of emulated endpoints (PCI Express Base Specification, 7.8.9).
const PASID_BITS: u8 = 20;

/// The IOMMU of one emulated endpoint, which its DMA passes through.
pub struct Port {
    memory: ClientMemory,
    translations: RwLock<Translations>,
    reserved: Arc<[ReservedRegion]>,
}

/// The translations of an endpoint. PASIDs that are not here are blocked.
struct Translations {
    without_pasid: Translation,
    by_pasid: BTreeMap<Pasid, Translation>,
}

impl Translations {
    fn of(&self, pasid: Option<Pasid>) -> &Translation {
        match pasid {
            None => &self.without_pasid,
            Some(pasid) => self.by_pasid.get(&pasid).unwrap_or(&Translation::Blocked),
        }
    }

    fn set(&mut self, pasid: Option<Pasid>, to: &Translation) {
        match (pasid, to) {
            (None, _) => self.without_pasid = to.clone(),
            (Some(pasid), Translation::Blocked) => drop(self.by_pasid.remove(&pasid)),
            (Some(pasid), _) => drop(self.by_pasid.insert(pasid, to.clone())),
        }
    }
}

/// The software back end: one [`Port`] per emulated endpoint.
#[derive(Default)]
pub struct Software {
    ports: BTreeMap<EndpointId, Arc<Port>>,
    reserved: Arc<[ReservedRegion]>,
}

impl Software {
    /// Creates the back end, without endpoints. Accesses without PASID to `reserved` addresses are
    /// never translated.
    pub fn new(reserved: &[ReservedRegion]) -> Self {
        Self { ports: BTreeMap::new(), reserved: reserved.into() }
    }

    /// Adds an endpoint that accesses `memory` through the returned port. It is blocked at first.
    pub fn add_endpoint(&mut self, endpoint: EndpointId, memory: ClientMemory) -> Arc<Port> {
        let port = Arc::new(Port {
            memory,
            translations: RwLock::new(Translations {
                without_pasid: Translation::Blocked,
                by_pasid: BTreeMap::new(),
            }),
            reserved: self.reserved.clone(),
        });
        self.ports.insert(endpoint, port.clone());
        port
    }
}

impl HostIommu for Software {
    // The ports use the domain's address space, so there is nothing to update.
    fn map(&self, _: DomainId, _: &Mapping) -> Result<(), HostError> {
        Ok(())
    }

    fn unmap(&self, _: DomainId, _: IovaRange) -> Result<(), HostError> {
        Ok(())
    }

    fn capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        if !self.ports.contains_key(&endpoint) {
            return EndpointCapabilities::default();
        }
        EndpointCapabilities {
            pasid_bits: PASID_BITS,
            // As the PRI capability of the accelerator states.
            page_requests: Some(PageRequests { response_needs_pasid: true }),
            ..EndpointCapabilities::default()
        }
    }

    fn set_translation(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        translation: &Translation,
    ) -> Result<(), HostError> {
        let Some(port) = self.ports.get(&endpoint) else {
            return Err(HostError::UnknownEndpoint(endpoint));
        };
        // Waits for at most one piece of an access in progress.
        port.translations.write().unwrap_or_else(PoisonError::into_inner).set(pasid, translation);
        Ok(())
    }
}

impl Port {
    /// Returns the current guest memory of the endpoint.
    pub fn memory(&self) -> impl std::ops::Deref<Target = GuestMemoryMmap> {
        self.memory.memory()
    }

    /// Translates `address` and calls `use_target`, which accesses memory and returns the number of
    /// bytes accessed. The translation does not change during the call.
    fn with_piece(
        &self,
        pasid: Option<Pasid>,
        address: Iova,
        access: Access,
        use_target: impl FnOnce(Target) -> usize,
    ) -> Result<usize, DmaCause> {
        if pasid.is_none() && self.is_reserved(address) {
            return Err(DmaCause::NotMapped);
        }
        let translations = self.translations.read().unwrap_or_else(PoisonError::into_inner);
        let done = match translations.of(pasid) {
            Translation::Blocked => return Err(DmaCause::NoDomain),
            Translation::Bypass => use_target(identity(address)),
            Translation::Domain(_, space) => {
                space.with_target(address, access, use_target).ok_or(DmaCause::NotMapped)?
            }
        };
        if done == 0 { Err(DmaCause::NotMemory) } else { Ok(done) }
    }

    fn is_reserved(&self, address: Iova) -> bool {
        self.reserved.iter().any(|region| region.range.contains(address.0))
    }

    /// Splits an access to `len` bytes at `address` into contiguous pieces of memory, and calls
    /// `piece(offset, len, gpa)` for each, which returns the number of bytes accessed.
    fn pieces(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        len: usize,
        access: Access,
        mut piece: impl FnMut(usize, usize, Gpa) -> usize,
    ) -> Result<(), DmaError> {
        let pasid = pasid.map(Pasid::from);
        in_pieces(address, len, |address, offset, len| {
            self.with_piece(pasid, address, access, |target| {
                let contiguous = usize::try_from(target.span).unwrap_or(usize::MAX);
                piece(offset, len.min(contiguous.saturating_add(1)), target.gpa)
            })
        })
    }
}

impl Dma for Port {
    fn read(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        buf: &mut [u8],
    ) -> Result<(), DmaError> {
        let len = buf.len();
        self.pieces(pasid, address, len, Access::READ, |offset, len, gpa| {
            let memory = self.memory.memory();
            let len = contiguous_len(&memory, gpa, len);
            let read = memory.read_slice(&mut buf[offset..offset + len], GuestAddress(gpa.0));
            read.map_or(0, |()| len)
        })
    }

    fn write(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        buf: &[u8],
    ) -> Result<(), DmaError> {
        self.pieces(pasid, address, buf.len(), Access::WRITE, |offset, len, gpa| {
            let memory = self.memory.memory();
            let len = contiguous_len(&memory, gpa, len);
            let written = memory.write_slice(&buf[offset..offset + len], GuestAddress(gpa.0));
            written.map_or(0, |()| len)
        })
    }
}

fn identity(address: Iova) -> Target {
    Target { gpa: Gpa(address.0), span: u64::MAX - address.0 }
}

/// Returns how many of the `len` bytes at `gpa` are in one region of memory.
fn contiguous_len(memory: &GuestMemoryMmap, gpa: Gpa, len: usize) -> usize {
    match memory.to_region_addr(GuestAddress(gpa.0)) {
        Some((region, offset)) => {
            usize::try_from(region.len() - offset.0).map_or(len, |r| r.min(len))
        }
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::GuestMemoryAtomic;

    use super::*;
    use crate::host::AddressSpace;

    const PAGE: u64 = 0x1000;
    const ENDPOINT: EndpointId = EndpointId(8);

    /// Two contiguous regions that meet at 4 pages.
    fn port(translation: Translation) -> Arc<Port> {
        let regions =
            [(GuestAddress(0), 4 * PAGE as usize), (GuestAddress(4 * PAGE), PAGE as usize)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        let mut software = Software::new(&[]);
        let port = software.add_endpoint(ENDPOINT, GuestMemoryAtomic::new(memory));
        software.set_translation(ENDPOINT, None, &translation).unwrap();
        port
    }

    fn mapped(mappings: &[(u64, u64, u64, Access)]) -> Translation {
        let space = AddressSpace::default();
        for &(first, last, gpa, access) in mappings {
            let range = IovaRange::new(first, last).unwrap();
            space.insert(Mapping { range, gpa: Gpa(gpa), access });
        }
        Translation::Domain(DomainId(1), Arc::new(space))
    }

    #[test]
    fn blocked_endpoint_accesses_nothing() {
        let error = port(Translation::Blocked).read(None, 0, &mut [0]).unwrap_err();
        assert_eq!(error, DmaError { address: 0, done: 0, cause: DmaCause::NoDomain });
    }

    #[test]
    fn bypass_crosses_regions_and_stops_at_end_of_memory() {
        let port = port(Translation::Bypass);
        port.write(None, 4 * PAGE - 2, b"four").unwrap();
        let mut buf = [0; 4];
        port.read(None, 4 * PAGE - 2, &mut buf).unwrap();
        assert_eq!(&buf, b"four");
        let error = port.write(None, 5 * PAGE - 2, b"four").unwrap_err();
        let end = 5 * PAGE;
        assert_eq!(error, DmaError { address: end, done: 2, cause: DmaCause::NotMemory });
    }

    #[test]
    fn access_across_two_mappings_translates_each_page() {
        let translation = mapped(&[
            (0x10000, 0x10fff, 0, Access::READ_WRITE),
            (0x11000, 0x11fff, 3 * PAGE, Access::READ),
        ]);
        let port = port(translation);
        port.memory.memory().write_slice(b"ab", GuestAddress(PAGE - 2)).unwrap();
        port.memory.memory().write_slice(b"cd", GuestAddress(3 * PAGE)).unwrap();
        let mut buf = [0; 4];
        port.read(None, 0x10ffe, &mut buf).unwrap();
        assert_eq!(&buf, b"abcd");
        let error = port.write(None, 0x10ffe, b"wxyz").unwrap_err();
        let edge = 0x11000;
        assert_eq!(error, DmaError { address: edge, done: 2, cause: DmaCause::NotMapped });
    }

    #[test]
    fn access_beyond_last_address_fails_without_wrapping() {
        let port = port(mapped(&[(u64::MAX - 0xfff, u64::MAX, 0, Access::READ_WRITE)]));
        port.write(None, u64::MAX, b"x").unwrap();
        let error = port.write(None, u64::MAX, b"xy").unwrap_err();
        assert_eq!((error.done, error.cause), (1, DmaCause::NotMapped));
    }

    #[test]
    fn reserved_addresses_are_not_translated() {
        let range = IovaRange::new(PAGE, 2 * PAGE - 1).unwrap();
        let reserved = [ReservedRegion { range, kind: super::super::ReservedKind::Msi }];
        let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), 4 * PAGE as usize)]);
        let mut software = Software::new(&reserved);
        let port = software.add_endpoint(ENDPOINT, GuestMemoryAtomic::new(memory.unwrap()));
        software.set_translation(ENDPOINT, None, &Translation::Bypass).unwrap();
        assert_eq!(port.read(None, PAGE, &mut [0]).unwrap_err().cause, DmaCause::NotMapped);
        port.read(None, 2 * PAGE, &mut [0]).unwrap();
    }
}
