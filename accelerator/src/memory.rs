//! The client's memory.

use std::fs::File;
use std::io::{self, ErrorKind};
use vfio_user::DmaMapFlags;
use vm_memory::{
    FileOffset, GuestAddress, GuestAddressSpace, GuestMemoryAtomic, GuestMemoryBackend,
    GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap, MmapRegion,
};

/// The memory that the client has made accessible with DMA_MAP, by guest-physical address.
///
/// The accelerator replaces the table; an implementation of [`Dma`](crate::Dma) reads it.
pub type ClientMemory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Maximum number of regions of a client. Each is a memory mapping of this process.
const MAX_REGIONS: usize = 1024;

/// Applies the client's DMA_MAP and DMA_UNMAP messages to a [`ClientMemory`].
#[derive(Debug)]
pub struct Regions(ClientMemory);

impl Regions {
    /// Creates the writer of `memory`; there must be no other.
    pub fn new(memory: ClientMemory) -> Self {
        Self(memory)
    }

    /// Maps the `size` bytes at `offset` of `file` at the guest-physical address `address`.
    ///
    /// A region without a file (device memory) or without write permission (ROM) is ignored:
    /// accesses to it fail as accesses outside memory.
    ///
    /// # Errors
    /// `InvalidInput` if the region is empty, ends beyond 2^64 - 1 or beyond the end of the file,
    /// or cannot be mapped; `AlreadyExists` if it overlaps another region; `OutOfMemory` if the
    /// client has the maximum number of regions.
    pub fn map(
        &self,
        flags: DmaMapFlags,
        offset: u64,
        address: u64,
        size: u64,
        file: Option<File>,
    ) -> io::Result<()> {
        last(address, size)?;
        let Some(file) = file.filter(|_| flags.contains(DmaMapFlags::READ_WRITE)) else {
            log::debug!("DMA_MAP of {size:#x} bytes at {address:#x} ignored: not writable memory");
            return Ok(());
        };
        if self.0.memory().num_regions() >= MAX_REGIONS {
            return Err(io::Error::new(
                ErrorKind::OutOfMemory,
                "maximum number of regions exceeded",
            ));
        }
        self.insert(address, region(file, offset, size)?)
    }

    /// Removes the regions in the `size` bytes at `address`. The caller must ensure that no access
    /// is in progress.
    ///
    /// # Errors
    /// `InvalidInput` if the range is empty, ends beyond 2^64 - 1 or would split a region. No
    /// region is removed.
    pub fn unmap(&self, address: u64, size: u64) -> io::Result<()> {
        let last = last(address, size)?;
        let memory = self.0.memory();
        let mut rest = GuestMemoryMmap::clone(&memory);
        for region in memory.iter() {
            let (first, end) = (region.start_addr(), region.last_addr());
            if end.0 < address || last < first.0 {
                continue;
            }
            if first.0 < address || last < end.0 {
                return Err(invalid("range would split a region"));
            }
            (rest, _) = rest.remove_region(first, region.len()).map_err(invalid)?;
        }
        self.replace(rest);
        Ok(())
    }

    /// Removes all regions. The caller must ensure that no access is in progress.
    pub fn clear(&self) {
        self.replace(GuestMemoryMmap::new());
    }

    fn insert(&self, address: u64, mapping: MmapRegion) -> io::Result<()> {
        let region = GuestRegionMmap::new(mapping, GuestAddress(address))
            .ok_or_else(|| invalid("region ends beyond the address space"))?;
        let memory = self.0.memory().insert_region(region.into());
        self.replace(memory.map_err(|error| io::Error::new(ErrorKind::AlreadyExists, error))?);
        Ok(())
    }

    fn replace(&self, memory: GuestMemoryMmap) {
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner).replace(memory);
    }
}

fn region(file: File, offset: u64, size: u64) -> io::Result<MmapRegion> {
    let metadata = file.metadata()?;
    // An access beyond the end of the file would raise SIGBUS.
    if metadata.is_file() && last(offset, size)? >= metadata.len() {
        return Err(invalid("region ends beyond the file"));
    }
    let size = usize::try_from(size).map_err(invalid)?;
    MmapRegion::from_file(FileOffset::new(file, offset), size).map_err(invalid)
}

