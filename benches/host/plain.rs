//! The reference: plain iommufd calls on memory of this process, in an IOAS with its own mock
//! device.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use iommufd_bindings as iommufd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{Side, Slot};

const READ_WRITE_FIXED: u32 = iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_FIXED_IOVA
    | iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_WRITEABLE
    | iommufd::iommufd_ioas_map_flags_IOMMU_IOAS_MAP_READABLE;

/// `drivers/iommu/iommufd/iommufd_test.h`, as the daemon's own mock devices use it.
const COMMAND_TEST: u32 = iommufd::IOMMUFD_CMD_BASE + 32;
const OP_MOCK_DOMAIN_REPLACE: u32 = 10;
const OP_MOCK_DOMAIN_FLAGS: u32 = 12;
const DATA_SELFTEST: u32 = 0xdead;
const PAGE_TABLE_HUGE: u32 = 1;

/// `struct iommu_test_cmd`.
#[repr(C, align(8))]
#[derive(Default)]
struct TestCommand {
    size: u32,
    op: u32,
    id: u32,
    words: [u32; 14],
}

/// An iommufd context, whose objects the kernel destroys when the file is closed.
pub struct Plain {
    file: File,
    ioas: u32,
    /// The address of guest memory in this process.
    memory: u64,
}

impl Plain {
    pub fn new(memory: &GuestMemoryMmap) -> Self {
        let file = File::options().read(true).write(true).open("/dev/iommu").expect("iommufd");
        let memory = memory.get_host_address(GuestAddress(0)).expect("mapped") as u64;
        let mut plain = Self { file, ioas: 0, memory };
        plain.ioas = plain.new_ioas();
        plain.attach_a_device();
        plain
    }

    /// Attaches a mock device, with page tables of the same kind as the daemon's.
    fn attach_a_device(&self) {
        // A mock device is attached to an IOAS when it is created.
        let initial = self.new_ioas();
        let made = self.test(OP_MOCK_DOMAIN_FLAGS, initial, 0);
        // Object numbers of the selftest, the initial HWPT, and the device.
        let [_, test_id, _, device, ..] = made.words;
        let data = [0, PAGE_TABLE_HUGE];
        let mut page_table = iommufd::iommu_hwpt_alloc {
            size: size_of::<iommufd::iommu_hwpt_alloc>() as u32,
            dev_id: device,
            pt_id: self.ioas,
            data_type: DATA_SELFTEST,
            data_len: size_of_val(&data) as u32,
            data_uptr: data.as_ptr() as u64,
            ..Default::default()
        };
        // SAFETY: the data is that of `data`, which outlives the call.
        unsafe { self.call(iommufd::IOMMUFD_CMD_HWPT_ALLOC, &mut page_table) }.expect("an HWPT");
        self.test(OP_MOCK_DOMAIN_REPLACE, test_id, page_table.out_hwpt_id);
    }

    fn new_ioas(&self) -> u32 {
        let size = size_of::<iommufd::iommu_ioas_alloc>() as u32;
        let mut alloc = iommufd::iommu_ioas_alloc { size, ..Default::default() };
        // SAFETY: the structure contains no address.
        unsafe { self.call(iommufd::IOMMUFD_CMD_IOAS_ALLOC, &mut alloc) }.expect("an IOAS");
        alloc.out_ioas_id
    }

    fn test(&self, op: u32, id: u32, argument: u32) -> TestCommand {
        let size = size_of::<TestCommand>() as u32;
        let mut command = TestCommand { size, op, id, ..Default::default() };
        command.words[1] = argument;
        // SAFETY: the operations here take no address.
        unsafe { self.call(COMMAND_TEST, &mut command) }.expect("a mock device");
        command
    }

    /// Makes an ioctl.
    ///
    /// # Safety
    /// `argument` is the command's structure, its first field is its size, and addresses in it
    /// refer to memory that the kernel may access.
    unsafe fn call<A>(&self, command: u32, argument: &mut A) -> std::io::Result<()> {
        let number = (iommufd::IOMMUFD_TYPE as u32) << 8 | command;
        let argument = std::ptr::from_mut(argument);
        // SAFETY: the descriptor is open, and the caller vouches for the structure.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), number.into(), argument) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Side for Plain {
    fn map(&self, slot: Slot) -> Duration {
        let start = Instant::now();
        let mut map = iommufd::iommu_ioas_map {
            size: size_of::<iommufd::iommu_ioas_map>() as u32,
            flags: READ_WRITE_FIXED,
            ioas_id: self.ioas,
            user_va: self.memory + slot.offset,
            length: slot.len,
            iova: slot.iova,
            ..Default::default()
        };
        // SAFETY: guest memory stays mapped as long as this program runs.
        unsafe { self.call(iommufd::IOMMUFD_CMD_IOAS_MAP, &mut map) }.expect("IOMMU_IOAS_MAP");
        start.elapsed()
    }

    fn unmap(&self, slot: Slot) -> Duration {
        let start = Instant::now();
        let mut unmap = iommufd::iommu_ioas_unmap {
            size: size_of::<iommufd::iommu_ioas_unmap>() as u32,
            ioas_id: self.ioas,
            iova: slot.iova,
            length: slot.len,
        };
        // SAFETY: the structure contains no address of memory.
        unsafe { self.call(iommufd::IOMMUFD_CMD_IOAS_UNMAP, &mut unmap) }
            .expect("IOMMU_IOAS_UNMAP");
        start.elapsed()
    }
}
