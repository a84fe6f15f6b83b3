//! The accelerator as a whole: registers, worker and memory, first without a client, then over
//! a socket.

mod interleavings;
mod page_requests;

use super::config::Allowed;
use super::device::Device;
use super::engine::Engine;
use super::exec::{Executor, TURN_BYTES};
use super::fake::{FakeDma, FakeFaults, IdentityDma, PAGE, SINK};
use super::memory::Regions;
use super::regs::*;
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

const BUS_MASTER: Allowed = Allowed { bus_master: true, pasids: false, ats: false };

/// Polls for what a thread is about to do. The limit only ends a test that fails.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    for _ in 0..10_000_000 {
        if condition() {
            return;
        }
        thread::yield_now();
    }
    panic!("never: {what}");
}

fn record_at(slot: u64) -> u64 {
    RECORDS + slot * COMPLETION_SIZE as u64
}

/// A descriptor with record number `slot`.
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

/// An engine with its worker and fake memory, bus master on.
struct Bench {
    engine: Arc<Engine>,
    dma: Arc<FakeDma>,
    faults: Arc<FakeFaults>,
    worker: Option<JoinHandle<()>>,
}

impl Bench {
    fn new() -> Self {
        Self::over(FakeDma::mapping(RING..=END))
    }

    fn over(dma: FakeDma) -> Self {
        Self::between(dma, FakeFaults::default())
    }

