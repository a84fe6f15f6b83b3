//! The peers of an emulated accelerator: the VMM's vfio-user client and the guest's driver.
//! Addresses of accesses are I/O virtual addresses.

use std::io::ErrorKind;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::path::Path;
use std::sync::Arc;

use vfio_bindings::bindings::vfio::*;
use vfio_user::{Client, Error};
use vm_memory::ByteValued;

use crate::memory::{GuestMemory, PAGE};
use crate::wait;

pub use accelerator::regs;

use regs::{Completion, Descriptor};

const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
const CONFIG_SPACE: u32 = VFIO_PCI_CONFIG_REGION_INDEX;
const COMMAND: u64 = 0x04;
const MEMORY_AND_BUS_MASTER: u16 = 0b110;
const MSIX_CONTROL: u64 = 0x82;
const PASID_CONTROL: u64 = regs::PASID_CAPABILITY as u64 + 6;
const ATS_CONTROL: u64 = regs::ATS_CAPABILITY as u64 + 6;
const PRI_CONTROL: u64 = regs::PRI_CAPABILITY as u64 + 4;
const PRI_CAPACITY: u64 = regs::PRI_CAPABILITY as u64 + 8;
const PRI_ALLOCATION: u64 = regs::PRI_CAPABILITY as u64 + 12;

/// Reason why an access failed, and its I/O virtual address.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the same fields in all variants")]
pub enum AccessError {
    /// The IOMMU does not translate the address, or not for this access.
    Fault { address: u64, write: bool },
    /// The page was requested, and the page response was INVALID.
    Denied { address: u64, write: bool },
    /// The address is translated to an address without memory.
    Bus { address: u64, write: bool },
    /// The channel could not read its ring or write its completion record (`CH_ERROR`).
    Channel { error: u32, address: u64 },
}

/// Returns the outcome of a read that faults at `address`.
pub fn fault_read<T>(address: u64) -> Result<T, AccessError> {
    Err(AccessError::Fault { address, write: false })
}

/// Returns the outcome of a write that faults at `address`.
pub fn fault_write<T>(address: u64) -> Result<T, AccessError> {
    Err(AccessError::Fault { address, write: true })
}

/// Returns the outcome of any access of a blocked endpoint: it cannot even read a descriptor.
pub fn ring_fault<T>(accel: &Accel) -> Result<T, AccessError> {
    Err(AccessError::Channel { error: regs::ERROR_RING_FAULT, address: accel.home })
}

/// Returns the outcome of a write whose page request at `address` is completed with INVALID.
pub fn denied_write<T>(address: u64) -> Result<T, AccessError> {
    Err(AccessError::Denied { address, write: true })
}

/// An accelerator. Methods without a channel number use channel 0.
///
/// Its rings, completion records and bounce buffer are in [`HOME_LEN`](Self::HOME_LEN) bytes of
/// guest memory at [`home`](Self::home), which it accesses at the same I/O virtual addresses: by
/// bypass, or through a mapping of the test.
///
/// ```no_run
/// use testing::accel::fault_read;
/// use testing::vm::{DATA, Vm};
///
/// let mut vm = Vm::new("");
/// assert_eq!(vm.accel(0).read(DATA, 8), Ok(vec![0; 8]), "bypass");
/// vm.attach_accel(1, 0);
/// assert_eq!(vm.accel(0).read(DATA, 8), fault_read(DATA), "not mapped");
/// ```
pub struct Accel {
    client: Client,
    ram: Arc<GuestMemory>,
    /// Guest-physical address of the accelerator's rings and buffers.
    pub home: u64,
    /// PASID of accesses; applies at the next start of a channel.
    pasid: Option<u32>,
    page_requests_enabled: bool,
    /// Whether a channel makes page requests; applies at its next start.
    pub makes_page_requests: bool,
    /// Maximum pages of a page request group; applies at the next start of a channel.
    pub group_pages: u32,
}

impl Accel {
    /// Number of channels.
    pub const CHANNELS: u32 = regs::CHANNELS as u32;
    /// Bytes of guest memory that an accelerator uses itself.
    pub const HOME_LEN: u64 = (regs::CHANNELS as u64 + 4) * PAGE;
    /// Entries of a channel's ring.
    pub const RING_ENTRIES: u32 = 64;

