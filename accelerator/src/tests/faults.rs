//! Unrecoverable faults and bus errors.

use super::*;

#[test]
fn source_fault_at_page_boundary_reports_bytes_done() {
    let bench = Bench::new();
    bench.dma.write_memory(SOURCE, &numbers(2 * PAGE as usize));
    bench.dma.unmap(SOURCE + 2 * PAGE..=SOURCE + 2 * PAGE);
    let copy = Descriptor { source: SOURCE + 100, ..descriptor(OP_COPY, 4 * PAGE, 0) };
    let done = 2 * PAGE - 100;
    assert_eq!(bench.result(copy), fault(done, SOURCE + 2 * PAGE, 0));
    assert_eq!(bench.dma.read_memory(TARGET, done as usize), numbers(2 * PAGE as usize)[100..]);
    assert_eq!(bench.dma.read_memory(TARGET + done, 1), [0]);
    let reported = (SOURCE + 2 * PAGE, Access::Read, DmaCause::NotMapped);
    assert_eq!(bench.faults.take(), [reported]);
}

#[test]
fn destination_fault_is_reported_as_write() {
    let bench = Bench::new();
    bench.dma.map(TARGET + PAGE..=TARGET + PAGE, false);
    let record = bench.result(descriptor(OP_COPY, 2 * PAGE, 0));
    assert_eq!(record, fault(PAGE, TARGET + PAGE, FAULT_WRITE));
    let reported = (TARGET + PAGE, Access::Write, DmaCause::NotMapped);
    assert_eq!(bench.faults.take(), [reported]);
}

#[test]
fn only_the_fault_that_limits_progress_is_reported() {
    let bench = Bench::new();
    bench.dma.unmap(SOURCE + 2 * PAGE..=SOURCE + 2 * PAGE);
    bench.dma.unmap(TARGET + PAGE..=TARGET + PAGE);
    let record = bench.result(descriptor(OP_COPY, 4 * PAGE, 0));
    assert_eq!(record, fault(PAGE, TARGET + PAGE, FAULT_WRITE));
    assert_eq!(bench.faults.take().len(), 1);
}

#[test]
fn bytes_done_include_earlier_slices() {
    let bench = Bench::new();
    let at = TARGET + SLICE_BYTES as u64 + PAGE;
    bench.dma.unmap(at..=at);
    let record = bench.result(descriptor(OP_FILL, SLICE_BYTES as u64 * 2, 0));
    assert_eq!(record, fault(SLICE_BYTES as u64 + PAGE, at, FAULT_WRITE));
}

#[test]
fn difference_before_fault_completes_with_mismatch() {
    let bench = Bench::new();
    bench.dma.unmap(TARGET + PAGE..=TARGET + PAGE);
    let compare = descriptor(OP_COMPARE, 2 * PAGE, 0);
    assert_eq!(bench.result(compare), fault(PAGE, TARGET + PAGE, 0));
    assert_eq!(bench.faults.take().len(), 1);
    bench.set_reg(0, CH_CONTROL, 0);
    bench.dma.write_memory(TARGET + 8, &[1]);
    assert_eq!(bench.result(compare).status, STATUS_MISMATCH);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn fault_keeps_crc32c_of_bytes_done() {
    let bench = Bench::new();
    bench.dma.write_memory(SOURCE, &numbers(PAGE as usize));
    bench.dma.unmap(SOURCE + PAGE..=SOURCE + PAGE);
    let record = bench.result(descriptor(OP_CRC32C, 2 * PAGE, 0));
    let result = ::crc32c::crc32c(&numbers(PAGE as usize)) as u64;
    assert_eq!(record, Completion { result, ..fault(PAGE, SOURCE + PAGE, 0) });
}

#[test]
fn access_outside_memory_is_bus_error_without_report() {
    let bench = Bench::new();
    bench.dma.map_bus_error(TARGET + PAGE..=TARGET + PAGE);
    let record = bench.result(descriptor(OP_FILL, 2 * PAGE, 0));
    let status = STATUS_BUS_ERROR;
    assert_eq!(record, Completion { status, ..fault(PAGE, TARGET + PAGE, FAULT_WRITE) });
    assert!(bench.faults.take().is_empty());
}

#[test]
fn next_descriptor_runs_after_fault() {
    let bench = Bench::new();
    let bad = Descriptor { source: END + 1, ..descriptor(OP_COPY, 8, 0) };
    bench.run(&[bad, descriptor(OP_COPY, 8, 1)]);
    assert_eq!(bench.record(0).status, STATUS_FAULT);
    assert_eq!(bench.record(1), success(1, 8));
}

#[test]
fn ring_fault_stops_channel_until_disabled() {
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
fn ring_bus_error_stops_channel_without_report() {
    let bench = Bench::new();
    bench.dma.map_bus_error(RING..=RING);
    bench.enable_at(0, RING);
    bench.set_reg(0, CH_DOORBELL, 1);
    bench.wait(0);
    bench.assert_error(ERROR_RING_BUS, RING);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn record_fault_stops_channel() {
    let bench = Bench::new();
    bench.dma.map(RECORDS..=RECORDS, false);
    bench.run(&[descriptor(OP_FILL, 8, 0)]);
    bench.assert_error(ERROR_COMPLETION_FAULT, RECORDS + 8);
    assert_eq!(bench.faults.take(), [(RECORDS + 8, Access::Write, DmaCause::NotMapped)]);
}

#[test]
fn record_bus_error_stops_channel() {
    let bench = Bench::new();
    bench.dma.map_bus_error(RECORDS..=RECORDS);
    bench.run(&[descriptor(OP_FILL, 8, 0)]);
    bench.assert_error(ERROR_COMPLETION_BUS, RECORDS + 8);
    assert!(bench.faults.take().is_empty());
}

#[test]
fn misaligned_record_stops_channel() {
    let bench = Bench::new();
    let completion = RECORDS + 8;
    bench.run(&[Descriptor { completion, ..descriptor(OP_NOOP, 0, 0) }]);
    bench.assert_error(ERROR_COMPLETION_ALIGN, completion);
    assert_eq!(bench.dma.read_memory(RECORDS, 64), [0; 64]);
}

#[test]
fn failure_without_record_stops_channel() {
    let bench = Bench::new();
    let bad = Descriptor { flags: 0, source: END + 1, ..descriptor(OP_COPY, 8, 0) };
    bench.run(&[bad]);
    bench.assert_error(ERROR_DESCRIPTOR | (STATUS_FAULT as u32) << 16, END + 1);
    bench.set_reg(0, CH_CONTROL, 0);
    bench.run(&[Descriptor { flags: 0, ..descriptor(OP_COPY, 8, 0) }]);
    assert_eq!((bench.reg(0, CH_STATUS), bench.reg(0, CH_HEAD)), (STATE_RUNNING, 1));
}

#[test]
fn first_8_bytes_of_record_are_written_last() {
    let writes = Arc::new(std::sync::Mutex::new(Vec::new()));
    let log = writes.clone();
    let dma = FakeDma::mapping(RING..=END).with_hook(move |access, address| {
        if access == Access::Write {
            log.lock().unwrap().push(address);
        }
    });
    let bench = Bench::with_dma(dma);
    bench.result(descriptor(OP_FILL, 8, 0));
    assert_eq!(*writes.lock().unwrap(), [TARGET, RECORDS + 8, RECORDS]);
}