    fn between(dma: FakeDma, faults: FakeFaults) -> Self {
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
        engine.allow(BUS_MASTER);
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

    /// Enables a channel and gives it `work`.
    fn start(&self, channel: u32, work: &[Descriptor]) {
        self.start_with(channel, CH_CONTROL_ENABLE, work);
    }

    fn start_with(&self, channel: u32, control: u32, work: &[Descriptor]) {
        let base = RING + channel as u64 * PAGE;
        for (entry, descriptor) in (0..).zip(work) {
            self.dma.put(base + entry * DESCRIPTOR_SIZE as u64, &descriptor.to_bytes());
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

    /// Runs `work` on channel 0 to its end, or to an error.
    fn run(&self, work: &[Descriptor]) {
        self.start(0, work);
        self.wait(0);
    }

    fn record(&self, slot: u64) -> Completion {
        let bytes = self.dma.get(record_at(slot), COMPLETION_SIZE);
        Completion::from_bytes(bytes.as_slice().try_into().unwrap())
    }

    /// Runs one descriptor (record number 0) and returns its record.
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

// Operations.

#[test]
fn noop_succeeds_whatever_its_addresses() {
    let bench = Bench::new();
    let noop = Descriptor { source: u64::MAX, ..descriptor(OP_NOOP, u64::MAX, 0) };
    assert_eq!(bench.result(noop), success(0, 0));
}

#[test]
fn copy_moves_every_byte_over_pages_and_turns() {
    let bench = Bench::new();
    let len = TURN_BYTES + 5000;
    bench.dma.put(SOURCE + 3, &numbers(len));
    let copy = Descriptor {
        source: SOURCE + 3,
        destination: TARGET + 1,
        ..descriptor(OP_COPY, len as u64, 0)
    };
    assert_eq!(bench.result(copy), success(0, len as u64));
    assert_eq!(bench.dma.get(TARGET + 1, len), numbers(len));
    assert_eq!(bench.dma.get(TARGET, 1), [0]);
    assert_eq!(bench.dma.get(TARGET + 1 + len as u64, 1), [0]);
}

#[test]
fn fill_repeats_its_pattern_from_the_start_of_the_buffer() {
    let bench = Bench::new();
    let pattern = 0x8877_6655_4433_2211u64;
    let len = TURN_BYTES + 21;
    let fill = Descriptor {
        operand: pattern,
        destination: TARGET + 5,
        ..descriptor(OP_FILL, len as u64, 0)
    };
    assert_eq!(bench.result(fill), success(0, len as u64));
    let expected: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(len).collect();
    assert_eq!(bench.dma.get(TARGET + 5, len), expected);
    assert_eq!(bench.dma.get(TARGET + 5 + len as u64, 1), [0]);
}

#[test]
fn compare_finds_equality_or_the_first_difference() {
    let bench = Bench::new();
    let len = TURN_BYTES + 100;
    bench.dma.put(SOURCE, &numbers(len));
    bench.dma.put(TARGET, &numbers(len));
    let compare = descriptor(OP_COMPARE, len as u64, 0);
    assert_eq!(bench.result(compare), success(0, len as u64));
    bench.set_reg(0, CH_CONTROL, 0);

    let offset = TURN_BYTES as u64 + 50;
    bench.dma.put(TARGET + offset, &[!numbers(len)[offset as usize]]);
    bench.dma.put(TARGET + offset + 9, &[0; 9]);
    let found = bench.result(compare);
    let mismatch = Completion { status: STATUS_MISMATCH, result: offset, ..success(0, offset) };
    assert_eq!(found, mismatch);
}

#[test]
fn crc32c_matches_the_known_value_and_continues() {
    let bench = Bench::new();
    bench.dma.put(SOURCE, b"123456789");
    let crc = descriptor(OP_CRC32C, 9, 0);
    assert_eq!(bench.result(crc).result, 0xe306_9283);
    bench.set_reg(0, CH_CONTROL, 0);

    let head = descriptor(OP_CRC32C, 4, 0);
    let operand = bench.result(head).result;
    bench.set_reg(0, CH_CONTROL, 0);
    let tail = Descriptor { source: SOURCE + 4, operand, ..descriptor(OP_CRC32C, 5, 0) };
    assert_eq!(bench.result(tail).result, 0xe306_9283);
}

#[test]
fn crc32c_does_not_depend_on_turns() {
    let bench = Bench::new();
    let data = numbers(TURN_BYTES + 999);
    bench.dma.put(SOURCE, &data);
    let record = bench.result(descriptor(OP_CRC32C, data.len() as u64, 0));
    assert_eq!(record.result, ::crc32c::crc32c(&data) as u64);
}

#[test]
fn bad_descriptors_are_refused_each_with_its_status() {
    let copy = descriptor(OP_COPY, 64, 0);
    let bad = [
        (Descriptor { opcode: 5, ..copy }, STATUS_BAD_OPCODE),
        (Descriptor { opcode: 0xff, ..copy }, STATUS_BAD_OPCODE),
        (Descriptor { flags: copy.flags | 0x04, ..copy }, STATUS_BAD_FLAGS),
        (Descriptor { flags: copy.flags | 0x80, ..copy }, STATUS_BAD_FLAGS),
        (Descriptor { reserved0: 1, ..copy }, STATUS_BAD_FLAGS),
        (Descriptor { reserved1: [0, 1], ..copy }, STATUS_BAD_FLAGS),
        (Descriptor { length: 0, ..copy }, STATUS_BAD_LENGTH),
        (Descriptor { length: MAX_LENGTH + 1, ..copy }, STATUS_BAD_LENGTH),
        (Descriptor { source: u64::MAX - 62, ..copy }, STATUS_BAD_ADDRESS),
        (Descriptor { destination: u64::MAX - 62, ..copy }, STATUS_BAD_ADDRESS),
    ];
    let bench = Bench::new();
    for (bad, status) in bad {
        let expected = Completion { status, ..success(0, 0) };
        assert_eq!(bench.result(bad), expected, "{bad:?}");
        bench.set_reg(0, CH_CONTROL, 0);
    }
    assert!(bench.faults.take().is_empty());
}

#[test]
fn buffer_may_end_at_the_last_address() {
    let bench = Bench::new();
    let crc = Descriptor { source: u64::MAX - 63, ..descriptor(OP_CRC32C, 64, 0) };
    assert_eq!(bench.result(crc).status, STATUS_SUCCESS);
}

#[test]
fn descriptors_run_in_order() {
    let bench = Bench::new();
    bench.dma.put(SOURCE, b"chain");
    let first = descriptor(OP_COPY, 5, 0);
    let second =
        Descriptor { source: TARGET, destination: TARGET + 64, ..descriptor(OP_COPY, 5, 1) };
    let third =
        Descriptor { source: TARGET + 64, destination: SOURCE, ..descriptor(OP_COMPARE, 5, 2) };
    bench.run(&[first, second, third]);
    assert_eq!([0, 1, 2].map(|slot| bench.record(slot)), [0, 1, 2].map(|slot| success(slot, 5)));
}

// Faults.

#[test]
fn source_fault_at_a_page_boundary_tells_the_bytes_done() {
    let bench = Bench::new();
    bench.dma.put(SOURCE, &numbers(2 * PAGE as usize));
    bench.dma.unmap(SOURCE + 2 * PAGE..=SOURCE + 2 * PAGE);
    let copy = Descriptor { source: SOURCE + 100, ..descriptor(OP_COPY, 4 * PAGE, 0) };
    let done = 2 * PAGE - 100;
    assert_eq!(bench.result(copy), fault(done, SOURCE + 2 * PAGE, 0));
    assert_eq!(bench.dma.get(TARGET, done as usize), numbers(2 * PAGE as usize)[100..]);
    assert_eq!(bench.dma.get(TARGET + done, 1), [0]);
    let reported = (SOURCE + 2 * PAGE, Access::Read, DmaCause::NotMapped);
    assert_eq!(bench.faults.take(), [reported]);
}

#[test]
fn destination_fault_is_a_write() {
    let bench = Bench::new();
    bench.dma.map(TARGET + PAGE..=TARGET + PAGE, false);
    let record = bench.result(descriptor(OP_COPY, 2 * PAGE, 0));
    assert_eq!(record, fault(PAGE, TARGET + PAGE, FAULT_WRITE));
    let reported = (TARGET + PAGE, Access::Write, DmaCause::NotMapped);
    assert_eq!(bench.faults.take(), [reported]);
}

#[test]
fn of_two_faults_the_one_that_stopped_is_reported_alone() {
    let bench = Bench::new();
    bench.dma.unmap(SOURCE + 2 * PAGE..=SOURCE + 2 * PAGE);
    bench.dma.unmap(TARGET + PAGE..=TARGET + PAGE);
    let record = bench.result(descriptor(OP_COPY, 4 * PAGE, 0));
    assert_eq!(record, fault(PAGE, TARGET + PAGE, FAULT_WRITE));
    assert_eq!(bench.faults.take().len(), 1);
}

#[test]
fn fault_in_a_later_turn_counts_the_earlier_ones() {
    let bench = Bench::new();
    let at = TARGET + TURN_BYTES as u64 + PAGE;
    bench.dma.unmap(at..=at);
    let record = bench.result(descriptor(OP_FILL, TURN_BYTES as u64 * 2, 0));
    assert_eq!(record, fault(TURN_BYTES as u64 + PAGE, at, FAULT_WRITE));
}

#[test]
fn compare_reports_a_difference_before_a_fault() {
    let bench = Bench::new();
    bench.dma.unmap(TARGET + PAGE..=TARGET + PAGE);
    let compare = descriptor(OP_COMPARE, 2 * PAGE, 0);
    assert_eq!(bench.result(compare), fault(PAGE, TARGET + PAGE, 0));
    assert_eq!(bench.faults.take().len(), 1);
    bench.set_reg(0, CH_CONTROL, 0);
    bench.dma.put(TARGET + 8, &[1]);
    assert_eq!(bench.result(compare).status, STATUS_MISMATCH);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn crc32c_of_the_bytes_before_a_fault_is_kept() {
    let bench = Bench::new();
    bench.dma.put(SOURCE, &numbers(PAGE as usize));
    bench.dma.unmap(SOURCE + PAGE..=SOURCE + PAGE);
    let record = bench.result(descriptor(OP_CRC32C, 2 * PAGE, 0));
    let result = ::crc32c::crc32c(&numbers(PAGE as usize)) as u64;
    assert_eq!(record, Completion { result, ..fault(PAGE, SOURCE + PAGE, 0) });
}

#[test]
fn what_is_no_memory_is_a_bus_error_and_no_iommu_fault() {
    let bench = Bench::new();
    bench.dma.map_hole(TARGET + PAGE..=TARGET + PAGE);
    let record = bench.result(descriptor(OP_FILL, 2 * PAGE, 0));
    let status = STATUS_BUS_ERROR;
    assert_eq!(record, Completion { status, ..fault(PAGE, TARGET + PAGE, FAULT_WRITE) });
    assert!(bench.faults.take().is_empty());
}

#[test]
fn next_descriptor_follows_a_faulted_one() {
    let bench = Bench::new();
    let bad = Descriptor { source: END + 1, ..descriptor(OP_COPY, 8, 0) };
    bench.run(&[bad, descriptor(OP_COPY, 8, 1)]);
    assert_eq!(bench.record(0).status, STATUS_FAULT);
    assert_eq!(bench.record(1), success(1, 8));
}

#[test]
fn ring_fault_stops_the_channel_until_reset() {
    let bench = Bench::new();
    bench.enable_at(0, END + 1);
    bench.set_reg(0, CH_DOORBELL, 1);
    bench.wait(0);
    bench.assert_error(ERROR_RING_FAULT, END + 1);
    assert_eq!(bench.faults.take(), [(END + 1, Access::Read, DmaCause::NotMapped)]);

    bench.set_reg(0, CH_DOORBELL, 2);
    bench.set_reg(0, CH_CONTROL, CH_CONTROL_ENABLE);
    assert_eq!(bench.reg(0, CH_STATUS), STATE_ERROR);
    bench.set_reg(0, CH_CONTROL, 0);
    assert_eq!(bench.result(descriptor(OP_COPY, 8, 0)), success(0, 8));
}

#[test]
fn ring_outside_memory_stops_the_channel_without_iommu_fault() {
    let bench = Bench::new();
    bench.dma.map_hole(RING..=RING);
    bench.enable_at(0, RING);
    bench.set_reg(0, CH_DOORBELL, 1);
    bench.wait(0);
    bench.assert_error(ERROR_RING_BUS, RING);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn record_fault_stops_the_channel() {
    let bench = Bench::new();
    bench.dma.map(RECORDS..=RECORDS, false);
    bench.run(&[descriptor(OP_FILL, 8, 0)]);
    bench.assert_error(ERROR_COMPLETION_FAULT, RECORDS + 8);
    assert_eq!(bench.faults.take(), [(RECORDS + 8, Access::Write, DmaCause::NotMapped)]);
}

#[test]
fn record_outside_memory_stops_the_channel() {
    let bench = Bench::new();
    bench.dma.map_hole(RECORDS..=RECORDS);
    bench.run(&[descriptor(OP_FILL, 8, 0)]);
    bench.assert_error(ERROR_COMPLETION_BUS, RECORDS + 8);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn misaligned_record_stops_the_channel() {
    let bench = Bench::new();
    let completion = RECORDS + 8;
    bench.run(&[Descriptor { completion, ..descriptor(OP_NOOP, 0, 0) }]);
    bench.assert_error(ERROR_COMPLETION_ALIGN, completion);
    assert_eq!(bench.dma.get(RECORDS, 64), [0; 64]);
}

#[test]
fn failure_without_record_stops_the_channel() {
    let bench = Bench::new();
    let bad = Descriptor { flags: 0, source: END + 1, ..descriptor(OP_COPY, 8, 0) };
    bench.run(&[bad]);
    bench.assert_error(ERROR_DESCRIPTOR | (STATUS_FAULT as u32) << 16, END + 1);
    bench.set_reg(0, CH_CONTROL, 0);
    bench.run(&[Descriptor { flags: 0, ..descriptor(OP_COPY, 8, 0) }]);
    assert_eq!((bench.reg(0, CH_STATUS), bench.reg(0, CH_HEAD)), (STATE_RUNNING, 1));
}

#[test]
fn record_is_written_before_its_first_8_bytes() {
    let writes = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = writes.clone();
    let dma = FakeDma::mapping(RING..=END).with_hook(move |access, address| {
        if access == Access::Write {
            log.lock().unwrap().push(address);
        }
    });
    let bench = Bench::over(dma);
    bench.result(descriptor(OP_FILL, 8, 0));
    assert_eq!(*writes.lock().unwrap(), [TARGET, RECORDS + 8, RECORDS]);
}

// Interrupts.

#[test]
fn interrupt_is_raised_on_request_only() {
    let bench = Bench::new();
    bench.run(&[descriptor(OP_NOOP, 0, 0)]);
    assert_eq!(bench.engine.read(INT_STATUS), 0);
    let asks = Descriptor { flags: FLAG_INTERRUPT, ..descriptor(OP_NOOP, 0, 0) };
    bench.start(3, &[asks]);
    bench.wait(3);
    assert_eq!(bench.engine.read(INT_STATUS), 1 << 3);
}

// Channels among each other.

/// Work that does not end within a test.
fn endless(opcode: u8) -> Descriptor {
    Descriptor {
        source: SINK,
        destination: SINK + MAX_LENGTH,
        flags: 0,
        ..descriptor(opcode, MAX_LENGTH, 0)
    }
}

#[test]
fn error_of_one_channel_leaves_the_others_alone() {
    let bench = Bench::new();
    bench.enable_at(2, END + 1);
    bench.set_reg(2, CH_DOORBELL, 1);
    bench.start(1, &[descriptor(OP_COPY, 8, 1)]);
    bench.wait(1);
    bench.wait(2);
    assert_eq!(bench.reg(2, CH_STATUS), STATE_ERROR);
    assert_eq!((bench.reg(1, CH_STATUS), bench.record(1)), (STATE_RUNNING, success(1, 8)));
}

#[test]
fn long_descriptor_delays_others_by_one_turn_each() {
    let long = Arc::new(AtomicUsize::new(0));
    let between = Arc::new(AtomicUsize::new(0));
    let (count, most) = (long.clone(), between.clone());
    // Writes to the sink are the long channel's; other accesses show that others had a turn.
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, address| {
        if address >= SINK {
            count.fetch_add(1, SeqCst);
        } else if address >= RECORDS {
            most.fetch_max(count.swap(0, SeqCst), SeqCst);
        }
    });
    let bench = Bench::over(dma);
    bench.engine.allow(Allowed::default());
    bench.start(0, &[endless(OP_FILL)]);
    let short: Vec<_> = (0..8).map(|slot| descriptor(OP_FILL, 64, slot)).collect();
    bench.start(1, &short);
    bench.engine.allow(BUS_MASTER);
    bench.wait(1);
    assert!(bench.is_busy(0));
    assert!(between.load(SeqCst) <= 1, "turns between two accesses of the other channel");
}

#[test]
fn registers_answer_while_an_access_takes_its_time() {
    let (started, first) = mpsc::channel();
    let (go, barrier) = mpsc::channel::<()>();
    let barrier = std::sync::Mutex::new(barrier);
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, address| {
        if address == TARGET {
            started.send(()).unwrap();
            barrier.lock().unwrap().recv().unwrap();
        }
    });
    let bench = Bench::over(dma);
    bench.start(0, &[descriptor(OP_FILL, 8, 0)]);
    first.recv().unwrap();
    assert!(bench.is_busy(0));
    bench.set_reg(0, CH_DOORBELL, 1);
    bench.engine.write(INT_STATUS, 1);
    assert_eq!(bench.reg(0, CH_HEAD), 0);
    go.send(()).unwrap();
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 8));
}

#[test]
fn panic_under_a_turn_stops_the_channel_only() {
    let dma = FakeDma::mapping(RING..=END)
        .with_hook(|_, address| assert_ne!(address, SOURCE, "this test's bug"));
    let bench = Bench::over(dma);
    bench.run(&[descriptor(OP_CRC32C, 8, 0)]);
    bench.assert_error(ERROR_INTERNAL, 0);
    bench.start(1, &[descriptor(OP_FILL, 8, 1)]);
    bench.wait(1);
    assert_eq!(bench.record(1), success(1, 8));
}

// Stop and reset.

/// A bench with endless work on every channel, and the number of accesses made.
fn busy_bench() -> (Bench, Arc<AtomicUsize>) {
    let accesses = Arc::new(AtomicUsize::new(0));
    let count = accesses.clone();
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, _| {
        count.fetch_add(1, SeqCst);
    });
    let bench = Bench::over(dma);
    for channel in 0..CHANNELS as u32 {
        bench.start(channel, &[endless(OP_COPY)]);
    }
    eventually("every channel at work", || accesses.load(SeqCst) > 100);
    (bench, accesses)
}

/// Gives a worker that ignores a stop the time to show it.
fn assert_quiet(accesses: &AtomicUsize) {
    let before = accesses.load(SeqCst);
    for _ in 0..1000 {
        thread::yield_now();
    }
    assert_eq!(accesses.load(SeqCst), before);
}

#[test]
fn bus_master_off_pauses_work_where_it_stands() {
    let (bench, accesses) = busy_bench();
    bench.engine.allow(Allowed::default());
    assert_quiet(&accesses);
    assert!(bench.is_busy(0));
    let before = accesses.load(SeqCst);
    bench.engine.allow(BUS_MASTER);
    eventually("work goes on", || accesses.load(SeqCst) > before + 10);
    assert_eq!(bench.reg(0, CH_STATUS), STATE_RUNNING | CH_STATUS_BUSY);
}

#[test]
fn paused_work_is_completed_later() {
    let bench = Bench::new();
    bench.engine.allow(Allowed::default());
    bench.start(0, &[descriptor(OP_FILL, 8, 0)]);
    assert!(bench.is_busy(0));
    bench.engine.allow(BUS_MASTER);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 8));
}

