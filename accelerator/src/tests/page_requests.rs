//! Page requests of channels.

use super::server::Served;
use super::*;
use crate::dma::Pasid;
use crate::faults::{PageRequest, QueueFull, Response};
use std::sync::Mutex;

const ALL: Enables = Enables { bus_master: true, pasid: true, ats: true };

const PRI_CONTROL: usize = 0;
const PRI_STATUS: usize = 2;
const PRI_ALLOCATION: usize = 8;
const ENABLE: u8 = 1;
const RESET: u8 = 2;
const RESPONSE_FAILURE: u16 = 1 << 0;
const STOPPED: u16 = 1 << 8;
const PASID_REQUIRED: u16 = 1 << 15;

/// Enables the page request interface with an allocation of `allocation` requests.
fn enable_pri(engine: &Engine, allocation: u32) {
    for (byte, value) in (PRI_ALLOCATION..).zip(allocation.to_le_bytes()) {
        engine.write_pri(byte, value);
    }
    engine.write_pri(PRI_CONTROL, ENABLE);
}

fn pri_status(engine: &Engine) -> u16 {
    let registers = engine.read_pri();
    u16::from_le_bytes([registers[PRI_STATUS], registers[PRI_STATUS + 1]])
}

impl Bench {
    /// Returns a bench with page requests enabled.
    fn with_page_requests() -> Self {
        Self::with_allocation(PRI_CAPACITY)
    }

    fn with_allocation(pages: u32) -> Self {
        Self::with_pri(FakeDma::mapping(RING..=END), FakeFaults::default(), pages)
    }

    fn with_pri(dma: FakeDma, faults: FakeFaults, allocation: u32) -> Self {
        let bench = Self::with_faults(dma, faults);
        bench.engine.set_enables(ALL);
        enable_pri(&bench.engine, allocation);
        bench
    }

    /// Starts `work` on a channel with groups of up to `pages` pages.
    fn start_with_page_requests(&self, channel: u32, pages: u32, work: &[Descriptor]) {
        self.set_reg(channel, CH_GROUP_PAGES, pages);
        self.start_with(channel, CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST, work);
    }

    /// Submits `work` on a channel that is idle at entry 1.
    fn submit(&self, channel: u32, work: &[Descriptor]) {
        let base = RING + channel as u64 * PAGE;
        for (entry, descriptor) in (1..).zip(work) {
            self.dma.write_memory(base + entry * DESCRIPTOR_SIZE as u64, &descriptor.to_bytes());
        }
        self.set_reg(channel, CH_DOORBELL, 1 + work.len() as u32);
    }

    /// Starts a copy on channel 0 whose first destination page is unmapped, and returns the page
    /// request.
    fn start_missing_target(&self) -> PageRequest {
        self.dma.unmap(TARGET..=TARGET);
        self.start_with_page_requests(0, 1, &[descriptor(OP_COPY, PAGE, 0)]);
        self.request()
    }

    /// Waits for a group, and returns its requests.
    fn group(&self) -> Vec<PageRequest> {
        let mut requests = Vec::new();
        eventually("a group", || {
            requests.extend(self.faults.take_requests());
            requests.last().is_some_and(|request: &PageRequest| request.last)
        });
        requests
    }

    /// Waits for a group of one page.
    fn request(&self) -> PageRequest {
        let group = self.group();
        assert_eq!(group.len(), 1, "{group:?}");
        group[0]
    }

    /// Waits until every channel has had a slice: there is one between two slices of a channel.
    fn wait_for_round(&self) {
        self.start(30, &[descriptor(OP_NOOP, 0, 30), descriptor(OP_NOOP, 0, 31)]);
        self.wait(30);
        self.set_reg(30, CH_CONTROL, 0);
    }

    fn assert_waits(&self, channel: u32) {
        self.wait_for_round();
        assert!(self.is_busy(channel));
        assert!(self.faults.take_requests().is_empty());
        assert!(self.faults.take().is_empty());
    }

    /// Maps the page and responds with SUCCESS.
    fn resolve(&self, request: &PageRequest) {
        self.dma.map(request.address..=request.address, true);
        self.faults.respond(request, Response::Success);
    }

    fn assert_pages(&self, group: &[PageRequest], access: Access, first: u64, count: u64) {
        let expected = (0..count).map(|page| PageRequest {
            pasid: None,
            group: group[0].group,
            address: first + page * PAGE,
            access,
            last: page == count - 1,
        });
        assert_eq!(group, expected.collect::<Vec<_>>());
    }
}

