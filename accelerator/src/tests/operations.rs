//! Operations and their completion records.

use super::*;

#[test]
fn noop_ignores_addresses_and_length() {
    let bench = Bench::new();
    let noop = Descriptor { source: u64::MAX, ..descriptor(OP_NOOP, u64::MAX, 0) };
    assert_eq!(bench.result(noop), success(0, 0));
}

#[test]
fn copy_spans_pages_and_slices() {
    let bench = Bench::new();
    let len = SLICE_BYTES + 5000;
    bench.dma.write_memory(SOURCE + 3, &numbers(len));
    let copy = Descriptor {
        source: SOURCE + 3,
        destination: TARGET + 1,
        ..descriptor(OP_COPY, len as u64, 0)
    };
    assert_eq!(bench.result(copy), success(0, len as u64));
    assert_eq!(bench.dma.read_memory(TARGET + 1, len), numbers(len));
    assert_eq!(bench.dma.read_memory(TARGET, 1), [0]);
    assert_eq!(bench.dma.read_memory(TARGET + 1 + len as u64, 1), [0]);
}

#[test]
fn fill_repeats_pattern_from_start_of_buffer() {
    let bench = Bench::new();
    let pattern = 0x8877_6655_4433_2211u64;
    let len = SLICE_BYTES + 21;
    let fill = Descriptor {
        operand: pattern,
        destination: TARGET + 5,
        ..descriptor(OP_FILL, len as u64, 0)
    };
    assert_eq!(bench.result(fill), success(0, len as u64));
    let expected: Vec<u8> = pattern.to_le_bytes().into_iter().cycle().take(len).collect();
    assert_eq!(bench.dma.read_memory(TARGET + 5, len), expected);
    assert_eq!(bench.dma.read_memory(TARGET + 5 + len as u64, 1), [0]);
}

#[test]
fn compare_returns_equality_or_first_difference() {
    let bench = Bench::new();
    let len = SLICE_BYTES + 100;
    bench.dma.write_memory(SOURCE, &numbers(len));
    bench.dma.write_memory(TARGET, &numbers(len));
    let compare = descriptor(OP_COMPARE, len as u64, 0);
    assert_eq!(bench.result(compare), success(0, len as u64));
    bench.set_reg(0, CH_CONTROL, 0);

    let offset = SLICE_BYTES as u64 + 50;
    bench.dma.write_memory(TARGET + offset, &[!numbers(len)[offset as usize]]);
    bench.dma.write_memory(TARGET + offset + 9, &[0; 9]);
    let found = bench.result(compare);
    let mismatch = Completion { status: STATUS_MISMATCH, result: offset, ..success(0, offset) };
    assert_eq!(found, mismatch);
}

#[test]
fn crc32c_matches_known_value_and_continues() {
    let bench = Bench::new();
    bench.dma.write_memory(SOURCE, b"123456789");
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
fn crc32c_spans_slices() {
    let bench = Bench::new();
    let data = numbers(SLICE_BYTES + 999);
    bench.dma.write_memory(SOURCE, &data);
    let record = bench.result(descriptor(OP_CRC32C, data.len() as u64, 0));
    assert_eq!(record.result, ::crc32c::crc32c(&data) as u64);
}

#[test]
fn invalid_descriptors_complete_with_their_status() {
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
fn buffer_can_end_at_last_address() {
    let bench = Bench::new();
    let crc = Descriptor { source: u64::MAX - 63, ..descriptor(OP_CRC32C, 64, 0) };
    assert_eq!(bench.result(crc).status, STATUS_SUCCESS);
}

#[test]
fn descriptors_run_in_order() {
    let bench = Bench::new();
    bench.dma.write_memory(SOURCE, b"chain");
    let first = descriptor(OP_COPY, 5, 0);
    let second =
        Descriptor { source: TARGET, destination: TARGET + 64, ..descriptor(OP_COPY, 5, 1) };
    let third =
        Descriptor { source: TARGET + 64, destination: SOURCE, ..descriptor(OP_COMPARE, 5, 2) };
    bench.run(&[first, second, third]);
    assert_eq!([0, 1, 2].map(|slot| bench.record(slot)), [0, 1, 2].map(|slot| success(slot, 5)));
}