#[test]
fn disabled_channel_stops_and_the_others_go_on() {
    let (bench, accesses) = busy_bench();
    bench.set_reg(0, CH_CONTROL, 0);
    assert_eq!((bench.reg(0, CH_STATUS), bench.reg(0, CH_HEAD)), (STATE_DISABLED, 0));
    let before = accesses.load(SeqCst);
    eventually("others at work", || accesses.load(SeqCst) > before + 10);
    for channel in 1..CHANNELS as u32 {
        bench.set_reg(channel, CH_CONTROL, 0);
    }
    assert_quiet(&accesses);
}

#[test]
fn both_resets_stop_all_work() {
    let resets: [fn(&Engine); 2] =
        [|engine| engine.write(CONTROL, CONTROL_RESET), |engine| engine.reset()];
    for reset in resets {
        let (bench, accesses) = busy_bench();
        reset(&bench.engine);
        assert_quiet(&accesses);
        for channel in 0..CHANNELS as u32 {
            assert_eq!(bench.reg(channel, CH_STATUS), STATE_DISABLED);
        }
        bench.engine.allow(BUS_MASTER);
        assert_eq!(bench.result(descriptor(OP_FILL, 8, 0)), success(0, 8));
    }
}

#[test]
fn bad_doorbell_stops_the_descriptor_under_way() {
    let (bench, accesses) = busy_bench();
    for channel in 0..CHANNELS as u32 {
        bench.set_reg(channel, CH_DOORBELL, ENTRIES);
        assert_eq!(bench.reg(channel, CH_ERROR), ERROR_INDEX);
    }
    assert_quiet(&accesses);
}