// Requests.

#[test]
fn fault_becomes_page_request_and_success_continues() {
    let bench = Bench::with_page_requests();
    bench.dma.write_memory(SOURCE, &numbers(3 * PAGE as usize));
    bench.dma.unmap(TARGET + PAGE..=TARGET + PAGE);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_COPY, 3 * PAGE, 0)]);
    let group = bench.group();
    bench.assert_pages(&group, Access::Write, TARGET + PAGE, 1);
    bench.assert_waits(0);
    assert_eq!(bench.record(0), Completion::default());
    bench.resolve(&group[0]);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 3 * PAGE));
    assert_eq!(bench.dma.read_memory(TARGET, 3 * PAGE as usize), numbers(3 * PAGE as usize));
    assert!(bench.faults.take().is_empty());
}

#[test]
fn group_covers_rest_of_buffer_up_to_group_pages() {
    let cases = [
        // group pages, bytes, pages expected
        (0, 8 * PAGE, 1),
        (1, 8 * PAGE, 1),
        (3, 8 * PAGE, 3),
        (8, 8 * PAGE, 8),
        (u32::MAX, 8 * PAGE, 8),
        (9, 1, 1),
        (9, PAGE - 0x10, 1),
        (9, PAGE - 0xf, 2),
    ];
    for (pages, length, expected) in cases {
        let bench = Bench::with_page_requests();
        bench.dma.unmap(SOURCE..=SOURCE + 8 * PAGE);
        let source = if length < 8 * PAGE { SOURCE + 0x10 } else { SOURCE };
        bench.start_with_page_requests(
            0,
            pages,
            &[Descriptor { source, ..descriptor(OP_COPY, length, 0) }],
        );
        bench.assert_pages(&bench.group(), Access::Read, SOURCE, expected);
    }
}

#[test]
fn group_has_at_most_32_pages() {
    let bench = Bench::with_page_requests();
    let fill = Descriptor { destination: 1 << 30, ..descriptor(OP_FILL, 1 << 20, 0) };
    bench.start_with_page_requests(0, u32::MAX, &[fill]);
    bench.assert_pages(&bench.group(), Access::Write, 1 << 30, MAX_GROUP_PAGES as u64);
}

#[test]
fn requests_have_pasid_of_channel() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(TARGET..=TARGET);
    bench.set_reg(0, CH_PASID, CH_PASID_VALID | 77);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_FILL, 8, 0)]);
    let request = bench.request();
    assert_eq!(request.pasid, Some(Pasid(77)));
    bench.resolve(&request);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 8));
}

#[test]
fn repeated_fault_is_requested_with_new_index() {
    let bench = Bench::with_page_requests();
    let first = bench.start_missing_target();
    bench.faults.respond(&first, Response::Success);
    let second = bench.request();
    assert_ne!(second.group, first.group);
    assert_eq!(second, PageRequest { group: second.group, ..first });
    bench.faults.respond(&first, Response::Invalid);
    bench.assert_waits(0);
    bench.resolve(&second);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, PAGE));
}

#[test]
fn bus_error_makes_no_page_request() {
    let bench = Bench::with_page_requests();
    bench.dma.map_bus_error(TARGET..=TARGET);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_FILL, 8, 0)]);
    bench.wait(0);
    let status = STATUS_BUS_ERROR;
    assert_eq!(bench.record(0), Completion { status, ..fault(0, TARGET, FAULT_WRITE) });
    assert!(bench.faults.take_requests().is_empty());
}

#[test]
fn fault_is_unrecoverable_unless_all_enables_are_set() {
    let request = CH_CONTROL_PAGE_REQUEST;
    let cases = [
        (ALL, ENABLE, 1, 0),
        (Enables { ats: false, ..ALL }, ENABLE, 1, request),
        (ALL, 0, 1, request),
        (ALL, ENABLE, 0, request),
    ];
    for (allowed, control, allocation, flags) in cases {
        let bench = Bench::new();
        bench.engine.set_enables(allowed);
        bench.engine.write_pri(PRI_ALLOCATION, allocation);
        bench.engine.write_pri(PRI_CONTROL, control);
        bench.dma.unmap(TARGET..=TARGET);
        bench.start_with(0, CH_CONTROL_ENABLE | flags, &[descriptor(OP_FILL, 8, 0)]);
        bench.wait(0);
        assert_eq!(bench.record(0), fault(0, TARGET, FAULT_WRITE));
        assert_eq!(bench.faults.take(), [(TARGET, Access::Write, DmaCause::NotMapped)]);
        assert!(bench.faults.take_requests().is_empty());
    }
}

