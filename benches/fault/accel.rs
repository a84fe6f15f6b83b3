//! The driver of an emulated accelerator, whose channels make page requests.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use accelerator::regs::{self, Descriptor};
use rustix::event::{EventfdFlags, eventfd};
use testing::daemon::Daemon;
use testing::memory::GuestMemory;

use crate::guest::PASID;

/// An accelerator whose channels use [`PASID`] and page requests, and work through their rings
/// without a restart.
pub struct Accel {
    accel: testing::accel::Accel,
    tails: [u32; regs::CHANNELS],
    /// Signalled when a descriptor with `FLAG_INTERRUPT` is complete.
    pub interrupt: OwnedFd,
}

impl Accel {
    /// Bytes of guest memory that an accelerator uses itself.
    pub const SPAN: u64 = testing::accel::Accel::HOME_LEN;

    /// Connects to endpoint `index`, with its rings at `home`, which its address space maps to the
    /// same guest-physical address.
    pub fn connect(daemon: &Daemon, index: u32, ram: &Arc<GuestMemory>, home: u64) -> Self {
        let socket = daemon.endpoint_socket(index as usize);
        let mut accel = testing::accel::Accel::connect(&socket, ram, home);
        let interrupt = eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd");
        accel.enable_interrupt(interrupt.as_fd());
        accel.use_pasid(Some(PASID));
        accel.enable_page_requests();
        Self { accel, tails: [0; regs::CHANNELS], interrupt }
    }

    /// Enables a channel with an empty ring.
    pub fn enable(&mut self, channel: u32) {
        self.accel.start(channel, &[]);
    }

    /// Adds work to a channel's ring, without the doorbell.
    pub fn prepare(&mut self, channel: u32, work: &[Descriptor]) {
        let tail = &mut self.tails[channel as usize];
        for descriptor in work {
            self.accel.write_descriptor(channel, *tail, descriptor);
            *tail = (*tail + 1) % testing::accel::Accel::RING_ENTRIES;
        }
    }

    /// Makes the channel execute its ring.
    pub fn ring_doorbell(&mut self, channel: u32) {
        self.accel.ring_doorbell(channel, self.tails[channel as usize]);
    }
}

/// Reads `length` bytes and computes a checksum.
pub fn read(source: u64, length: u64) -> Descriptor {
    Descriptor { opcode: regs::OP_CRC32C, source, length, ..Descriptor::default() }
}