#[test]
fn pause_waits_for_the_access_under_way() {
    let inside = Arc::new(AtomicBool::new(false));
    let seen = inside.clone();
    let dma = FakeDma::mapping(RING..=END).with_hook(move |_, _| {
        seen.store(true, SeqCst);
        thread::yield_now();
        seen.store(false, SeqCst);
    });
    let bench = Bench::over(dma);
    bench.start(0, &[endless(OP_COPY)]);
    for _ in 0..1000 {
        bench.engine.pause(|| assert!(!inside.load(SeqCst)));
    }
    assert!(bench.is_busy(0));
}

// The function as a client sees it, without socket.

fn device() -> (Device, Arc<Engine>) {
    let engine = Arc::new(Engine::default());
    let memory = ClientMemory::new(GuestMemoryMmap::new());
    (Device::new(engine.clone(), Arc::new(FakeFaults::default()), Regions::new(memory)), engine)
}

fn read(device: &mut Device, region: u32, offset: u64, len: usize) -> Vec<u8> {
    let mut data = vec![0; len];
    device.region_read(region, offset, &mut data).unwrap();
    data
}

const BAR0: u32 = VFIO_PCI_BAR0_REGION_INDEX;
const BAR1: u32 = VFIO_PCI_BAR1_REGION_INDEX;
const CONFIG: u32 = VFIO_PCI_CONFIG_REGION_INDEX;
const COMMAND: u64 = 4;

