//! Guest memory, as the kernel has it.
//!
//! All of it lies in one address space of its own, at guest-physical addresses, which no device
//! is attached to: nothing is pinned by that. What a guest maps is a slice that is copied from
//! there, so that pins of the same page are shared and charged once.

use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::kernel::{Kernel, KernelError, Object};
use crate::address::IovaRange;
use crate::host::{Access, Mapping};

/// Guest memory in the kernel.
pub(super) struct Ram {
    kernel: Arc<Kernel>,
    ioas: Object,
    regions: BTreeMap<u64, Region>,
    /// The kernel takes files; older ones want memory of this process.
    takes_files: bool,
}

/// A region of guest memory, known by its first guest-physical address.
pub(super) struct Region {
    pub(super) identity: Identity,
    /// Keeps the memory of this process mapped as long as the kernel may need it.
    _memory: GuestMemoryMmap,
}

/// What makes a region the same one in a later list of regions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    first: u64,
    len: u64,
    /// Device and number of the file, and where in it the region begins.
    file: Option<(u64, u64, u64)>,
}

/// A part of a mapping that lies in one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) iova: u64,
    pub(super) gpa: u64,
    pub(super) len: u64,
}

impl Piece {
    /// Its I/O virtual addresses.
    pub(super) fn range(&self) -> Option<IovaRange> {
        IovaRange::new(self.iova, self.iova + (self.len - 1))
    }
}

impl Identity {
    fn of(region: &GuestRegionMmap) -> Self {
        let file = region.file_offset().and_then(|file| {
            let metadata = file.file().metadata().ok()?;
            Some((metadata.dev(), metadata.ino(), file.start()))
        });
        Self { first: region.start_addr().raw_value(), len: region.len(), file }
    }

    /// Its addresses in the address space of guest memory.
    fn range(&self) -> Option<IovaRange> {
        IovaRange::new(self.first, self.first + (self.len - 1))
    }

    /// The part of `mapping` that lies here.
    pub(super) fn piece(&self, mapping: &Mapping) -> Option<Piece> {
        let gpa = mapping.gpa.0.max(self.first);
        let last = (mapping.gpa.0 + mapping.range.span()).min(self.first + (self.len - 1));
        let span = last.checked_sub(gpa)?;
        let iova = mapping.range.first() + (gpa - mapping.gpa.0);
        Some(Piece { iova, gpa, len: span + 1 })
    }
}

impl Ram {
    /// No memory yet.
    pub(super) fn new(kernel: Arc<Kernel>) -> Result<Self, KernelError> {
        let ioas = kernel.new_ioas()?;
        Ok(Self { kernel, ioas, regions: BTreeMap::new(), takes_files: true })
    }

    /// The regions that are not in `memory`, and so have to go.
    pub(super) fn missing_in(&self, memory: &GuestMemoryMmap) -> Vec<Identity> {
        let there: Vec<Identity> = memory.iter().map(Identity::of).collect();
        let all = self.regions.values().map(|region| region.identity);
        all.filter(|identity| !there.contains(identity)).collect()
    }

    /// Forgets a region; what was copied from it stays where it is.
    pub(super) fn remove(&mut self, identity: &Identity) -> Result<(), KernelError> {
        if let Some(range) = identity.range() {
            self.kernel.unmap(&self.ioas, range)?;
        }
        self.regions.remove(&identity.first);
        Ok(())
    }

    /// Takes the regions of `memory` that are new; returns those that the kernel has taken.
    pub(super) fn add_from(&mut self, memory: &GuestMemoryMmap) -> Vec<Identity> {
        let mut added = Vec::new();
        for region in memory.iter() {
            let identity = Identity::of(region);
            if self.regions.contains_key(&identity.first) || identity.len == 0 {
                continue;
            }
            match self.add(region, &identity) {
                Ok(()) => {
                    let region = Region { identity, _memory: memory.clone() };
                    self.regions.insert(identity.first, region);
                    added.push(identity);
                }
                Err(error) => log::error!("devices of the host do not reach guest memory: {error}"),
            }
        }
        added
    }

    fn add(&mut self, region: &GuestRegionMmap, identity: &Identity) -> Result<(), KernelError> {
        let Identity { first, len, .. } = *identity;
        if let Some(file) = region.file_offset().filter(|_| self.takes_files) {
            match self.kernel.map_file(&self.ioas, first, file.file(), file.start(), len) {
                Err(error) if is_too_old(&error) => {
                    log::info!("guest memory is given to the kernel by address: {error}");
                    self.takes_files = false;
                }
                result => return result,
            }
        }
        self.kernel.map_memory(&self.ioas, first, region.as_ptr() as u64, len)
    }

    /// The parts of `mapping` that are memory, lowest first. The rest leads nowhere.
    pub(super) fn pieces(&self, mapping: &Mapping) -> impl Iterator<Item = Piece> {
        let mapping = *mapping;
        let first = mapping.gpa.0;
        let before = self.regions.range(..=first).next_back();
        let behind = self.regions.range(first..).filter(move |(at, _)| **at != first);
        let touched = before.into_iter().chain(behind);
        touched
            .take_while(move |(at, _)| **at <= first + mapping.range.span())
            .filter_map(move |(_, region)| region.identity.piece(&mapping))
    }

    /// Copies a slice of memory into an address space.
    pub(super) fn copy_to(
        &self,
        ioas: &Object,
        piece: &Piece,
        access: Access,
    ) -> Result<(), KernelError> {
        self.kernel.copy(ioas, piece.iova, &self.ioas, piece.gpa, piece.len, access)
    }
}

/// The kernel does not know IOMMU_IOAS_MAP_FILE, or not for this kind of file.
fn is_too_old(error: &KernelError) -> bool {
    matches!(error.errno, Errno::NOTTY | Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Gpa;

    fn identity(first: u64, len: u64) -> Identity {
        Identity { first, len, file: None }
    }

    fn mapping(first: u64, last: u64, gpa: u64) -> Mapping {
        let range = IovaRange::new(first, last).unwrap();
        Mapping { range, gpa: Gpa(gpa), access: Access::READ_WRITE }
    }

    #[test]
    fn a_piece_is_what_mapping_and_region_share() {
        let region = identity(0x10000, 0x4000);
        let piece = |first, last, gpa| region.piece(&mapping(first, last, gpa));
        let whole = Piece { iova: 0x1000, gpa: 0x11000, len: 0x1000 };
        assert_eq!(piece(0x1000, 0x1fff, 0x11000), Some(whole));
        let end = Piece { iova: 0x2000, gpa: 0x13000, len: 0x1000 };
        assert_eq!(piece(0x2000, 0x8fff, 0x13000), Some(end));
        let middle = Piece { iova: 0x11000, gpa: 0x10000, len: 0x4000 };
        assert_eq!(piece(0x1000, 0xf_ffff, 0), Some(middle));
        assert_eq!(piece(0x1000, 0x1fff, 0xf000), None);
        assert_eq!(piece(0x1000, 0x1fff, 0x14000), None);
    }

    #[test]
    fn the_last_byte_of_all_memory_belongs_to_a_piece() {
        let last = u64::MAX - 0xfff;
        let piece = identity(last, 0x1000).piece(&mapping(0, 0xfff, last)).unwrap();
        assert_eq!(piece.range(), IovaRange::new(0, 0xfff));
    }
}