// Continuation.

/// Resolves all page requests until channel 0 is idle. Returns their number.
fn resolve_all(bench: &Bench) -> usize {
    let mut resolved = 0;
    eventually("channel idle", || {
        for request in bench.faults.take_requests() {
            resolved += 1;
            bench.dma.map(request.address..=request.address, true);
            if request.last {
                bench.faults.respond(&request, Response::Success);
            }
        }
        !bench.is_busy(0)
    });
    resolved
}

#[test]
fn fill_continues_with_correct_pattern_byte() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(TARGET..=TARGET + 3 * PAGE);
    let pattern = 0x8877_6655_4433_2211u64;
    let len = 3 * PAGE as usize;
    let destination = TARGET + 5;
    let fill = Descriptor { operand: pattern, destination, ..descriptor(OP_FILL, len as u64, 0) };
    bench.start_with_page_requests(0, 1, &[fill]);
    assert_eq!(resolve_all(&bench), 4);
    assert_eq!(bench.record(0), success(0, len as u64));
    let expected: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(len).collect();
    assert_eq!(bench.dma.read_memory(destination, len), expected);
}

#[test]
fn copy_continues_as_pages_of_both_buffers_are_mapped() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(TARGET..=TARGET + 2 * PAGE);
    bench.dma.unmap(SOURCE..=SOURCE + 2 * PAGE);
    let copy =
        Descriptor { source: SOURCE + 1, destination: TARGET + 7, ..descriptor(OP_COPY, 5000, 0) };
    bench.start_with_page_requests(0, 1, &[copy]);
    let first = bench.request();
    assert_eq!((first.address, first.access), (SOURCE, Access::Read));
    bench.dma.map(SOURCE..=SOURCE + PAGE, true);
    bench.dma.write_memory(SOURCE + 1, &numbers(5000));
    bench.faults.respond(&first, Response::Success);
    assert_eq!(resolve_all(&bench), 2);
    assert_eq!(bench.record(0), success(0, 5000));
    assert_eq!(bench.dma.read_memory(TARGET + 7, 5000), numbers(5000));
}

#[test]
fn crc32c_continues_after_page_request() {
    let bench = Bench::with_page_requests();
    bench.dma.write_memory(SOURCE, &numbers(2 * PAGE as usize));
    bench.dma.unmap(SOURCE + PAGE..=SOURCE + PAGE);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_CRC32C, 2 * PAGE, 0)]);
    bench.resolve(&bench.request());
    bench.wait(0);
    let mut data = numbers(2 * PAGE as usize);
    data[PAGE as usize..].fill(0);
    assert_eq!(bench.record(0).result, ::crc32c::crc32c(&data) as u64);
}

#[test]
fn compare_continues_to_difference_after_fault() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(TARGET + PAGE..=TARGET + PAGE);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_COMPARE, 2 * PAGE, 0)]);
    let request = bench.request();
    assert_eq!(request.access, Access::Read);
    bench.dma.map(TARGET + PAGE..=TARGET + PAGE, true);
    bench.dma.write_memory(TARGET + PAGE + 9, &[1]);
    bench.faults.respond(&request, Response::Success);
    bench.wait(0);
    let offset = PAGE + 9;
    let mismatch = Completion { status: STATUS_MISMATCH, result: offset, ..success(0, offset) };
    assert_eq!(bench.record(0), mismatch);
}

#[test]
fn ring_fault_becomes_page_request() {
    let bench = Bench::with_page_requests();
    let ring = END + 1;
    bench.enable_at_with(0, ring, CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
    bench.set_reg(0, CH_DOORBELL, 1);
    let group = bench.group();
    bench.assert_pages(&group, Access::Read, ring, 1);
    bench.dma.map(ring..=ring, true);
    bench.dma.write_memory(ring, &descriptor(OP_FILL, 8, 0).to_bytes());
    bench.faults.respond(&group[0], Response::Success);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 8));
}

#[test]
fn record_fault_becomes_page_request() {
    let bench = Bench::with_page_requests();
    bench.dma.map(RECORDS..=RECORDS, false);
    bench.start_with_page_requests(0, 32, &[descriptor(OP_FILL, 8, 0)]);
    let group = bench.group();
    bench.assert_pages(&group, Access::Write, RECORDS, 1);
    assert_eq!(bench.dma.read_memory(TARGET, 8), [0; 8]);
    bench.dma.write_memory(TARGET, &[1]);
    bench.resolve(&group[0]);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 8));
    assert_eq!(bench.dma.read_memory(TARGET, 1), [1], "the data is not written again");
}

