//! Guest memory in the kernel: an IOAS that maps all of it at guest-physical addresses.
//!
//! No device is attached to this IOAS, so it pins no pages. The IOAS of a domain maps slices that
//! are copied from it, so that all mappings of a page share one pin, which is charged once.

use std::collections::BTreeMap;
use std::fmt;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;

use rustix::io::Errno;
use vm_memory::{Address, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap};

use super::context::{Context, Object, Slice};
use crate::address::IovaRange;
use crate::host::{Access, KernelError, Mapping};

/// The IOAS of guest memory.
pub(super) struct GuestMemoryIoas {
    context: Arc<Context>,
    ioas: Object,
    /// By first guest-physical address. Dropped after the IOAS, which may refer to their memory.
    regions: BTreeMap<u64, Region>,
    /// The kernel maps files (since Linux 6.14). An older one maps memory of this process.
    maps_files: bool,
}

/// A region of guest memory that the IOAS maps.
struct Region {
    id: RegionId,
    /// Keeps the memory of this process mapped as long as the kernel may refer to it.
    _memory: GuestMemoryMmap,
}

/// Identifies a region in successive memory tables.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct RegionId {
    first: u64,
    len: u64,
    /// Device and inode number of the file, and the region's offset in it.
    file: Option<(u64, u64, u64)>,
}

impl RegionId {
    fn new(region: &GuestRegionMmap) -> Self {
        let file = region.file_offset().and_then(|file| {
            let metadata = file.file().metadata().ok()?;
            Some((metadata.dev(), metadata.ino(), file.start()))
        });
        Self { first: region.start_addr().raw_value(), len: region.len(), file }
    }

    /// Returns the addresses of the region in the IOAS of guest memory.
    fn range(&self) -> Option<IovaRange> {
        IovaRange::new(self.first, self.first + (self.len - 1))
    }

    /// Returns the part of `mapping` in this region.
    pub(super) fn slice(&self, mapping: &Mapping) -> Option<Slice> {
        let gpa = mapping.gpa.0.max(self.first);
        let last = (mapping.gpa.0 + mapping.range.span()).min(self.first + (self.len - 1));
        let span = last.checked_sub(gpa)?;
        let iova = mapping.range.first() + (gpa - mapping.gpa.0);
        Some(Slice { iova, gpa, len: span + 1 })
    }
}

impl fmt::Display for RegionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x} bytes at GPA {:#x}", self.len, self.first)
    }
}

impl GuestMemoryIoas {
    /// Creates the IOAS, without memory.
    pub(super) fn new(context: Arc<Context>) -> Result<Self, KernelError> {
        let ioas = context.alloc_ioas()?;
        Ok(Self { context, ioas, regions: BTreeMap::new(), maps_files: true })
    }

    /// Returns the regions that are not in `memory`, and so have to be removed.
    pub(super) fn regions_not_in(&self, memory: &GuestMemoryMmap) -> Vec<RegionId> {
        let present: Vec<RegionId> = memory.iter().map(RegionId::new).collect();
        let all = self.regions.values().map(|region| region.id);
        all.filter(|id| !present.contains(id)).collect()
    }

    /// Unmaps a region. All slices of it must have been unmapped in other IOASs before.
    pub(super) fn remove_region(&mut self, id: &RegionId) -> Result<(), KernelError> {
        if let Some(range) = id.range() {
            self.context.unmap(&self.ioas, range)?;
        }
        self.regions.remove(&id.first);
        Ok(())
    }

    /// Maps the regions of `memory` that are not mapped yet; returns those that were mapped.
    pub(super) fn add_regions(&mut self, memory: &GuestMemoryMmap) -> Vec<RegionId> {
        let mut added = Vec::new();
        for region in memory.iter() {
            let id = RegionId::new(region);
            if self.regions.contains_key(&id.first) || id.len == 0 {
                continue;
            }
            match self.map_region(region, &id) {
                Ok(()) => {
                    self.regions.insert(id.first, Region { id, _memory: memory.clone() });
                    added.push(id);
                }
                Err(error) => log::error!("host devices cannot access guest memory: {error}"),
            }
        }
        added
    }

    fn map_region(&mut self, region: &GuestRegionMmap, id: &RegionId) -> Result<(), KernelError> {
        if let Some(file) = region.file_offset().filter(|_| self.maps_files) {
            match self.context.map_file(&self.ioas, id.first, file.file(), file.start(), id.len) {
                Err(error) if is_unsupported(&error) => {
                    log::info!("mapping guest memory by address instead of by file: {error}");
                    self.maps_files = false;
                }
                result => return result,
            }
        }
        // SAFETY: this is guest memory, which `add_regions` keeps mapped until `remove_region`. At
        // that time no other IOAS has a slice of it. `Iommufd` drops all IOASs before this one.
        unsafe { self.context.map_memory(&self.ioas, id.first, region.as_ptr(), id.len) }
    }

    /// Returns the parts of `mapping` that are memory, in ascending order.
    pub(super) fn slices(&self, mapping: &Mapping) -> impl Iterator<Item = Slice> {
        let mapping = *mapping;
        let first = mapping.gpa.0;
        let at_or_below = self.regions.range(..=first).next_back();
        let above = self.regions.range(first..).filter(move |(start, _)| **start != first);
        at_or_below
            .into_iter()
            .chain(above)
            .take_while(move |(start, _)| **start <= first + mapping.range.span())
            .filter_map(move |(_, region)| region.id.slice(&mapping))
    }

    /// Maps a slice in another IOAS.
    pub(super) fn map_slice(
        &self,
        ioas: &Object,
        slice: &Slice,
        access: Access,
    ) -> Result<(), KernelError> {
        self.context.copy(ioas, &self.ioas, slice, access)
    }
}

/// Returns whether the kernel does not implement IOMMU_IOAS_MAP_FILE, or not for this file system.
fn is_unsupported(error: &KernelError) -> bool {
    matches!(error.errno, Errno::NOTTY | Errno::OPNOTSUPP)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::address::Gpa;

    fn region(first: u64, len: u64) -> RegionId {
        RegionId { first, len, file: None }
    }

    fn mapping(first: u64, last: u64, gpa: u64) -> Mapping {
        let range = IovaRange::new(first, last).unwrap();
        Mapping { range, gpa: Gpa(gpa), access: Access::READ_WRITE }
    }

    #[test]
    fn slice_is_intersection_of_mapping_and_region() {
        let region = region(0x1_0000, 0x4000);
        let slice = |first, last, gpa| region.slice(&mapping(first, last, gpa));
        let whole = Slice { iova: 0x1000, gpa: 0x11000, len: 0x1000 };
        assert_eq!(slice(0x1000, 0x1fff, 0x11000), Some(whole));
        let end = Slice { iova: 0x2000, gpa: 0x13000, len: 0x1000 };
        assert_eq!(slice(0x2000, 0x8fff, 0x13000), Some(end));
        let middle = Slice { iova: 0x11000, gpa: 0x10000, len: 0x4000 };
        assert_eq!(slice(0x1000, 0xf_ffff, 0), Some(middle));
        assert_eq!(slice(0x1000, 0x1fff, 0xf000), None);
        assert_eq!(slice(0x1000, 0x1fff, 0x14000), None);
    }

    #[test]
    fn slice_can_end_at_last_address() {
        let last = u64::MAX - 0xfff;
        let slice = region(last, 0x1000).slice(&mapping(0, 0xfff, last)).unwrap();
        assert_eq!(slice.range(), IovaRange::new(0, 0xfff));
    }
}
