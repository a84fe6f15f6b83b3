//! An IOAS that mirrors the mappings of a domain.
//!
//! A mapping becomes one area of the IOAS for each region of guest memory that it overlaps, and
//! shares no area with another mapping. The areas are therefore determined by the mappings and
//! the regions, without a query of the kernel. A mapping to addresses without memory has no area
//! until memory is added there.

use std::sync::Arc;

use rustix::io::Errno;

use super::context::{Context, Object, Slice};
use super::guest_memory::{GuestMemoryIoas, RegionId};
use crate::address::IovaRange;
use crate::host::{AddressSpace, HostError, KernelError, Mapping};

/// An IOAS, and the mappings that it mirrors.
pub(super) struct Ioas {
    context: Arc<Context>,
    object: Object,
    address_space: Arc<AddressSpace>,
}

impl Ioas {
    /// Creates an IOAS with all mappings of `address_space`.
    pub(super) fn new(
        context: &Arc<Context>,
        memory: &GuestMemoryIoas,
        address_space: Arc<AddressSpace>,
    ) -> Result<Self, HostError> {
        let object =
            context.alloc_ioas().map_err(|error| HostError::new(error, HostError::Unsupported))?;
        let ioas = Self { context: context.clone(), object, address_space };
        for mapping in ioas.address_space.mappings_in(IovaRange::ALL) {
            ioas.map(memory, &mapping)?;
        }
        Ok(ioas)
    }

    /// Returns the iommufd object.
    pub(super) fn object(&self) -> &Object {
        &self.object
    }

    /// Adds a mapping. When it fails, no part of the mapping is left.
    pub(super) fn map(&self, memory: &GuestMemoryIoas, mapping: &Mapping) -> Result<(), HostError> {
        for slice in memory.slices(mapping) {
            if let Err(error) = self.map_slice(memory, &slice, mapping) {
                let added = memory.slices(mapping).take_while(|added| added.iova < slice.iova);
                added.for_each(|added| self.remove_slice(&added));
                return Err(HostError::new(error, HostError::UnmappableRange));
            }
        }
        Ok(())
    }

    /// Maps a slice at addresses that the domain has not mapped. An area that is still there was
    /// left by an UNMAP that failed and could not be rolled back.
    fn map_slice(
        &self,
        memory: &GuestMemoryIoas,
        slice: &Slice,
        mapping: &Mapping,
    ) -> Result<(), KernelError> {
        match memory.map_slice(&self.object, slice, mapping.access) {
            Err(error) if error.errno == Errno::EXIST => {
                self.remove_slice(slice);
                memory.map_slice(&self.object, slice, mapping.access)
            }
            result => result,
        }
    }

    /// Removes all mappings in `range`, which splits none of them. The address space still
    /// contains them. When it fails, all of them remain.
    pub(super) fn unmap(
        &self,
        memory: &GuestMemoryIoas,
        range: IovaRange,
    ) -> Result<(), HostError> {
        match self.context.unmap(&self.object, range) {
            Ok(()) => Ok(()),
            // No area, as none is split: no mapping in the range has memory. Unmapping slice by
            // slice makes the result independent of whether the kernel agrees.
            Err(error) if error.errno == Errno::NOENT => self.unmap_slices(memory, range),
            Err(error) => {
                self.restore(memory, range);
                Err(HostError::new(error, HostError::Failed))
            }
        }
    }

    fn unmap_slices(&self, memory: &GuestMemoryIoas, range: IovaRange) -> Result<(), HostError> {
        for mapping in self.address_space.mappings_in(range) {
            for slice in memory.slices(&mapping) {
                if let Err(error) = self.unmap_slice(&slice) {
                    self.restore(memory, range);
                    return Err(HostError::new(error, HostError::Failed));
                }
            }
        }
        Ok(())
    }

    /// Rolls back a failed UNMAP: the kernel may have removed some of the areas.
    fn restore(&self, memory: &GuestMemoryIoas, range: IovaRange) {
        for mapping in self.address_space.mappings_in(range) {
            for slice in memory.slices(&mapping) {
                match memory.map_slice(&self.object, &slice, mapping.access) {
                    Err(error) if error.errno != Errno::EXIST => {
                        log::error!("cannot roll back a failed UNMAP: {error}");
                    }
                    _ => {}
                }
            }
        }
    }

    /// Maps a region of guest memory that was added, wherever mappings translate to it.
    pub(super) fn map_region(
        &self,
        memory: &GuestMemoryIoas,
        region: &RegionId,
    ) -> Result<(), KernelError> {
        for mapping in self.address_space.mappings_in(IovaRange::ALL) {
            if let Some(slice) = region.slice(&mapping) {
                self.map_slice(memory, &slice, &mapping)?;
            }
        }
        Ok(())
    }

    /// Unmaps a region of guest memory that is about to be removed.
    pub(super) fn unmap_region(&self, region: &RegionId) -> Result<(), KernelError> {
        for mapping in self.address_space.mappings_in(IovaRange::ALL) {
            if let Some(slice) = region.slice(&mapping) {
                self.unmap_slice(&slice)?;
            }
        }
        Ok(())
    }

    fn remove_slice(&self, slice: &Slice) {
        if let Err(error) = self.unmap_slice(slice) {
            log::error!("host devices can access memory that is no longer mapped: {error}");
        }
    }

    fn unmap_slice(&self, slice: &Slice) -> Result<(), KernelError> {
        let Some(range) = slice.range() else { return Ok(()) };
        match self.context.unmap(&self.object, range) {
            Err(error) if error.errno != Errno::NOENT => Err(error),
            _ => Ok(()),
        }
    }
}
