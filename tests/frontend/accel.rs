//! The VMM's and the driver's side of one emulated endpoint: accesses by I/O virtual address.

use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::sync::Arc;

use vfio_user::{Client, Error};
use vm_memory::ByteValued;

use crate::driver::{PAGE, Ram};
use crate::wait;

pub use vhost_user_iommu::sim::regs;

use regs::{Completion, Descriptor};

const BAR0: u32 = 0;
const CONFIG_SPACE: u32 = 7;
const COMMAND: u64 = 4;
const PASID_CONTROL: u64 = 0x106;
const ATS_CONTROL: u64 = 0x116;
const PRI_CONTROL: u64 = 0x124;
const PRI_CAPACITY: u64 = 0x128;
const PRI_ALLOCATION: u64 = 0x12c;
const MEMORY_AND_BUS_MASTER: u16 = 0b110;

/// Why an access did not happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refused {
    /// The IOMMU said no.
    Fault { address: u64, write: bool },
    /// A page was asked for, and the answer was INVALID.
    Denied { address: u64, write: bool },
    /// The address was translated to something that is not memory.
    NotMemory { address: u64, write: bool },
    /// The channel could not even read its ring or write its record (`CH_ERROR`).
    Channel { error: u32, address: u64 },
}

pub fn fault_read<T>(address: u64) -> Result<T, Refused> {
    Err(Refused::Fault { address, write: false })
}

pub fn fault_write<T>(address: u64) -> Result<T, Refused> {
    Err(Refused::Fault { address, write: true })
}

/// An unattached endpoint cannot even read a descriptor.
pub fn ring_fault<T>(accel: &Accel) -> Result<T, Refused> {
    Err(Refused::Channel { error: regs::ERROR_RING_FAULT, address: accel.home })
}

/// A page was asked for to write to it, and the answer was INVALID.
pub fn denied_write<T>(address: u64) -> Result<T, Refused> {
    Err(Refused::Denied { address, write: true })
}

/// An accelerator: channel 0 unless a method names another. Its rings, records and bounce buffer
/// are in `HOME_LEN` bytes of guest memory at `home`, which it reaches at the same address: by
/// bypass, or because the test maps it so.
pub struct Accel {
    client: Client,
    ram: Arc<Ram>,
    pub home: u64,
    /// What accesses of a channel carry from its next start on.
    pasid: Option<u32>,
    page_requests_enabled: bool,
    /// From their next start on, channels ask for the pages that they miss.
    pub asks_for_pages: bool,
    /// Most pages of one page request group, from the next start on.
    pub group_pages: u32,
}

impl Accel {
    pub const CHANNELS: u32 = regs::CHANNELS as u32;
    pub const HOME_LEN: u64 = (regs::CHANNELS as u64 + 4) * PAGE;
    pub const RING_ENTRIES: u32 = 64;

