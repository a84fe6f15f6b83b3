//! Guest memory: memfd regions that the daemon and the test both map.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use rustix::fs::{MemfdFlags, memfd_create};
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

/// Size of a page, in bytes.
pub const PAGE: u64 = 0x1000;

/// Guest memory, accessed by guest-physical address. Accesses outside of it panic.
///
/// ```
/// use testing::memory::GuestMemory;
///
/// let ram = GuestMemory::new(&[(0, 1 << 20)]);
/// ram.write(0x1000, b"hello");
/// assert_eq!(ram.read(0x1000, 5), b"hello");
/// ```
pub struct GuestMemory(pub GuestMemoryMmap);

impl GuestMemory {
    /// Creates regions `(guest-physical address, size in bytes)`, each in its own memfd.
    pub fn new(regions: &[(u64, u64)]) -> Arc<Self> {
        let regions = regions.iter().map(|&(start, len)| {
            (GuestAddress(start), len as usize, Some(FileOffset::new(memfd(len), 0)))
        });
        Arc::new(Self(GuestMemoryMmap::from_ranges_with_files(regions).unwrap()))
    }

    /// Returns the regions as a front end or a VMM announces them.
    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let regions = self.0.iter();
        regions
            .map(|region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap())
            .collect()
    }

    /// Reads `len` bytes.
    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.0.read_slice(&mut data, GuestAddress(gpa)).unwrap();
        data
    }

    /// Writes `data`.
    pub fn write(&self, gpa: u64, data: &[u8]) {
        self.0.write_slice(data, GuestAddress(gpa)).unwrap();
    }

    /// Writes `byte` `len` times.
    pub fn fill(&self, gpa: u64, len: usize, byte: u8) {
        self.write(gpa, &vec![byte; len]);
    }

    /// Reads a little-endian 16-bit value with acquire ordering.
    pub fn load(&self, gpa: u64) -> u16 {
        u16::from_le(self.0.load(GuestAddress(gpa), Ordering::Acquire).unwrap())
    }

    /// Writes a little-endian 16-bit value with release ordering.
    pub fn store(&self, gpa: u64, value: u16) {
        self.0.store(value.to_le(), GuestAddress(gpa), Ordering::Release).unwrap();
    }

    /// Returns the address in this process: a front end's address of `gpa`.
    pub fn host_address(&self, gpa: u64) -> u64 {
        self.0.get_host_address(GuestAddress(gpa)).unwrap() as u64
    }
}

fn memfd(len: u64) -> File {
    let file = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).unwrap());
    file.set_len(len).unwrap();
    file
}