// INVALID.

#[test]
fn invalid_completes_descriptor_with_fault_without_report() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(SOURCE + PAGE..=SOURCE + PAGE);
    let copy = Descriptor { source: SOURCE + 0x123, ..descriptor(OP_COPY, 3 * PAGE, 0) };
    bench.start_with_page_requests(0, 1, &[copy, descriptor(OP_FILL, 8, 1)]);
    bench.faults.respond(&bench.request(), Response::Invalid);
    bench.wait(0);
    let done = PAGE - 0x123;
    assert_eq!(bench.record(0), fault(done, SOURCE + PAGE, FAULT_PAGE_REQUEST));
    assert_eq!(bench.record(1), success(1, 8));
    assert!(bench.faults.take().is_empty());
}

#[test]
fn fault_address_is_not_rounded_to_page() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(TARGET..=TARGET);
    let fill = Descriptor { destination: TARGET + 0x321, ..descriptor(OP_FILL, 8, 0) };
    bench.start_with_page_requests(0, 1, &[fill]);
    let request = bench.request();
    assert_eq!(request.address, TARGET);
    bench.faults.respond(&request, Response::Invalid);
    bench.wait(0);
    assert_eq!(bench.record(0), fault(0, TARGET + 0x321, FAULT_WRITE | FAULT_PAGE_REQUEST));
}

#[test]
fn invalid_without_record_stops_channel() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(TARGET..=TARGET);
    bench.start_with_page_requests(0, 1, &[Descriptor { flags: 0, ..descriptor(OP_FILL, 8, 0) }]);
    bench.faults.respond(&bench.request(), Response::Invalid);
    bench.wait(0);
    bench.assert_error(ERROR_DESCRIPTOR | (STATUS_FAULT as u32) << 16, TARGET);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn invalid_for_ring_stops_channel() {
    let bench = Bench::with_page_requests();
    bench.enable_at_with(0, END + 1, CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
    bench.set_reg(0, CH_DOORBELL, 1);
    bench.faults.respond(&bench.request(), Response::Invalid);
    bench.wait(0);
    bench.assert_error(ERROR_RING_FAULT, END + 1);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn invalid_for_record_stops_channel() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(RECORDS..=RECORDS);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_FILL, 8, 0)]);
    bench.faults.respond(&bench.request(), Response::Invalid);
    bench.wait(0);
    bench.assert_error(ERROR_COMPLETION_FAULT, RECORDS + 8);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn record_can_be_requested_after_invalid() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(TARGET..=TARGET);
    bench.dma.unmap(RECORDS..=RECORDS);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_FILL, 8, 0)]);
    bench.faults.respond(&bench.request(), Response::Invalid);
    bench.resolve(&bench.request());
    bench.wait(0);
    assert_eq!(bench.record(0), fault(0, TARGET, FAULT_WRITE | FAULT_PAGE_REQUEST));
}

#[test]
fn invalid_group_is_retried_page_by_page() {
    let bench = Bench::with_page_requests();
    bench.dma.unmap(SOURCE..=SOURCE + 4 * PAGE);
    bench.start_with_page_requests(0, 8, &[descriptor(OP_CRC32C, 4 * PAGE, 0)]);
    let group = bench.group();
    bench.assert_pages(&group, Access::Read, SOURCE, 4);
    bench.faults.respond(&group[0], Response::Invalid);
    for page in 0..2 {
        let request = bench.request();
        assert_eq!(request.address, SOURCE + page * PAGE);
        bench.resolve(&request);
    }
    bench.faults.respond(&bench.request(), Response::Invalid);
    bench.wait(0);
    let record = Completion { result: 0, ..bench.record(0) };
    assert_eq!(record, fault(2 * PAGE, SOURCE + 2 * PAGE, FAULT_PAGE_REQUEST));

    bench.submit(0, &[descriptor(OP_CRC32C, 4 * PAGE, 0)]);
    bench.assert_pages(&bench.group(), Access::Read, SOURCE + 2 * PAGE, 2);
}

// FAILURE.

/// Returns a bench after the response FAILURE; channel 1 was busy, channel 2 idle.
fn failed_bench() -> Bench {
    let bench = Bench::with_page_requests();
    bench.start(1, &[endless(OP_COPY)]);
    bench.start(2, &[]);
    let request = bench.start_missing_target();
    bench.faults.respond(&request, Response::Failure);
    eventually("all channels stopped", || bench.engine.read(INT_STATUS) == 0b111);
    bench
}