#[test]
fn bars_answer_with_memory_space_only() {
    let (mut device, engine) = device();
    let size = channel_register(0, CH_RING_SIZE);
    assert_eq!(read(&mut device, BAR0, ID as u64, 4), [0xff; 4]);
    device.region_write(BAR0, size as u64, &8u32.to_le_bytes()).unwrap();
    assert_eq!(engine.read(size), 0);
    device.region_write(CONFIG, COMMAND, &[2, 0]).unwrap();
    assert_eq!(read(&mut device, BAR0, ID as u64, 4), b"VDMA");
    device.region_write(BAR0, size as u64, &8u32.to_le_bytes()).unwrap();
    assert_eq!(engine.read(size), 8);
    assert_eq!(read(&mut device, BAR1, 12, 1), [1]);
}

#[test]
fn registers_take_32_and_64_bits_aligned_only() {
    let (mut device, engine) = device();
    device.region_write(CONFIG, COMMAND, &[2, 0]).unwrap();
    let base = channel_register(1, CH_RING_BASE);
    device.region_write(BAR0, base as u64, &0x12_3456_7000u64.to_le_bytes()).unwrap();
    assert_eq!((engine.read(base), engine.read(base + 4)), (0x3456_7000, 0x12));
    assert_eq!(read(&mut device, BAR0, base as u64, 8), 0x12_3456_7000u64.to_le_bytes());
    for (offset, len) in [(0, 1), (0, 2), (2, 4), (4, 8), (0, 16), (1, 1)] {
        let offset = (base + offset) as u64 & !7 | offset as u64;
        assert_eq!(read(&mut device, BAR0, offset, len), vec![0xff; len], "{offset:#x} {len}");
        device.region_write(BAR0, offset, &vec![0; len]).unwrap();
        assert_eq!(engine.read(base), 0x3456_7000);
    }
}

