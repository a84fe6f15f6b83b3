//! Guest memory: memfd regions that the daemon and the test both map.

use std::fs::File;
use std::os::fd::FromRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use vhost::VhostUserMemoryRegionInfo;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

pub const PAGE: u64 = 0x1000;

pub struct Ram(pub GuestMemoryMmap);

impl Ram {
    /// Regions `(guest physical address, bytes)`, each in a memfd of its own.
    pub fn new(regions: &[(u64, u64)]) -> Arc<Self> {
        let region = |&(start, len): &(u64, u64)| {
            (GuestAddress(start), len as usize, Some(FileOffset::new(memfd(len), 0)))
        };
        Arc::new(Self(GuestMemoryMmap::from_ranges_with_files(regions.iter().map(region)).unwrap()))
    }

    pub fn regions(&self) -> Vec<VhostUserMemoryRegionInfo> {
        let info = |region| VhostUserMemoryRegionInfo::from_guest_region(region).unwrap();
        self.0.iter().map(info).collect()
    }

    pub fn read(&self, gpa: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.0.read_slice(&mut data, GuestAddress(gpa)).unwrap();
        data
    }

    pub fn write(&self, gpa: u64, data: &[u8]) {
        self.0.write_slice(data, GuestAddress(gpa)).unwrap();
    }

    pub fn fill(&self, gpa: u64, len: usize, byte: u8) {
        self.write(gpa, &vec![byte; len]);
    }

    pub fn load(&self, gpa: u64) -> u16 {
        u16::from_le(self.0.load(GuestAddress(gpa), Ordering::Acquire).unwrap())
    }

    pub fn store(&self, gpa: u64, value: u16) {
        self.0.store(value.to_le(), GuestAddress(gpa), Ordering::Release).unwrap();
    }

    pub fn host_address(&self, gpa: u64) -> u64 {
        self.0.get_host_address(GuestAddress(gpa)).unwrap() as u64
    }
}

fn memfd(len: u64) -> File {
    // SAFETY: the name is a C string, and the descriptor returned belongs to nobody else.
    let file = unsafe {
        let fd = libc::memfd_create(c"guest".as_ptr(), libc::MFD_CLOEXEC);
        assert!(fd >= 0, "memfd_create: {}", std::io::Error::last_os_error());
        File::from_raw_fd(fd)
    };
    file.set_len(len).unwrap();
    file
}