fn assert_fails(bench: &Bench, channel: u32) {
    eventually("an error", || bench.reg(channel, CH_STATUS) == STATE_ERROR);
    assert_eq!(bench.reg(channel, CH_ERROR), ERROR_PAGE_RESPONSE);
    bench.set_reg(channel, CH_CONTROL, 0);
}

#[test]
fn failure_stops_every_enabled_channel() {
    let bench = failed_bench();
    (0..3).for_each(|channel| assert_fails(&bench, channel));
    assert_eq!(bench.reg(3, CH_STATUS), STATE_DISABLED);
    assert_eq!(pri_status(&bench.engine), PASID_REQUIRED | RESPONSE_FAILURE);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn channels_fail_after_failure_until_pri_reset() {
    let bench = failed_bench();
    let restart = || {
        (0..3).for_each(|channel| bench.set_reg(channel, CH_CONTROL, 0));
        bench.set_reg(0, CH_CONTROL, CH_CONTROL_ENABLE);
    };
    restart();
    assert_fails(&bench, 0);
    bench.engine.write_pri(PRI_STATUS, RESPONSE_FAILURE as u8);
    bench.engine.write(CONTROL, CONTROL_RESET);
    bench.set_reg(0, CH_RING_SIZE, ENTRIES);
    restart();
    assert_fails(&bench, 0);

    assert!(bench.engine.write_pri(PRI_CONTROL, RESET));
    assert_eq!(pri_status(&bench.engine), PASID_REQUIRED | STOPPED);
    bench.engine.write_pri(PRI_CONTROL, ENABLE);
    bench.resolve(&bench.start_missing_target());
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, PAGE));
}

#[test]
fn function_reset_clears_failure() {
    let bench = failed_bench();
    bench.engine.reset();
    assert_eq!(pri_status(&bench.engine), PASID_REQUIRED | STOPPED);
    bench.engine.set_enables(BUS_MASTER);
    bench.dma.map(TARGET..=TARGET, true);
    assert_eq!(bench.result(descriptor(OP_FILL, 8, 0)), success(0, 8));
}

#[test]
fn failure_stops_channels_without_bus_master() {
    let bench = Bench::with_page_requests();
    let request = bench.start_missing_target();
    bench.engine.set_enables(Enables { bus_master: false, ..ALL });
    bench.faults.respond(&request, Response::Failure);
    assert_fails(&bench, 0);
}

// Allocation.

#[test]
fn group_is_limited_to_allocation() {
    let bench = Bench::with_allocation(3);
    bench.dma.unmap(SOURCE..=SOURCE + 7 * PAGE);
    bench.start_with_page_requests(0, 8, &[descriptor(OP_COPY, 8 * PAGE, 0)]);
    bench.assert_pages(&bench.group(), Access::Read, SOURCE, 3);
}

#[test]
fn channel_waits_for_allocation_while_others_work() {
    let bench = Bench::with_allocation(2);
    bench.dma.unmap(SOURCE..=SOURCE + 7 * PAGE);
    let work = descriptor(OP_CRC32C, 4 * PAGE, 0);
    bench.start_with_page_requests(0, 2, &[work]);
    let first = bench.group();
    bench.start_with_page_requests(1, 2, &[Descriptor { source: SOURCE + 4 * PAGE, ..work }]);
    bench.assert_waits(1);
    bench.faults.respond(&first[0], Response::Success);
    let second = bench.group();
    bench.assert_pages(&second, Access::Read, SOURCE + 4 * PAGE, 2);
}

#[test]
fn waiting_channels_get_allocation_round_robin() {
    let bench = Bench::with_allocation(1);
    bench.dma.unmap(SOURCE..=TARGET - 1);
    for channel in [2, 0, 3, 1] {
        let source = SOURCE + channel * 2 * PAGE;
        let work = Descriptor { source, flags: 0, ..descriptor(OP_CRC32C, 2 * PAGE, 0) };
        bench.start_with_page_requests(channel as u32, 1, &[work]);
        bench.wait_for_round();
    }
    let mut order = Vec::new();
    for _ in 0..8 {
        let request = bench.request();
        order.push((request.address - SOURCE) / (2 * PAGE));
        bench.resolve(&request);
    }
    assert_eq!(order, [2, 0, 3, 1, 2, 0, 3, 1], "round robin");
}