#[test]
fn reads_beyond_a_region_are_refused_and_writes_ignored() {
    let (mut device, _) = device();
    let beyond = [
        (BAR0, BAR0_SIZE as u64, 4),
        (BAR0, u64::MAX, 4),
        (BAR1, 0xffe, 4),
        (CONFIG, 0, 4097),
        (2, 0, 1),
        (99, 0, 1),
    ];
    for (region, offset, len) in beyond {
        assert!(device.region_read(region, offset, &mut vec![0; len]).is_err());
        device.region_write(region, offset, &vec![0; len]).unwrap();
    }
}

#[test]
fn all_kinds_of_reset_bring_back_the_defaults() {
    let resets: [fn(&mut Device); 3] = [
        |device| device.reset().unwrap(),
        |device| device.disconnect(),
        |device| device.region_write(CONFIG, 0x48, &[0x10, 0xa8]).unwrap(),
    ];
    for reset in resets {
        let (mut device, engine) = device();
        let before = read(&mut device, CONFIG, 0, 4096);
        device.region_write(CONFIG, COMMAND, &[6, 0]).unwrap();
        device.region_write(CONFIG, 0x10, &[0xff; 4]).unwrap();
        let size = channel_register(0, CH_RING_SIZE);
        device.region_write(BAR0, size as u64, &8u32.to_le_bytes()).unwrap();
        reset(&mut device);
        assert_eq!(read(&mut device, CONFIG, 0, 4096), before);
        assert_eq!(engine.read(size), 0);
    }
}

#[test]
fn unmap_all_takes_everything_and_dirty_pages_are_not_known() {
    let engine = Arc::new(Engine::default());
    let memory = ClientMemory::new(GuestMemoryMmap::new());
    let mut device =
        Device::new(engine, Arc::new(FakeFaults::default()), Regions::new(memory.clone()));
    for address in [0, 0x1000] {
        let file = tempfile::tempfile().unwrap();
        file.set_len(0x1000).unwrap();
        device.dma_map(DmaMapFlags::READ_WRITE, 0, address, 0x1000, Some(file)).unwrap();
    }
    assert!(device.dma_unmap(DmaUnmapFlags::GET_DIRTY_PAGE_INFO, 0, 0x1000).is_err());
    assert_eq!(memory.memory().num_regions(), 2);
    device.dma_unmap(DmaUnmapFlags::UNMAP_ALL, 0, 0).unwrap();
    assert_eq!(memory.memory().num_regions(), 0);
}

#[test]
fn impossible_interrupt_requests_are_refused() {
    let (mut device, _) = device();
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER;
    let none = trigger | VFIO_IRQ_SET_DATA_NONE;
    let events = trigger | VFIO_IRQ_SET_DATA_EVENTFD;
    let mask = VFIO_IRQ_SET_ACTION_MASK | VFIO_IRQ_SET_DATA_NONE;
    let msix = VFIO_PCI_MSIX_IRQ_INDEX;
    let refused = [
        (msix, none, 0, 33),
        (msix, none, u32::MAX, 2),
        (msix, events, 32, 1),
        (msix, mask, 0, 1),
        (msix, 0, 0, 1),
        (VFIO_PCI_INTX_IRQ_INDEX, events, 0, 1),
        (99, none, 0, 1),
    ];
    for (index, flags, start, count) in refused {
        let result = device.set_irqs(index, flags, start, count, vec![]);
        assert!(result.is_err(), "{index} {flags:#x} {start} {count}");
    }
    let accepted = [
        (msix, none, 0, 0),
        (msix, none, 0, 32),
        (msix, events, 31, 1),
        (VFIO_PCI_INTX_IRQ_INDEX, none, 0, 0),
        (VFIO_PCI_ERR_IRQ_INDEX, events, 0, 1),
    ];
    for (index, flags, start, count) in accepted {
        device.set_irqs(index, flags, start, count, vec![]).unwrap();
    }
}

// Over a socket.

/// A running accelerator whose accesses are not translated.
struct Served {
    accelerator: Option<Accelerator>,
    memory: ClientMemory,
    path: PathBuf,
    _directory: tempfile::TempDir,
}

impl Served {
    fn new() -> Self {
        let memory = ClientMemory::new(GuestMemoryMmap::new());
        Self::with_dma(memory.clone(), Arc::new(IdentityDma(memory)))
    }

