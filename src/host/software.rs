//! The back end without hardware: emulated endpoints translate through the daemon's own books.

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

/// Emulated endpoints have the whole PASID space (PCI Express base specification, 7.8.9).
const PASID_BITS: u8 = 20;

/// The IOMMU side of one emulated endpoint.
pub struct Port {
    memory: ClientMemory,
    translations: RwLock<Translations>,
    reserved: Arc<[ReservedRegion]>,
}

/// Where the accesses of an endpoint go. PASIDs that are not here are blocked.
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
    /// A back end without endpoints; no access of theirs reaches memory at `reserved` addresses.
    pub fn new(reserved: &[ReservedRegion]) -> Self {
        Self { ports: BTreeMap::new(), reserved: reserved.into() }
    }

    /// Adds an endpoint that reaches `memory` through the port returned. It is blocked at first.
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
    // The ports read the domain's address space itself, so there is nothing to mirror.
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
        to: &Translation,
    ) -> Result<(), HostError> {
        let Some(port) = self.ports.get(&endpoint) else {
            return Err(HostError::UnknownEndpoint(endpoint));
        };
        // Waits for the piece that is being accessed, no longer.
        port.translations.write().unwrap_or_else(PoisonError::into_inner).set(pasid, to);
        Ok(())
    }
}

impl Port {
    /// The memory behind the endpoint, as it is now.
    pub fn memory(&self) -> impl std::ops::Deref<Target = GuestMemoryMmap> {
        self.memory.memory()
    }

    /// Translates the piece at `address` and runs `access` while the translation holds.
    /// `access` gets the guest-physical address and returns how many bytes it did.
    fn with_piece(
        &self,
        pasid: Option<Pasid>,
        address: Iova,
        wanted: Access,
        access: impl FnOnce(Target) -> usize,
    ) -> Result<usize, DmaCause> {
        if pasid.is_none() && self.is_reserved(address) {
            return Err(DmaCause::NotMapped);
        }
        let translations = self.translations.read().unwrap_or_else(PoisonError::into_inner);
        let done = match translations.of(pasid) {
            Translation::Blocked => return Err(DmaCause::NoDomain),
            Translation::Bypass => access(identity(address)),
            Translation::Domain(_, space) => {
                space.with_target(address, wanted, access).ok_or(DmaCause::NotMapped)?
            }
        };
        if done == 0 { Err(DmaCause::NotMemory) } else { Ok(done) }
    }

    fn is_reserved(&self, address: Iova) -> bool {
        self.reserved.iter().any(|region| region.range.contains(address.0))
    }

    /// Runs `piece(offset, room, target)` over `len` bytes from `address`.
    fn pieces(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        len: usize,
        wanted: Access,
        mut piece: impl FnMut(usize, usize, Gpa) -> usize,
    ) -> Result<(), DmaError> {
        let pasid = pasid.map(Pasid::from);
        in_pieces(address, len, |here, done, room| {
            self.with_piece(pasid, here, wanted, |target| {
                let room =
                    room.min(usize::try_from(target.span).map_or(room, |s| s.saturating_add(1)));
                piece(done, room, target.gpa)
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
        self.pieces(pasid, address, len, Access::READ, |offset, room, gpa| {
            let memory = self.memory.memory();
            let room = backed(&memory, gpa, room);
            let read = memory.read_slice(&mut buf[offset..offset + room], GuestAddress(gpa.0));
            read.map_or(0, |()| room)
        })
    }

    fn write(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        buf: &[u8],
    ) -> Result<(), DmaError> {
        self.pieces(pasid, address, buf.len(), Access::WRITE, |offset, room, gpa| {
            let memory = self.memory.memory();
            let room = backed(&memory, gpa, room);
            let written = memory.write_slice(&buf[offset..offset + room], GuestAddress(gpa.0));
            written.map_or(0, |()| room)
        })
    }
}

fn identity(address: Iova) -> Target {
    Target { gpa: Gpa(address.0), span: u64::MAX - address.0 }
}

/// How many of the `len` bytes at `gpa` are memory without a hole.
fn backed(memory: &GuestMemoryMmap, gpa: Gpa, len: usize) -> usize {
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

    /// Two regions that meet at 4 pages, then nothing.
    fn port(to: Translation) -> Arc<Port> {
        let regions =
            [(GuestAddress(0), 4 * PAGE as usize), (GuestAddress(4 * PAGE), PAGE as usize)];
        let memory = GuestMemoryMmap::<()>::from_ranges(&regions).unwrap();
        let mut software = Software::new(&[]);
        let port = software.add_endpoint(ENDPOINT, GuestMemoryAtomic::new(memory));
        software.set_translation(ENDPOINT, None, &to).unwrap();
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
    fn a_blocked_endpoint_reaches_nothing() {
        let error = port(Translation::Blocked).read(None, 0, &mut [0]).unwrap_err();
        assert_eq!(error, DmaError { address: 0, done: 0, cause: DmaCause::NoDomain });
    }

    #[test]
    fn bypass_reaches_memory_across_regions_and_stops_at_its_end() {
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
    fn a_read_through_two_mappings_takes_each_page_from_its_own_place() {
        let to = mapped(&[
            (0x10000, 0x10fff, 0, Access::READ_WRITE),
            (0x11000, 0x11fff, 3 * PAGE, Access::READ),
        ]);
        let port = port(to);
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
    fn the_last_address_is_reachable_and_nothing_wraps() {
        let port = port(mapped(&[(u64::MAX - 0xfff, u64::MAX, 0, Access::READ_WRITE)]));
        port.write(None, u64::MAX, b"x").unwrap();
        let error = port.write(None, u64::MAX, b"xy").unwrap_err();
        assert_eq!((error.done, error.cause), (1, DmaCause::NotMapped));
    }

    #[test]
    fn reserved_addresses_are_never_memory() {
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