#[test]
fn waiting_channel_retries_access_before_request() {
    let bench = Bench::with_allocation(1);
    let request = bench.start_missing_target();
    bench.start_with_page_requests(1, 1, &[descriptor(OP_COPY, PAGE, 1)]);
    bench.assert_waits(1);
    bench.resolve(&request);
    bench.wait(1);
    assert_eq!(bench.record(1), success(1, PAGE));
    assert!(bench.faults.take_requests().is_empty(), "the page was mapped already");
}

#[test]
fn rejected_request_is_repeated_when_capacity_is_available() {
    let capacity = Arc::new(AtomicBool::new(false));
    let has_capacity = capacity.clone();
    let faults =
        FakeFaults::with_hook(
            move |_, _| if has_capacity.load(SeqCst) { Ok(()) } else { Err(QueueFull) },
        );
    let bench = Bench::with_pri(FakeDma::mapping(RING..=END), faults, PRI_CAPACITY);
    bench.dma.unmap(TARGET..=TARGET);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_COPY, PAGE, 0)]);
    bench.faults.responder().capacity_available();
    bench.assert_waits(0);
    capacity.store(true, SeqCst);
    bench.assert_waits(0);
    bench.faults.responder().capacity_available();
    bench.resolve(&bench.request());
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, PAGE));
}

#[test]
fn doorbell_reset_to_head_unblocks_queue() {
    let bench = Bench::with_allocation(1);
    let request = bench.start_missing_target();
    for channel in [1, 2] {
        let work = Descriptor { flags: 0, ..descriptor(OP_COPY, PAGE, 0) };
        bench.start_with_page_requests(channel, 1, &[work]);
        bench.wait_for_round();
    }
    bench.set_reg(1, CH_DOORBELL, 0);
    bench.resolve(&request);
    bench.wait(2);
    assert_eq!(bench.reg(2, CH_HEAD), 1);
}

// Calls of the fault handler, and locks.

#[test]
fn response_during_request_is_accepted() {
    let dma = Arc::new(FakeDma::mapping(RING..=END));
    dma.unmap(TARGET..=TARGET + PAGE);
    let memory = dma.clone();
    let faults = FakeFaults::with_hook(move |responder, request| {
        memory.map(request.address..=request.address, true);
        if request.last {
            responder.respond(request.pasid, request.group, Response::Success);
        }
        responder.capacity_available();
        Ok(())
    });
    let bench = Bench::with_parts(dma, faults);
    bench.engine.set_enables(ALL);
    enable_pri(&bench.engine, 2);
    bench.start_with_page_requests(0, 2, &[descriptor(OP_COPY, 2 * PAGE, 0)]);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, 2 * PAGE));
    assert_eq!(bench.group().len(), 2);
}

#[test]
fn requests_hold_no_lock_and_reset_waits_for_them() {
    let (started, first) = mpsc::channel();
    let (go, barrier) = mpsc::channel::<()>();
    let barrier = Mutex::new(barrier);
    let faults = FakeFaults::with_hook(move |_, _| {
        started.send(()).unwrap();
        barrier.lock().unwrap().recv().unwrap();
        Ok(())
    });
    let bench = Bench::with_pri(FakeDma::mapping(RING..=END), faults, PRI_CAPACITY);
    bench.dma.unmap(TARGET..=TARGET);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_COPY, PAGE, 0)]);
    first.recv().unwrap();
    assert!(bench.is_busy(0), "registers are accessible during a request");
    let engine = bench.engine.clone();
    let reset = thread::spawn(move || engine.reset());
    for _ in 0..100 {
        thread::yield_now();
    }
    assert!(!reset.is_finished(), "the reset waits for the request");
    go.send(()).unwrap();
    reset.join().unwrap();
    assert_eq!(bench.reg(0, CH_STATUS), STATE_DISABLED);
}

#[test]
fn every_kind_of_reset_withdraws_without_locks() {
    let resets: [fn(&mut Device); 4] = [
        |device| device.reset().unwrap(),
        |device| device.disconnect(),
        |device| device.region_write(CONFIG, 0x48, &[0x10, 0xa8]).unwrap(),
        |device| device.region_write(CONFIG, PRI_CAPABILITY as u64 + 4, &[RESET, 0]).unwrap(),
    ];
    for reset in resets {
        let (faults, engine) = (Arc::new(FakeFaults::default()), Arc::new(Engine::default()));
        faults.connect(Responder::new(engine.clone()));
        let memory = Regions::new(ClientMemory::new(GuestMemoryMmap::new()));
        reset(&mut Device::new(engine, faults.clone(), memory));
        assert_eq!(faults.withdrawn(), 1);
    }
}