    fn with_dma(memory: ClientMemory, dma: Arc<dyn Dma>) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("accelerator.sock");
        let listener = UnixListener::bind(&path).unwrap();
        let config = Config {
            name: "accelerator".into(),
            thread_suffix: "test".into(),
            memory: memory.clone(),
            dma,
            faults: Arc::new(FakeFaults::default()),
            on_thread_start: |_| {},
        };
        let accelerator = Accelerator::start(listener, config).unwrap();
        Self { accelerator: Some(accelerator), memory, path, _directory: directory }
    }

    fn client(&self) -> Client {
        Client::new(&self.path).unwrap()
    }

    fn regions(&self) -> usize {
        self.memory.memory().num_regions()
    }
}

fn guest_ram(client: &mut Client, address: u64, size: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(size).unwrap();
    client.dma_map(0, address, size, file.as_raw_fd()).unwrap();
    file
}

fn write32(client: &mut Client, channel: u32, register: u32, value: u32) {
    let offset = channel_register(channel, register) as u64;
    client.region_write(BAR0, offset, &value.to_le_bytes()).unwrap();
}

fn read32(client: &mut Client, offset: u32) -> u32 {
    let mut data = [0; 4];
    client.region_read(BAR0, offset as u64, &mut data).unwrap();
    u32::from_le_bytes(data)
}

/// Runs `work` as the first descriptor of channel 2; memory and bus master get enabled.
fn submit(client: &mut Client, ram: &File, work: &Descriptor) {
    ram.write_all_at(&work.to_bytes(), RING).unwrap();
    client.region_write(CONFIG, COMMAND, &[6, 0]).unwrap();
    let base = channel_register(2, CH_RING_BASE) as u64;
    client.region_write(BAR0, base, &RING.to_le_bytes()).unwrap();
    write32(client, 2, CH_RING_SIZE, ENTRIES);
    write32(client, 2, CH_VECTOR, 2);
    write32(client, 2, CH_CONTROL, CH_CONTROL_ENABLE);
    write32(client, 2, CH_DOORBELL, 1);
}

/// The whole way of one client: memory, registers, data, interrupt.
fn copy_as_client(served: &Served) {
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    ram.write_all_at(b"over the socket", SOURCE).unwrap();
    let event = EventFd::new(EFD_NONBLOCK).unwrap();
    let trigger = VFIO_IRQ_SET_ACTION_TRIGGER | VFIO_IRQ_SET_DATA_EVENTFD;
    client.set_irqs(VFIO_PCI_MSIX_IRQ_INDEX, trigger, 2, 1, &[event.as_raw_fd()]).unwrap();
    let flags = FLAG_COMPLETION | FLAG_INTERRUPT;
    submit(&mut client, &ram, &Descriptor { flags, ..descriptor(OP_COPY, 15, 0) });

    eventually("interrupt", || event.read().is_ok());
    assert_eq!(read32(&mut client, INT_STATUS), 1 << 2);
    let mut bytes = [0; COMPLETION_SIZE];
    ram.read_exact_at(&mut bytes, record_at(0)).unwrap();
    assert_eq!(Completion::from_bytes(&bytes), success(0, 15));
    let mut copied = [0; 15];
    ram.read_exact_at(&mut copied, TARGET).unwrap();
    assert_eq!(&copied, b"over the socket");
}

#[test]
fn client_copies_and_gets_its_interrupt() {
    copy_as_client(&Served::new());
}

#[test]
fn client_sees_a_pci_function() {
    let served = Served::new();
    let mut client = served.client();
    let mut id = [0; 4];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, [0xf4, 0x1a, 0xf0, 0x10]);
    let sizes = [0, 1, 2, 6, 7, 8].map(|index| client.region(index).unwrap().size);
    assert_eq!(sizes, [BAR0_SIZE as u64, BAR1_SIZE as u64, 0, 0, 4096, 0]);
    let counts = [0, 1, 2, 3, 4].map(|index| client.get_irq_info(index).unwrap().count);
    assert_eq!(counts, [0, 0, 32, 1, 0]);
}

#[test]
fn client_that_leaves_takes_its_memory_and_work_along() {
    let served = Served::new();
    for _ in 0..3 {
        copy_as_client(&served);
        eventually("memory gone", || served.regions() == 0);
    }
}

#[test]
fn unmapped_memory_is_out_of_reach() {
    let served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, TARGET);
    guest_ram(&mut client, TARGET, 0x4_0000);
    client.dma_unmap(TARGET, 0x4_0000).unwrap();
    assert_eq!(served.regions(), 1);
    submit(&mut client, &ram, &descriptor(OP_COPY, 8, 0));
    let mut bytes = [0; COMPLETION_SIZE];
    eventually("record", || {
        ram.read_exact_at(&mut bytes, record_at(0)).unwrap();
        bytes[0] != STATUS_PENDING
    });
    let record = Completion::from_bytes(&bytes);
    assert_eq!((record.status, record.fault_address), (STATUS_BUS_ERROR, TARGET));
}