    /// Connects as QEMU does: maps all guest memory, then enables bus mastering for the driver.
    #[track_caller]
    pub fn connect(socket: &Path, ram: &Arc<GuestMemory>, home: u64) -> Self {
        let client = wait::until("an endpoint that listens", || match Client::new(socket) {
            Err(Error::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused => None,
            client => Some(client.unwrap()),
        });
        let mut accel = Self {
            client,
            ram: ram.clone(),
            home,
            pasid: None,
            page_requests_enabled: false,
            makes_page_requests: false,
            group_pages: 1,
        };
        for region in accel.ram.regions() {
            let fd = region.mmap_handle.as_raw_fd();
            let (gpa, size) = (region.guest_phys_addr, region.memory_size);
            accel.client.dma_map(region.mmap_offset, gpa, size, fd).unwrap();
        }
        accel.enable_bus_master();
        accel
    }

    fn enable_bus_master(&mut self) {
        self.write_config(COMMAND, &MEMORY_AND_BUS_MASTER.to_le_bytes());
    }

    /// Sets the PASID of accesses.
    pub fn use_pasid(&mut self, pasid: Option<u32>) {
        self.enable_pasids(true);
        self.pasid = pasid;
    }

    /// Enables or disables PASIDs of the function.
    pub fn enable_pasids(&mut self, on: bool) {
        self.write_config(PASID_CONTROL, &[on.into(), 0]);
    }

    /// Enables page requests of the function, once, and of channels. Like Linux, allocates as many
    /// as the function can have outstanding.
    pub fn enable_page_requests(&mut self) {
        self.makes_page_requests = true;
        if !self.page_requests_enabled {
            self.page_requests_enabled = true;
            self.enable_pri();
        }
    }

    fn enable_pri(&mut self) {
        self.enable_pasids(true);
        // Reset, allocate, enable; then ATS.
        self.write_config(PRI_CONTROL, &[2, 0]);
        let mut capacity = [0; 4];
        self.client.region_read(CONFIG_SPACE, PRI_CAPACITY, &mut capacity).unwrap();
        self.write_config(PRI_ALLOCATION, &capacity);
        self.write_config(PRI_CONTROL, &[1, 0]);
        self.write_config(ATS_CONTROL, &[0, 0x80]);
    }

    /// Enables MSI-X with vector 0, which all channels share, on an eventfd.
    pub fn enable_interrupt(&mut self, eventfd: BorrowedFd) {
        let eventfds = [eventfd.as_raw_fd()];
        let flags = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        self.client.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, flags, 0, 1, &eventfds).unwrap();
        self.write_config(MSIX_CONTROL, &[0, 0x80]);
    }

    /// Resets the function, and restores its configuration.
    pub fn reset(&mut self) {
        self.client.reset().unwrap();
        self.enable_bus_master();
        if self.page_requests_enabled {
            self.enable_pri();
        }
    }

    fn write_config(&mut self, offset: u64, value: &[u8]) {
        self.client.region_write(CONFIG_SPACE, offset, value).unwrap();
    }

    fn ring(&self, channel: u32) -> u64 {
        self.home + u64::from(channel) * PAGE
    }

    /// Returns the address of a channel's completion record.
    pub fn record(&self, channel: u32) -> u64 {
        self.ring(Self::CHANNELS) + regs::COMPLETION_SIZE as u64 * u64::from(channel)
    }

    /// Returns the address of the buffer for the data of [`read`](Self::read) and
    /// [`write`](Self::write).
    fn bounce(&self) -> u64 {
        self.ring(Self::CHANNELS) + PAGE
    }

    fn register(&mut self, channel: u32, register: u32) -> u32 {
        let mut value = [0; 4];
        let offset = regs::channel_register(channel, register);
        self.client.region_read(BAR0, offset.into(), &mut value).unwrap();
        u32::from_le_bytes(value)
    }

    fn set_register(&mut self, channel: u32, register: u32, value: impl ByteValued) {
        let offset = regs::channel_register(channel, register);
        self.client.region_write(BAR0, offset.into(), value.as_slice()).unwrap();
    }

    /// Restarts a channel on `descriptors`, without waiting.
    pub fn start(&mut self, channel: u32, descriptors: &[Descriptor]) {
        self.stop(channel);
        for (index, descriptor) in (0..).zip(descriptors) {
            self.write_descriptor(channel, index, descriptor);
        }
        self.ram.fill(self.record(channel), regs::COMPLETION_SIZE, 0);
        let page_requests =
            if self.makes_page_requests { regs::CH_CONTROL_PAGE_REQUEST } else { 0 };
        let pasid = self.pasid.map_or(0, |pasid| regs::CH_PASID_VALID | pasid);
        self.set_register(channel, regs::CH_PASID, pasid);
        self.set_register(channel, regs::CH_GROUP_PAGES, self.group_pages);
        self.set_register(channel, regs::CH_RING_BASE, self.ring(channel));
        self.set_register(channel, regs::CH_RING_SIZE, Self::RING_ENTRIES);
        self.set_register(channel, regs::CH_CONTROL, regs::CH_CONTROL_ENABLE | page_requests);
        self.ring_doorbell(channel, descriptors.len() as u32);
    }

