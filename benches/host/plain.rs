//! What the daemon is compared with: iommufd's plain calls, on memory of this process, in an
//! address space that a mock device of its own is attached to.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use iommufd_bindings as iommufd;
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use super::{Place, Side};

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

/// The kernel destroys what was made when the file is closed.
pub struct Plain {
    file: File,
    ioas: u32,
    /// Where guest memory is mapped in this process.
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

    /// Over page tables of the kind that the daemon's have.
    fn attach_a_device(&self) {
        // A mock device has to be attached to something from the start.
        let at_first = self.new_ioas();
        let made = self.test(OP_MOCK_DOMAIN_FLAGS, at_first, 0);
        // The name for tests, of the page tables at first, and of the device.
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
        self.call(iommufd::IOMMUFD_CMD_HWPT_ALLOC, &mut page_table).expect("page tables");
        self.test(OP_MOCK_DOMAIN_REPLACE, test_id, page_table.out_hwpt_id);
    }

    fn new_ioas(&self) -> u32 {
        let size = size_of::<iommufd::iommu_ioas_alloc>() as u32;
        let mut alloc = iommufd::iommu_ioas_alloc { size, ..Default::default() };
        self.call(iommufd::IOMMUFD_CMD_IOAS_ALLOC, &mut alloc).expect("an address space");
        alloc.out_ioas_id
    }

    fn test(&self, op: u32, id: u32, argument: u32) -> TestCommand {
        let size = size_of::<TestCommand>() as u32;
        let mut command = TestCommand { size, op, id, ..Default::default() };
        command.words[1] = argument;
        self.call(COMMAND_TEST, &mut command).expect("a mock device");
        command
    }

    /// `argument` is the command's structure, and tells its size.
    fn call<A>(&self, command: u32, argument: &mut A) -> std::io::Result<()> {
        let number = (iommufd::IOMMUFD_TYPE as u32) << 8 | command;
        let argument = std::ptr::from_mut(argument);
        // SAFETY: the descriptor is open. The kernel reads and writes no more of the structure
        // than its first field says, which is its size, and behind the pointers in it only what
        // the callers here keep: memory for page tables' data, and guest memory, which stays
        // mapped as long as this program runs.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), number.into(), argument) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

impl Side for Plain {
    fn map(&self, place: Place) -> Duration {
        let start = Instant::now();
        let mut map = iommufd::iommu_ioas_map {
            size: size_of::<iommufd::iommu_ioas_map>() as u32,
            flags: READ_WRITE_FIXED,
            ioas_id: self.ioas,
            user_va: self.memory + place.offset,
            length: place.len,
            iova: place.iova,
            ..Default::default()
        };
        self.call(iommufd::IOMMUFD_CMD_IOAS_MAP, &mut map).expect("IOMMU_IOAS_MAP");
        start.elapsed()
    }

    fn unmap(&self, place: Place) -> Duration {
        let start = Instant::now();
        let mut unmap = iommufd::iommu_ioas_unmap {
            size: size_of::<iommufd::iommu_ioas_unmap>() as u32,
            ioas_id: self.ioas,
            iova: place.iova,
            length: place.len,
        };
        self.call(iommufd::IOMMUFD_CMD_IOAS_UNMAP, &mut unmap).expect("IOMMU_IOAS_UNMAP");
        start.elapsed()
    }
}
