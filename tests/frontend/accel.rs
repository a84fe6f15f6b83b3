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
const MEMORY_AND_BUS_MASTER: u16 = 0b110;

/// Why an access did not happen.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Refused {
    /// The IOMMU said no.
    Fault { address: u64, write: bool },
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

/// An accelerator that works through channel 0. Its ring, record and bounce buffer are in
/// `HOME_LEN` bytes of guest memory at `home`, which it reaches at the same address: by bypass,
/// or because the test maps it so.
pub struct Accel {
    client: Client,
    ram: Arc<Ram>,
    pub home: u64,
}

impl Accel {
    pub const HOME_LEN: u64 = 4 * PAGE;
    pub const RING_ENTRIES: u32 = 64;

    /// Connects as QEMU does: with all of guest memory, and then the driver's bus master.
    pub fn connect(socket: &Path, ram: &Arc<Ram>, home: u64) -> Self {
        let client = wait::until("an endpoint listening", || match Client::new(socket) {
            Err(Error::Connect(error)) if error.kind() == ErrorKind::ConnectionRefused => None,
            client => Some(client.unwrap()),
        });
        let mut accel = Self { client, ram: ram.clone(), home };
        for region in ram.regions() {
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
        accel
            .client
            .region_write(CONFIG_SPACE, COMMAND, &MEMORY_AND_BUS_MASTER.to_le_bytes())
            .unwrap();
        accel
    }

    /// What follows carries this PASID.
    pub fn use_pasid(&mut self, pasid: Option<u32>) {
        self.enable_pasids(true);
        self.stop();
        self.set_register(regs::CH_PASID, pasid.map_or(0, |pasid| regs::CH_PASID_VALID | pasid));
    }

    pub fn enable_pasids(&mut self, on: bool) {
        self.client.region_write(CONFIG_SPACE, PASID_CONTROL, &[on.into(), 0]).unwrap();
    }

    fn record(&self) -> u64 {
        self.home + PAGE
    }

    /// Where data comes from and goes to.
    fn bounce(&self) -> u64 {
        self.home + 2 * PAGE
    }

    fn register(&mut self, register: u32) -> u32 {
        let mut value = [0; 4];
        let offset = regs::channel_register(0, register);
        self.client.region_read(BAR0, offset.into(), &mut value).unwrap();
        u32::from_le_bytes(value)
    }

    fn set_register(&mut self, register: u32, value: impl ByteValued) {
        let offset = regs::channel_register(0, register);
        self.client.region_write(BAR0, offset.into(), value.as_slice()).unwrap();
    }

    /// Starts channel 0 on `descriptors` and does not wait.
    pub fn start(&mut self, descriptors: &[Descriptor]) {
        self.stop();
        for (index, descriptor) in descriptors.iter().enumerate() {
            self.ram.write(self.home + 64 * index as u64, &descriptor.to_bytes());
        }
        self.ram.fill(self.record(), 32, 0);
        self.set_register(regs::CH_RING_BASE, self.home);
        self.set_register(regs::CH_RING_SIZE, Self::RING_ENTRIES);
        self.set_register(regs::CH_CONTROL, regs::CH_CONTROL_ENABLE);
        self.set_register(regs::CH_DOORBELL, descriptors.len() as u32);
    }

    pub fn stop(&mut self) {
        self.set_register(regs::CH_CONTROL, 0_u32);
    }

    pub fn is_busy(&mut self) -> bool {
        self.register(regs::CH_STATUS) & regs::CH_STATUS_BUSY != 0
    }

    /// Runs one descriptor. The record is waited for in memory, or the channel's end.
    pub fn run(&mut self, descriptor: Descriptor) -> Result<(), Refused> {
        let flags = regs::FLAG_COMPLETION;
        self.start(&[Descriptor { flags, completion: self.record(), ..descriptor }]);
        let done = wait::until("the accelerator", || {
            let bytes = self.ram.read(self.record(), 32);
            let record = Completion::from_bytes(&bytes.try_into().unwrap());
            if record.status != regs::STATUS_PENDING {
                return Some(Ok(record));
            }
            let state = self.register(regs::CH_STATUS) & regs::CH_STATUS_STATE;
            (state == regs::STATE_ERROR).then_some(Err(()))
        });
        match done {
            Err(()) => Err(Refused::Channel {
                error: self.register(regs::CH_ERROR) & 0xffff,
                address: self.error_address(),
            }),
            Ok(record) => {
                let address = record.fault_address;
                let write = record.fault_flags & regs::FAULT_WRITE != 0;
                match record.status {
                    regs::STATUS_SUCCESS => Ok(()),
                    regs::STATUS_FAULT => Err(Refused::Fault { address, write }),
                    regs::STATUS_BUS_ERROR => Err(Refused::NotMemory { address, write }),
                    status => panic!("completion status {status}"),
                }
            }
        }
    }

    fn error_address(&mut self) -> u64 {
        let low = self.register(regs::CH_ERROR_ADDRESS);
        u64::from(self.register(regs::CH_ERROR_ADDRESS + 4)) << 32 | u64::from(low)
    }

    pub fn copy(&mut self, source: u64, destination: u64, length: u64) -> Result<(), Refused> {
        let opcode = regs::OP_COPY;
        self.run(Descriptor { opcode, source, destination, length, ..Default::default() })
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
