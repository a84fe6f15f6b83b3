//! Tests of the accelerator: with fake memory, and with a vfio-user client.

mod device;
mod faults;
mod interleavings;
mod operations;
mod page_requests;
mod scheduling;
mod server;

use super::config::Enables;
use super::device::Device;
use super::engine::Engine;
use super::exec::Executor;
use super::fake::{FakeDma, FakeFaults, IdentityDma, PAGE, SINK};
use super::memory::Regions;
use super::regs::*;
use super::work::SLICE_BYTES;
use crate::dma::{Access, Dma, DmaCause};
use crate::faults::{FaultHandler, Responder};
use crate::memory::ClientMemory;
use crate::{Accelerator, Config};
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, mpsc};
use std::thread::{self, JoinHandle};
use vfio_bindings::bindings::vfio::*;
use vfio_user::{Client, DmaMapFlags, DmaUnmapFlags, ServerBackend};
use vm_memory::{GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const RING: u64 = 0x1_0000;
const RECORDS: u64 = 0x3_0000;
const SOURCE: u64 = 0x4_0000;
const TARGET: u64 = 0x6_0000;
const END: u64 = 0x7_ffff;
const ENTRIES: u32 = 16;

const BUS_MASTER: Enables = Enables { bus_master: true, pasid: false, ats: false };

/// Polls `condition`. The limit only ends a test that fails.
fn eventually(event: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..10_000_000 {
        if condition() {
            return;
        }
        thread::yield_now();
    }
    panic!("event did not occur: {event}");
}

fn record_at(slot: u64) -> u64 {
    RECORDS + slot * COMPLETION_SIZE as u64
}

/// Returns a descriptor with completion record number `slot`.
fn descriptor(opcode: u8, length: u64, slot: u64) -> Descriptor {
    Descriptor {
        opcode,
        flags: FLAG_COMPLETION,
        tag: slot as u32 + 100,
        source: SOURCE,
        destination: TARGET,
        length,
        completion: record_at(slot),
        ..Default::default()
    }
}

/// An engine with a worker thread and fake memory. Bus master is enabled.
struct Bench {
    engine: Arc<Engine>,
    dma: Arc<FakeDma>,
    faults: Arc<FakeFaults>,
    worker: Option<JoinHandle<()>>,
}

impl Bench {
    fn new() -> Self {
        Self::with_dma(FakeDma::mapping(RING..=END))
    }

    fn with_dma(dma: FakeDma) -> Self {
        Self::with_faults(dma, FakeFaults::default())
    }

    fn with_faults(dma: FakeDma, faults: FakeFaults) -> Self {
        Self::with_parts(Arc::new(dma), faults)
    }

    fn with_parts(dma: Arc<FakeDma>, faults: FakeFaults) -> Self {
        let engine = Arc::new(Engine::default());
        let faults = Arc::new(faults);
        faults.connect(Responder::new(engine.clone()));
        let executor = Executor::new(dma.clone(), faults.clone());
        let worker = {
            let engine = engine.clone();
            thread::spawn(move || engine.run(executor))
        };
        engine.set_enables(BUS_MASTER);
        Self { engine, dma, faults, worker: Some(worker) }
    }

    fn reg(&self, channel: u32, register: u32) -> u32 {
        self.engine.read(channel_register(channel, register))
    }

    fn set_reg(&self, channel: u32, register: u32, value: u32) {
        self.engine.write(channel_register(channel, register), value);
    }

    fn error_address(&self, channel: u32) -> u64 {
        let high = self.reg(channel, CH_ERROR_ADDRESS + 4) as u64;
        high << 32 | self.reg(channel, CH_ERROR_ADDRESS) as u64
    }

    /// Enables a channel whose ring is at `base`.
    fn enable_at(&self, channel: u32, base: u64) {
        self.enable_at_with(channel, base, CH_CONTROL_ENABLE);
        assert_eq!(self.reg(channel, CH_STATUS), STATE_RUNNING);
    }

    fn enable_at_with(&self, channel: u32, base: u64, control: u32) {
        self.set_reg(channel, CH_RING_BASE, base as u32);
        self.set_reg(channel, CH_RING_BASE + 4, (base >> 32) as u32);
        self.set_reg(channel, CH_RING_SIZE, ENTRIES);
        self.set_reg(channel, CH_CONTROL, control);
    }

    /// Enables a channel and submits `work`.
    fn start(&self, channel: u32, work: &[Descriptor]) {
        self.start_with(channel, CH_CONTROL_ENABLE, work);
    }

    fn start_with(&self, channel: u32, control: u32, work: &[Descriptor]) {
        let base = RING + channel as u64 * PAGE;
        for (entry, descriptor) in (0..).zip(work) {
            self.dma.write_memory(base + entry * DESCRIPTOR_SIZE as u64, &descriptor.to_bytes());
        }
        self.enable_at_with(channel, base, control);
        self.set_reg(channel, CH_DOORBELL, work.len() as u32);
    }

    fn is_busy(&self, channel: u32) -> bool {
        self.reg(channel, CH_STATUS) & CH_STATUS_BUSY != 0
    }

    fn wait(&self, channel: u32) {
        eventually("channel idle", || !self.is_busy(channel));
    }

    /// Runs `work` on channel 0 until it completes or fails.
    fn run(&self, work: &[Descriptor]) {
        self.start(0, work);
        self.wait(0);
    }

    fn record(&self, slot: u64) -> Completion {
        let bytes = self.dma.read_memory(record_at(slot), COMPLETION_SIZE);
        Completion::from_bytes(bytes.as_slice().try_into().unwrap())
    }

    /// Runs one descriptor with record number 0 and returns the record.
    fn result(&self, work: Descriptor) -> Completion {
        self.run(&[work]);
        assert_eq!(self.reg(0, CH_STATUS), STATE_RUNNING);
        assert_eq!(self.reg(0, CH_HEAD), 1);
        self.record(0)
    }

    fn assert_error(&self, code: u32, address: u64) {
        assert_eq!(self.reg(0, CH_STATUS), STATE_ERROR);
        assert_eq!(self.reg(0, CH_ERROR), code);
        assert_eq!(self.error_address(0), address);
        assert_eq!(self.reg(0, CH_HEAD), 0);
        assert_eq!(self.engine.read(INT_STATUS), 1, "an error raises the interrupt");
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        self.engine.stop();
        self.worker.take().unwrap().join().unwrap();
    }
}

fn numbers(len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * 7 + index / 251) as u8).collect()
}

fn success(slot: u64, bytes_done: u64) -> Completion {
    Completion { status: STATUS_SUCCESS, tag: slot as u32 + 100, bytes_done, ..Default::default() }
}

fn fault(bytes_done: u64, fault_address: u64, fault_flags: u8) -> Completion {
    let tag = 100;
    let status = STATUS_FAULT;
    Completion { status, fault_flags, tag, bytes_done, fault_address, ..Default::default() }
}

/// Returns a descriptor that is still in progress when its test ends.
fn endless(opcode: u8) -> Descriptor {
    Descriptor {
        source: SINK,
        destination: SINK + MAX_LENGTH,
        flags: 0,
        ..descriptor(opcode, MAX_LENGTH, 0)
    }
}

const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
const BAR1: u32 = VFIO_PCI_BAR1_REGION_INDEX;
const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;
const COMMAND: u64 = 4;
