//! PROBE requests.

use testing::front_end::feature;
use testing::request::status::*;
use testing::request::{attach, probe};
use testing::virtqueue::Reply;
use testing::vm::{EP0, EP1, NO_ENDPOINT, Vm};

const RESV_MEM: u16 = 1;
const RESERVED: u8 = 0;
const MSI: u8 = 1;
/// Size of a RESV_MEM property with its head, in bytes.
const RESV_MEM_LEN: usize = 24;

/// Subtype, first and last address.
type Region = (u8, u64, u64);

/// Parses and checks a property list like Linux.
fn regions(properties: &[u8]) -> Vec<Region> {
    let le16 = |at: usize| u16::from_le_bytes(properties[at..at + 2].try_into().unwrap());
    let le64 = |at: usize| u64::from_le_bytes(properties[at..at + 8].try_into().unwrap());
    let mut found = Vec::new();
    let mut at = 0;
    while at < properties.len() && le16(at) != 0 {
        assert_eq!(le16(at), RESV_MEM, "property that was not negotiated");
        assert_eq!(le16(at + 2), 20, "the length excludes the head");
        assert_eq!(properties[at + 5..at + 8], [0; 3], "reserved");
        found.push((properties[at + 4], le64(at + 8), le64(at + 16)));
        at += 4 + usize::from(le16(at + 2));
    }
    assert_eq!(at % 8, 0, "total size is a multiple of 8");
    assert!(properties[at..].iter().all(|&byte| byte == 0), "remaining bytes are zero");
    found
}

/// Returns the status of a reply, and the properties before its tail at offset `size`.
fn parse_reply(reply: &Reply, size: usize) -> (u8, &[u8]) {
    assert_eq!(reply.len as usize, reply.data.len(), "used length is the whole writable part");
    assert_eq!(reply.data[size + 1..size + 4], [0; 3], "tail.reserved");
    assert!(reply.data[size + 4..].iter().all(|&byte| byte == 0), "bytes after the tail");
    (reply.data[size], &reply.data[..size])
}

fn probe_size(vm: &mut Vm) -> usize {
    vm.front_end.config().probe_size as usize
}

#[cfg(target_arch = "x86_64")]
#[test]
fn probe_returns_msi_region_by_default() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    for endpoint in [EP0, EP1] {
        let reply = vm.send(&probe(endpoint, size));
        let (status, properties) = parse_reply(&reply, size);
        assert_eq!(status, OK);
        assert_eq!(regions(properties), [(MSI, 0xfee0_0000, 0xfeef_ffff)]);
    }
}

#[test]
fn probe_returns_reserved_regions_of_command_line() {
    let mut vm = Vm::new(
        "--reserved-region 0x8000000-0x80fffff,type=msi \
         --reserved-region 0x1000-0x1fff,type=reserved \
         --reserved-region 0x40000000-0x7fffffff",
    );
    let size = probe_size(&mut vm);
    let reply = vm.send(&probe(EP0, size));
    let (status, properties) = parse_reply(&reply, size);
    assert_eq!(status, OK);
    let mut found = regions(properties);
    found.sort_by_key(|region| region.1);
    assert_eq!(
        found,
        [
            (RESERVED, 0x1000, 0x1fff),
            (MSI, 0x800_0000, 0x80f_ffff),
            (RESERVED, 0x4000_0000, 0x7fff_ffff),
        ]
    );
}

#[test]
fn probe_returns_one_msi_region_and_no_overlaps() {
    let mut vm = Vm::new("--reserved-region 0x1000-0x1fff --reserved-region 0x2000-0x2fff");
    let size = probe_size(&mut vm);
    let reply = vm.send(&probe(EP0, size));
    let mut found = regions(parse_reply(&reply, size).1);
    found.sort_by_key(|region| region.1);
    assert!(found.windows(2).all(|pair| pair[0].2 < pair[1].1), "{found:x?}");
    assert!(found.iter().filter(|region| region.0 == MSI).count() <= 1, "{found:x?}");
    assert!(found.contains(&(RESERVED, 0x1000, 0x1fff)), "{found:x?}");
    assert!(found.contains(&(RESERVED, 0x2000, 0x2fff)), "{found:x?}");
}

#[test]
fn probe_ignores_reserved_bytes() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let expected = vm.send(&probe(EP0, size));
    for offset in [1, 2, 3, 8, 40, 71] {
        assert_eq!(vm.send(&probe(EP0, size).patched(offset, 0xff)), expected);
    }
}

#[test]
fn probe_result_does_not_depend_on_attachment() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let expected = vm.send(&probe(EP0, size));
    vm.ok(attach(1, EP0));
    assert_eq!(vm.send(&probe(EP0, size)), expected);
}

#[test]
fn probe_of_unknown_endpoint_returns_noent() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let reply = vm.send(&probe(NO_ENDPOINT, size));
    let (status, properties) = parse_reply(&reply, size);
    assert_eq!(status, NOENT);
    assert_eq!(regions(properties), []);
}

#[test]
fn probe_rejects_small_buffer_without_writing_properties() {
    let mut vm = Vm::new("--reserved-region 0x1000-0x1fff --reserved-region 0x2000-0x2fff");
    for size in (0..probe_size(&mut vm)).filter(|size| *size < 2 * RESV_MEM_LEN) {
        let reply = vm.send(&probe(EP0, size));
        let (status, properties) = parse_reply(&reply, size);
        assert_eq!(status, INVAL, "{size} bytes");
        assert!(properties.iter().all(|&byte| byte == 0), "{size} bytes: {properties:x?}");
    }
    // Without space for the tail, nothing is written.
    for size in 0..4 {
        assert!(vm.send(&probe(EP0, 0).writable(size)).is_unwritten());
    }
}

#[test]
fn probe_tail_follows_probe_size_bytes_in_larger_buffer() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let expected = vm.send(&probe(EP0, size));
    for more in [1, 4, 100, 4096] {
        let reply = vm.send(&probe(EP0, size + more));
        let (status, properties) = parse_reply(&reply, size);
        assert_eq!((status, properties), parse_reply(&expected, size));
    }
}

#[test]
fn probe_without_feature_is_returned_unwritten() {
    let mut vm = Vm::realized("");
    vm.features &= !feature::PROBE;
    vm.start();
    let size = probe_size(&mut vm);
    assert!(vm.send(&probe(EP0, size)).is_unwritten());
    vm.ok(attach(1, EP0));
}