    /// Writes entry `index` of a channel's ring, without the doorbell.
    pub fn write_descriptor(&self, channel: u32, index: u32, descriptor: &Descriptor) {
        let entry = self.ring(channel) + u64::from(index) * regs::DESCRIPTOR_SIZE as u64;
        self.ram.write(entry, &descriptor.to_bytes());
    }

    /// Submits the entries of a channel's ring below `tail`.
    pub fn ring_doorbell(&mut self, channel: u32, tail: u32) {
        self.set_register(channel, regs::CH_DOORBELL, tail);
    }

    /// Disables a channel.
    pub fn stop(&mut self, channel: u32) {
        self.set_register(channel, regs::CH_CONTROL, 0_u32);
    }

    /// Returns whether channel 0 has work.
    pub fn is_busy(&mut self) -> bool {
        self.register(0, regs::CH_STATUS) & regs::CH_STATUS_BUSY != 0
    }

    /// Restarts a channel on one descriptor, with the channel's completion record.
    pub fn begin(&mut self, channel: u32, descriptor: Descriptor) {
        let (flags, completion) = (regs::FLAG_COMPLETION, self.record(channel));
        self.start(channel, &[Descriptor { flags, completion, ..descriptor }]);
    }

    /// Returns the outcome of the last descriptor, once it is complete or the channel has stopped.
    pub fn outcome(&mut self, channel: u32) -> Option<Result<(), AccessError>> {
        let bytes = self.ram.read(self.record(channel), regs::COMPLETION_SIZE);
        let record = Completion::from_bytes(&bytes.try_into().unwrap());
        if record.status != regs::STATUS_PENDING {
            return Some(result(&record));
        }
        let state = self.register(channel, regs::CH_STATUS) & regs::CH_STATUS_STATE;
        (state == regs::STATE_ERROR).then(|| Err(self.channel_error(channel)))
    }

    fn channel_error(&mut self, channel: u32) -> AccessError {
        let error = self.register(channel, regs::CH_ERROR) & 0xffff;
        let low = self.register(channel, regs::CH_ERROR_ADDRESS);
        let high = self.register(channel, regs::CH_ERROR_ADDRESS + 4);
        AccessError::Channel { error, address: u64::from(high) << 32 | u64::from(low) }
    }

    /// Waits for the outcome of the last descriptor.
    #[track_caller]
    pub fn wait(&mut self, channel: u32) -> Result<(), AccessError> {
        wait::until("the accelerator", || self.outcome(channel))
    }

    /// Copies `length` bytes.
    #[track_caller]
    pub fn copy(&mut self, source: u64, destination: u64, length: u64) -> Result<(), AccessError> {
        let opcode = regs::OP_COPY;
        self.begin(0, Descriptor { opcode, source, destination, length, ..Default::default() });
        self.wait(0)
    }

    /// Reads up to two pages.
    #[track_caller]
    pub fn read(&mut self, address: u64, len: usize) -> Result<Vec<u8>, AccessError> {
        self.copy(address, self.bounce(), len as u64)?;
        Ok(self.ram.read(self.bounce(), len))
    }

    /// Writes up to two pages.
    #[track_caller]
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), AccessError> {
        self.ram.write(self.bounce(), data);
        self.copy(self.bounce(), address, data.len() as u64)
    }

    /// Unmaps all guest memory, like a VMM whose memory layout changes.
    pub fn unmap_memory(&mut self) {
        for region in self.ram.regions() {
            self.client.dma_unmap(region.guest_phys_addr, region.memory_size).unwrap();
        }
    }
}

fn result(record: &Completion) -> Result<(), AccessError> {
    let address = record.fault_address;
    let write = record.fault_flags & regs::FAULT_WRITE != 0;
    match record.status {
        regs::STATUS_SUCCESS => Ok(()),
        regs::STATUS_FAULT if record.fault_flags & regs::FAULT_PAGE_REQUEST != 0 => {
            Err(AccessError::Denied { address, write })
        }
        regs::STATUS_FAULT => Err(AccessError::Fault { address, write }),
        regs::STATUS_BUS_ERROR => Err(AccessError::Bus { address, write }),
        status => panic!("completion status {status}"),
    }
}