#[test]
fn memory_changes_under_endless_work_are_safe() {
    let served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x4_0000);
    let work = Descriptor {
        source: 0x10_0000,
        destination: 0x20_0000,
        ..descriptor(OP_COPY, 0x10_0000, 0)
    };
    for _ in 0..20 {
        guest_ram(&mut client, 0x10_0000, 0x10_0000);
        guest_ram(&mut client, 0x20_0000, 0x10_0000);
        write32(&mut client, 2, CH_CONTROL, 0);
        submit(&mut client, &ram, &work);
        client.dma_unmap(0x10_0000, 0x10_0000).unwrap();
        client.dma_unmap(0x20_0000, 0x10_0000).unwrap();
        let status = channel_register(2, CH_STATUS);
        eventually("idle", || read32(&mut client, status) == STATE_RUNNING);
    }
}

#[test]
fn device_reset_over_the_socket_resets() {
    let served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    submit(&mut client, &ram, &descriptor(OP_NOOP, 0, 0));
    client.reset().unwrap();
    let mut command = [0; 2];
    client.region_read(CONFIG, COMMAND, &mut command).unwrap();
    assert_eq!(command, [0, 0]);
    assert_eq!(served.regions(), 1, "memory is the client's, not the function's");
}

// Clients that misbehave.

const VERSION_COMMAND: u16 = 1;
const HEADER: u32 = 16;

/// A message with a header that claims `size` bytes in all.
fn message(command: u16, size: u32, body: &[u8]) -> Vec<u8> {
    let mut message = vec![1, 0];
    message.extend(command.to_le_bytes());
    message.extend(size.to_le_bytes());
    message.extend([0; 8]);
    message.extend(body);
    message
}

fn version(json: &[u8]) -> Vec<u8> {
    let body = [&[0, 0, 1, 0], json].concat();
    message(VERSION_COMMAND, HEADER + body.len() as u32, &body)
}

/// Sends `bytes`, hangs up, and sees that the next client is served.
fn survives(served: &Served, bytes: &[u8]) {
    let mut stream = UnixStream::connect(&served.path).unwrap();
    stream.write_all(bytes).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    // The server may reset the connection as well as close it.
    let _ = stream.read_to_end(&mut Vec::new());
    drop(stream);
    let mut client = served.client();
    let mut id = [0; 2];
    client.region_read(CONFIG, 0, &mut id).unwrap();
    assert_eq!(id, VENDOR_ID.to_le_bytes());
}

#[test]
fn malformed_messages_cost_the_connection_at_most() {
    let served = Served::new();
    let read_bytes = |region: u32, count: u32| {
        let body = [&[0; 8][..], &region.to_le_bytes(), &count.to_le_bytes()].concat();
        message(9, HEADER + 16, &body)
    };
    let malformed = [
        vec![],
        vec![1, 0, 1],
        version(b"no json\0"),
        version(b"{\"capabilities\":{\"max_msg_fds\":-1}}\0"),
        version(b"{}"),
        version(b"{}\0{}\0"),
        version(b""),
        message(VERSION_COMMAND, 0, &[0; 4]),
        message(VERSION_COMMAND, u32::MAX, &[0; 64]),
        message(0, HEADER, &[]),
        message(99, u32::MAX, &[0; 99]),
        message(u16::MAX, 0, &[]),
        message(2, HEADER + 32, &[0xff; 32]),
        message(3, HEADER + 24, &[0xff; 24]),
        message(5, HEADER + 32, &[0xff; 32]),
        message(7, HEADER + 16, &[0xff; 16]),
        message(8, HEADER + 20, &[0xff; 20]),
        message(8, HEADER + 20, &[0; 8]),
        read_bytes(0, u32::MAX),
        read_bytes(u32::MAX, 4),
        message(10, HEADER + 16, &[0xff; 16]),
        vec![0xff; 4096],
    ];
    for bytes in malformed {
        survives(&served, &bytes);
    }
}

#[test]
fn client_that_hangs_up_amid_work_is_followed_by_the_next() {
    let memory = ClientMemory::new(GuestMemoryMmap::new());
    let dma = Arc::new(FakeDma::mapping(RING..=END));
    dma.put(RING, &endless(OP_COPY).to_bytes());
    let served = Served::with_dma(memory, dma.clone());
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    submit(&mut client, &ram, &endless(OP_COPY));
    assert_ne!(read32(&mut client, channel_register(2, CH_STATUS)) & CH_STATUS_BUSY, 0);
    drop(client);

    let mut client = served.client();
    client.region_write(CONFIG, COMMAND, &[2, 0]).unwrap();
    assert_eq!(read32(&mut client, channel_register(2, CH_STATUS)), STATE_DISABLED);
    assert_eq!(served.regions(), 0);
}

#[test]
fn drop_ends_both_threads() {
    let mut served = Served::new();
    drop(served.accelerator.take());
    let error = UnixStream::connect(&served.path).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "the server thread had the listener");
}

#[test]
fn drop_does_not_wait_for_a_client() {
    let mut served = Served::new();
    let mut client = served.client();
    let ram = guest_ram(&mut client, 0, 0x10_0000);
    submit(&mut client, &ram, &endless(OP_COPY));
    drop(served.accelerator.take());
    // The connection stays open, and its requests are handled.
    client.dma_unmap(0, 0x10_0000).unwrap();
    client.reset().unwrap();
}