    /// Connects as QEMU does: with all of guest memory, and then the driver's bus master.
    pub fn connect(socket: &Path, ram: &Arc<Ram>, home: u64) -> Self {
        let client = wait::until("an endpoint listening", || match Client::new(socket) {
            Err(Error::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused => None,
            client => Some(client.unwrap()),
        });
        let mut accel = Self {
            client,
            ram: ram.clone(),
            home,
            pasid: None,
            page_requests_enabled: false,
            asks_for_pages: false,
            group_pages: 1,
        };
        for region in accel.ram.regions() {
            accel
                .client
                .dma_map(
                    region.mmap_offset,
                    region.guest_phys_addr,
                    region.memory_size,
                    region.mmap_handle.as_raw_fd(),
                )
                .unwrap();
        }
        accel.enable_bus_master();
        accel
    }

    fn enable_bus_master(&mut self) {
        self.configure(COMMAND, &MEMORY_AND_BUS_MASTER.to_le_bytes());
    }

    /// What follows carries this PASID.
    pub fn use_pasid(&mut self, pasid: Option<u32>) {
        self.enable_pasids(true);
        self.pasid = pasid;
    }

    pub fn enable_pasids(&mut self, on: bool) {
        self.configure(PASID_CONTROL, &[on.into(), 0]);
    }

    /// Lets channels ask for pages. If need be, page requests are enabled as Linux does it, as
    /// many as the function can have outstanding.
    pub fn ask_for_pages(&mut self) {
        self.asks_for_pages = true;
        if !std::mem::replace(&mut self.page_requests_enabled, true) {
            self.enable_page_requests();
        }
    }

    fn enable_page_requests(&mut self) {
        self.enable_pasids(true);
        self.configure(PRI_CONTROL, &[2, 0]);
        let mut capacity = [0; 4];
        self.client.region_read(CONFIG_SPACE, PRI_CAPACITY, &mut capacity).unwrap();
        self.configure(PRI_ALLOCATION, &capacity);
        self.configure(PRI_CONTROL, &[1, 0]);
        self.configure(ATS_CONTROL, &[0, 0x80]);
    }

    /// Resets the function, and enables again what was enabled.
    pub fn reset(&mut self) {
        self.client.reset().unwrap();
        self.enable_bus_master();
        if self.page_requests_enabled {
            self.enable_page_requests();
        }
    }

    fn configure(&mut self, offset: u64, value: &[u8]) {
        self.client.region_write(CONFIG_SPACE, offset, value).unwrap();
    }

    fn ring(&self, channel: u32) -> u64 {
        self.home + u64::from(channel) * PAGE
    }

    pub fn record(&self, channel: u32) -> u64 {
        self.ring(Self::CHANNELS) + 32 * u64::from(channel)
    }

    /// Where data comes from and goes to.
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

    /// Starts a channel on `descriptors` and does not wait.
    pub fn start(&mut self, channel: u32, descriptors: &[Descriptor]) {
        self.stop(channel);
        for (place, descriptor) in (self.ring(channel)..).step_by(64).zip(descriptors) {
            self.ram.write(place, &descriptor.to_bytes());
        }
        self.ram.fill(self.record(channel), 32, 0);
        let asks = if self.asks_for_pages { regs::CH_CONTROL_PAGE_REQUEST } else { 0 };
        let pasid = self.pasid.map_or(0, |pasid| regs::CH_PASID_VALID | pasid);
        self.set_register(channel, regs::CH_PASID, pasid);
        self.set_register(channel, regs::CH_GROUP_PAGES, self.group_pages);
        self.set_register(channel, regs::CH_RING_BASE, self.ring(channel));
        self.set_register(channel, regs::CH_RING_SIZE, Self::RING_ENTRIES);
        self.set_register(channel, regs::CH_CONTROL, regs::CH_CONTROL_ENABLE | asks);
        self.set_register(channel, regs::CH_DOORBELL, descriptors.len() as u32);
    }

    pub fn stop(&mut self, channel: u32) {
        self.set_register(channel, regs::CH_CONTROL, 0_u32);
    }

    pub fn is_busy(&mut self) -> bool {
        self.register(0, regs::CH_STATUS) & regs::CH_STATUS_BUSY != 0
    }

    /// Starts one descriptor, with the channel's record.
    pub fn begin(&mut self, channel: u32, descriptor: Descriptor) {
        let (flags, completion) = (regs::FLAG_COMPLETION, self.record(channel));
        self.start(channel, &[Descriptor { flags, completion, ..descriptor }]);
    }

    /// What has become of the descriptor begun last, once it or the channel has ended.
    pub fn outcome(&mut self, channel: u32) -> Option<Result<(), Refused>> {
        let bytes = self.ram.read(self.record(channel), 32);
        let record = Completion::from_bytes(&bytes.try_into().unwrap());
        if record.status != regs::STATUS_PENDING {
            return Some(result(&record));
        }
        let state = self.register(channel, regs::CH_STATUS) & regs::CH_STATUS_STATE;
        (state == regs::STATE_ERROR).then(|| Err(self.error(channel)))
    }

    fn error(&mut self, channel: u32) -> Refused {
        let error = self.register(channel, regs::CH_ERROR) & 0xffff;
        let low = self.register(channel, regs::CH_ERROR_ADDRESS);
        let high = self.register(channel, regs::CH_ERROR_ADDRESS + 4);
        Refused::Channel { error, address: u64::from(high) << 32 | u64::from(low) }
    }

    pub fn wait(&mut self, channel: u32) -> Result<(), Refused> {
        wait::until("the accelerator", || self.outcome(channel))
    }

    pub fn copy(&mut self, source: u64, destination: u64, length: u64) -> Result<(), Refused> {
        let opcode = regs::OP_COPY;
        self.begin(0, Descriptor { opcode, source, destination, length, ..Default::default() });
        self.wait(0)
    }

    /// Reads up to two pages.
    pub fn read(&mut self, address: u64, len: usize) -> Result<Vec<u8>, Refused> {
        self.copy(address, self.bounce(), len as u64)?;
        Ok(self.ram.read(self.bounce(), len))
    }

    /// Writes up to two pages.
    pub fn write(&mut self, address: u64, data: &[u8]) -> Result<(), Refused> {
        self.ram.write(self.bounce(), data);
        self.copy(self.bounce(), address, data.len() as u64)
    }

    /// As a VMM whose memory layout changes.
    pub fn unmap_memory(&mut self) {
        for region in self.ram.regions() {
            self.client.dma_unmap(region.guest_phys_addr, region.memory_size).unwrap();
        }
    }
}

fn result(record: &Completion) -> Result<(), Refused> {
    let address = record.fault_address;
    let write = record.fault_flags & regs::FAULT_WRITE != 0;
    match record.status {
        regs::STATUS_SUCCESS => Ok(()),
        regs::STATUS_FAULT if record.fault_flags & regs::FAULT_PAGE_REQUEST != 0 => {
            Err(Refused::Denied { address, write })
        }
        regs::STATUS_FAULT => Err(Refused::Fault { address, write }),
        regs::STATUS_BUS_ERROR => Err(Refused::NotMemory { address, write }),
        status => panic!("completion status {status}"),
    }
}