/// Returns the last of the `size` addresses from `first`.
fn last(first: u64, size: u64) -> io::Result<u64> {
    let span = size.checked_sub(1).ok_or_else(|| invalid("region is empty"))?;
    first.checked_add(span).ok_or_else(|| invalid("region ends beyond the address space"))
}

fn invalid(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(ErrorKind::InvalidInput, error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::Bytes;

    const RW: DmaMapFlags = DmaMapFlags::READ_WRITE;

    fn regions() -> (Regions, ClientMemory) {
        let memory = ClientMemory::new(GuestMemoryMmap::new());
        (Regions::new(memory.clone()), memory)
    }

    fn file(size: u64) -> Option<File> {
        let file = tempfile::tempfile().unwrap();
        file.set_len(size).unwrap();
        Some(file)
    }

    fn starts(memory: &ClientMemory) -> Vec<u64> {
        memory.memory().iter().map(|region| region.start_addr().0).collect()
    }

    #[test]
    fn map_makes_file_accessible() {
        let (regions, memory) = regions();
        let file = file(0x3000).unwrap();
        regions.map(RW, 0x1000, 0x8000, 0x2000, Some(file.try_clone().unwrap())).unwrap();
        memory.memory().write_slice(b"guest", GuestAddress(0x8010)).unwrap();
        let mut found = [0; 5];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut found, 0x1010).unwrap();
        assert_eq!(&found, b"guest");
    }

    #[test]
    fn map_ignores_regions_that_are_not_writable_memory() {
        let (regions, memory) = regions();
        regions.map(RW, 0, 0x1000, 0x1000, None).unwrap();
        regions.map(DmaMapFlags::READ, 0, 0x1000, 0x1000, file(0x1000)).unwrap();
        assert!(starts(&memory).is_empty());
        regions.unmap(0x1000, 0x1000).unwrap();
    }

    #[test]
    fn map_rejects_invalid_regions() {
        let (regions, memory) = regions();
        let rejected = [
            (0, 0x1000, 0),
            (0, u64::MAX - 0xfff, 0x2000),
            (0, 0x1000, u64::MAX),
            (0x1000, 0x1000, 0x1000),
            (1, 0x1000, 0x1000),
            (u64::MAX, 0x1000, 0x1000),
        ];
        for (offset, address, size) in rejected {
            let result = regions.map(RW, offset, address, size, file(0x1000));
            let kind = result.map_err(|error| error.kind());
            assert_eq!(kind, Err(ErrorKind::InvalidInput), "{offset:#x} {address:#x} {size:#x}");
        }
        assert!(starts(&memory).is_empty());
    }

    #[test]
    fn map_rejects_overlapping_region() {
        let (regions, memory) = regions();
        regions.map(RW, 0, 0x1000, 0x2000, file(0x2000)).unwrap();
        let result = regions.map(RW, 0, 0x2000, 0x2000, file(0x2000));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::AlreadyExists);
        assert_eq!(starts(&memory), [0x1000]);
    }

    #[test]
    fn unmap_rejects_split_and_removes_whole_regions() {
        let (regions, memory) = regions();
        for address in [0x1000, 0x4000, 0x8000] {
            regions.map(RW, 0, address, 0x2000, file(0x2000)).unwrap();
        }
        for (address, size) in [(0x1000, 0x1000), (0, 0x5000), (0x5000, 1), (0, 0), (2, u64::MAX)] {
            let result = regions.unmap(address, size);
            assert_eq!(result.unwrap_err().kind(), ErrorKind::InvalidInput);
        }
        assert_eq!(starts(&memory), [0x1000, 0x4000, 0x8000]);
        regions.unmap(0x7000, 0x1000).unwrap();
        regions.unmap(0, 0x6000).unwrap();
        assert_eq!(starts(&memory), [0x8000]);
        regions.clear();
        assert!(starts(&memory).is_empty());
    }

    #[test]
    fn map_rejects_more_than_maximum_regions() {
        let (regions, memory) = regions();
        for index in 0..MAX_REGIONS as u64 {
            regions.map(RW, 0, index << 12, 0x1000, file(0x1000)).unwrap();
        }
        let result = regions.map(RW, 0, 1 << 40, 0x1000, file(0x1000));
        assert_eq!(result.unwrap_err().kind(), ErrorKind::OutOfMemory);
        assert_eq!(starts(&memory).len(), MAX_REGIONS);
    }
}