#[test]
fn panic_in_request_stops_only_its_channel() {
    let faults = FakeFaults::with_hook(|_, _| panic!("this test's bug"));
    let bench = Bench::with_pri(FakeDma::mapping(RING..=END), faults, PRI_CAPACITY);
    bench.dma.unmap(TARGET..=TARGET);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_COPY, PAGE, 0)]);
    bench.wait(0);
    bench.assert_error(ERROR_INTERNAL, 0);
    bench.start(1, &[descriptor(OP_FILL, 8, 1)]);
    bench.wait(1);
}

// Events while a channel waits.

#[test]
fn pause_and_stop_do_not_wait_for_response() {
    let bench = Bench::with_page_requests();
    bench.start_missing_target();
    bench.engine.pause(|| ());
    assert!(bench.is_busy(0));
    drop(bench);
}

#[test]
fn response_during_pause_applies_after_it() {
    let bench = Bench::with_page_requests();
    let request = bench.start_missing_target();
    bench.dma.map(TARGET..=TARGET, true);
    let engine = bench.engine.clone();
    let (entered, inside) = mpsc::channel();
    let responder = thread::spawn({
        let faults = bench.faults.clone();
        move || {
            inside.recv().unwrap();
            faults.respond(&request, Response::Success);
        }
    });
    engine.pause(|| entered.send(()).unwrap());
    responder.join().unwrap();
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, PAGE));
}

#[test]
fn disabled_channel_ignores_response_that_releases_allocation() {
    let stops: [fn(&Bench); 2] = [
        |bench| bench.set_reg(0, CH_CONTROL, 0),
        |bench| bench.engine.write(CONTROL, CONTROL_RESET),
    ];
    for stop in stops {
        let bench = Bench::with_allocation(1);
        let old = bench.start_missing_target();
        stop(&bench);
        assert_eq!(bench.reg(0, CH_STATUS), STATE_DISABLED);
        bench.start_with_page_requests(0, 1, &[descriptor(OP_COPY, PAGE, 0)]);
        bench.assert_waits(0);
        bench.faults.respond(&old, Response::Invalid);
        let new = bench.request();
        assert_ne!(new.group, old.group);
        bench.resolve(&new);
        bench.wait(0);
        assert_eq!(bench.record(0), success(0, PAGE));
        assert_eq!(pri_status(&bench.engine), PASID_REQUIRED);
    }
}

#[test]
fn function_reset_withdraws_requests() {
    let bench = Bench::with_allocation(1);
    let old = bench.start_missing_target();
    bench.engine.reset();
    bench.faults.respond(&old, Response::Failure);
    assert_eq!(pri_status(&bench.engine), PASID_REQUIRED | STOPPED);
    bench.engine.set_enables(ALL);
    enable_pri(&bench.engine, 1);
    let new = bench.start_missing_target();
    bench.resolve(&new);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, PAGE));
}

#[test]
fn response_without_bus_master_applies_later() {
    let bench = Bench::with_page_requests();
    let request = bench.start_missing_target();
    bench.engine.set_enables(Enables { bus_master: false, ..ALL });
    bench.resolve(&request);
    assert!(bench.is_busy(0));
    assert_eq!(bench.record(0), Completion::default());
    bench.engine.set_enables(ALL);
    bench.wait(0);
    assert_eq!(bench.record(0), success(0, PAGE));
}

#[test]
fn clearing_pasid_enable_fails_waiting_channel() {
    let bench = Bench::with_page_requests();
    bench.set_reg(0, CH_PASID, CH_PASID_VALID | 7);
    let request = bench.start_missing_target();
    bench.engine.set_enables(Enables { pasid: false, ..ALL });
    bench.wait(0);
    bench.assert_error(ERROR_CONFIG, 0);
    bench.faults.respond(&request, Response::Success);
    bench.wait_for_round();
    assert_eq!(bench.reg(0, CH_ERROR), ERROR_CONFIG);
}

#[test]
fn disabled_pri_accepts_responses_and_makes_no_requests() {
    let bench = Bench::with_allocation(2);
    bench.dma.unmap(TARGET + PAGE..=TARGET + PAGE);
    bench.dma.unmap(TARGET..=TARGET);
    bench.start_with_page_requests(0, 1, &[descriptor(OP_COPY, 2 * PAGE, 0)]);
    let request = bench.request();
    bench.engine.write_pri(PRI_CONTROL, 0);
    bench.assert_waits(0);
    assert_eq!(pri_status(&bench.engine), PASID_REQUIRED);
    bench.resolve(&request);
    bench.wait(0);
    assert_eq!(pri_status(&bench.engine), PASID_REQUIRED | STOPPED);
    assert_eq!(bench.record(0), fault(PAGE, TARGET + PAGE, FAULT_WRITE));
    assert_eq!(bench.faults.take(), [(TARGET + PAGE, Access::Write, DmaCause::NotMapped)]);
}

