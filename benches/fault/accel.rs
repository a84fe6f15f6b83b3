//! The driver of an emulated accelerator, whose channels make the faults.

use std::os::fd::{AsRawFd, OwnedFd};

use accelerator::regs::{self, Descriptor};
use rustix::event::{EventfdFlags, eventfd};
use vfio_bindings::bindings::vfio::*;
use vfio_user::Client;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use crate::common::{Daemon, daemon, region};
use crate::guest::PASID;

const COMMAND: u64 = 0x04;
const PASID_CONTROL: u64 = regs::PASID_CAPABILITY as u64 + 6;
const ATS_CONTROL: u64 = regs::ATS_CAPABILITY as u64 + 6;
const PRI_CONTROL: u64 = regs::PRI_CAPABILITY as u64 + 4;
const PRI_ALLOCATION: u64 = regs::PRI_CAPABILITY as u64 + 12;
const RING_ENTRIES: u32 = 64;
const RING_SPAN: u64 = RING_ENTRIES as u64 * regs::DESCRIPTOR_SIZE as u64;

/// An accelerator whose channels work with [`PASID`] and ask for pages.
pub struct Accel {
    client: Client,
    memory: GuestMemoryMmap,
    home: u64,
    tails: [u32; regs::CHANNELS],
    /// Signalled when a descriptor with `FLAG_INTERRUPT` is complete.
    pub interrupt: OwnedFd,
}

impl Accel {
    /// Bytes of guest memory that an accelerator needs for itself.
    pub const SPAN: u64 = regs::CHANNELS as u64 * RING_SPAN;

    /// Connects to endpoint `index`, whose rings are to lie at `home`, physically and in its
    /// address space.
    pub fn connect(daemon: &Daemon, index: u32, memory: &GuestMemoryMmap, home: u64) -> Self {
        let socket = daemon::endpoint_socket(daemon.dir.path(), index);
        let mut accel = Self {
            client: Client::new(&socket).expect("vfio-user"),
            memory: memory.clone(),
            home,
            tails: [0; regs::CHANNELS],
            interrupt: eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"),
        };
        accel.set_up().expect("the accelerator takes the set-up");
        accel
    }

    fn set_up(&mut self) -> Result<(), vfio_user::Error> {
        let ram = region(&self.memory);
        let file = ram.mmap_handle.as_raw_fd();
        self.client.dma_map(ram.mmap_offset, ram.guest_phys_addr, ram.memory_size, file)?;
        let signal = VFIO_IRQ_SET_DATA_EVENTFD | VFIO_IRQ_SET_ACTION_TRIGGER;
        let interrupts = [self.interrupt.as_raw_fd()];
        self.client.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, signal, 0, 1, &interrupts)?;
        self.configure(COMMAND, &[6, 0])?;
        // The capability of MSI-X: enable.
        self.configure(0x82, &[0, 0x80])?;
        self.configure(PASID_CONTROL, &[1, 0])?;
        self.configure(PRI_ALLOCATION, &u32::MAX.to_le_bytes())?;
        self.configure(PRI_CONTROL, &[1, 0])?;
        self.configure(ATS_CONTROL, &[0, 0x80])
    }

    fn configure(&mut self, offset: u64, value: &[u8]) -> Result<(), vfio_user::Error> {
        self.client.region_write(VFIO_PCI_CONFIG_REGION_INDEX, offset, value)
    }

    fn set(&mut self, channel: u32, register: u32, value: &[u8]) {
        let offset = regs::channel_register(channel, register);
        self.client
            .region_write(VFIO_PCI_BAR0_REGION_INDEX, offset.into(), value)
            .expect("register");
    }

    fn ring(&self, channel: u32) -> u64 {
        self.home + u64::from(channel) * RING_SPAN
    }

    pub fn enable(&mut self, channel: u32) {
        self.set(channel, regs::CH_RING_BASE, &self.ring(channel).to_le_bytes());
        self.set(channel, regs::CH_RING_SIZE, &RING_ENTRIES.to_le_bytes());
        self.set(channel, regs::CH_PASID, &(regs::CH_PASID_VALID | PASID).to_le_bytes());
        let control = regs::CH_CONTROL_ENABLE | regs::CH_CONTROL_PAGE_REQUEST;
        self.set(channel, regs::CH_CONTROL, &control.to_le_bytes());
    }

    /// Adds work to a channel's ring, without the doorbell.
    pub fn prepare(&mut self, channel: u32, work: &[Descriptor]) {
        for descriptor in work {
            let tail = &mut self.tails[channel as usize];
            let place = u64::from(*tail) * regs::DESCRIPTOR_SIZE as u64;
            *tail = (*tail + 1) % RING_ENTRIES;
            let at = GuestAddress(self.ring(channel) + place);
            self.memory.write_slice(&descriptor.to_bytes(), at).expect("ring");
        }
    }

    pub fn ring_doorbell(&mut self, channel: u32) {
        let tail = self.tails[channel as usize];
        self.set(channel, regs::CH_DOORBELL, &tail.to_le_bytes());
    }
}

/// Reads `length` bytes and makes a checksum.
pub fn read(source: u64, length: u64) -> Descriptor {
    Descriptor { opcode: regs::OP_CRC32C, source, length, ..Descriptor::default() }
}