#[test]
fn disable_ends_wait_for_allocation() {
    let stops: [fn(&Bench); 2] = [
        |bench| assert!(!bench.engine.write_pri(PRI_CONTROL, 0)),
        |bench| bench.engine.set_enables(Enables { ats: false, ..ALL }),
    ];
    for stop in stops {
        let bench = Bench::with_allocation(1);
        bench.start_missing_target();
        bench.start_with_page_requests(1, 1, &[descriptor(OP_COPY, PAGE, 0)]);
        bench.assert_waits(1);
        stop(&bench);
        bench.wait(1);
        assert_eq!(bench.record(0), fault(0, TARGET, FAULT_WRITE));
        assert_eq!(bench.faults.take().len(), 1);
        assert!(bench.is_busy(0), "channel 0 still waits for its response");
    }
}

#[test]
fn pri_reset_continues_channels_without_response() {
    let bench = Bench::with_page_requests();
    let request = bench.start_missing_target();
    assert!(bench.engine.write_pri(PRI_CONTROL, RESET));
    bench.wait(0);
    assert_eq!(bench.record(0), fault(0, TARGET, FAULT_WRITE));
    bench.faults.respond(&request, Response::Failure);
    assert_eq!(pri_status(&bench.engine), PASID_REQUIRED | STOPPED);
}

// Many channels.

#[test]
fn channels_complete_with_responses_in_any_order() {
    let bench = Bench::with_allocation(5);
    let channels = 8;
    let len = 2 * PAGE as usize;
    bench.dma.write_memory(SOURCE, &numbers(len));
    bench.dma.unmap(TARGET..=TARGET + channels * 2 * PAGE - 1);
    for channel in 0..channels {
        let destination = TARGET + channel * len as u64;
        let copy = Descriptor { destination, ..descriptor(OP_COPY, len as u64, channel) };
        bench.start_with_page_requests(channel as u32, channel as u32 % 3, &[copy]);
    }
    // The newest group is completed first, and some pages are not mapped despite SUCCESS.
    let mut waiting = Vec::new();
    let mut responses = 0;
    eventually("all channels idle", || {
        waiting.extend(bench.faults.take_requests());
        if waiting.last().is_some_and(|request: &PageRequest| request.last) {
            let last = waiting.pop().unwrap();
            let group = waiting.extract_if(.., |request| request.group == last.group);
            for request in group.chain([last]) {
                if responses % 3 > 0 {
                    bench.dma.map(request.address..=request.address, true);
                }
            }
            responses += 1;
            bench.faults.respond(&last, Response::Success);
        }
        (0..channels).all(|channel| !bench.is_busy(channel as u32))
    });
    for channel in 0..channels {
        assert_eq!(bench.record(channel), success(channel, len as u64));
        assert_eq!(bench.dma.read_memory(TARGET + channel * len as u64, len), numbers(len));
    }
}

// vfio-user client.

#[test]
fn client_enables_pri_like_a_driver() {
    let served = Served::new();
    let mut client = served.client();
    let pri = PRI_CAPABILITY as u64;
    let read = |client: &mut Client, offset, len| {
        let mut data = vec![0; len];
        client.region_read(CONFIG, offset, &mut data).unwrap();
        data
    };
    assert_eq!(read(&mut client, pri + 4, 4), [0, 0, 0, 0x81]);
    assert_eq!(read(&mut client, pri + 8, 4), PRI_CAPACITY.to_le_bytes());
    client.region_write(CONFIG, pri + 4, &[RESET, 0]).unwrap();
    client.region_write(CONFIG, pri + 12, &32u32.to_le_bytes()).unwrap();
    client.region_write(CONFIG, pri + 4, &[ENABLE, 0]).unwrap();
    assert_eq!(read(&mut client, pri + 4, 4), [ENABLE, 0, 0, 0x80]);
    assert_eq!(read(&mut client, pri + 12, 4), 32u32.to_le_bytes());
    client.reset().unwrap();
    assert_eq!(read(&mut client, pri + 4, 12), [0, 0, 0, 0x81, 64, 0, 0, 0, 0, 0, 0, 0]);
}
