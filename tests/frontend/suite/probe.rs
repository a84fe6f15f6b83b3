//! PROBE.

use testing::front_end::feature;
use testing::request::status::*;
use testing::request::{attach, probe};
use testing::virtqueue::Reply;
use testing::vm::{EP0, EP1, NO_ENDPOINT, Vm};

const RESV_MEM: u16 = 1;
const RESERVED: u8 = 0;
const MSI: u8 = 1;
/// Bytes of a RESV_MEM property with its head.
const RESV_MEM_LEN: usize = 24;

/// Subtype, first and last address.
type Region = (u8, u64, u64);

/// Reads a property list as Linux does, and checks it on the way.
fn regions(properties: &[u8]) -> Vec<Region> {
    let le16 = |at: usize| u16::from_le_bytes(properties[at..at + 2].try_into().unwrap());
    let le64 = |at: usize| u64::from_le_bytes(properties[at..at + 8].try_into().unwrap());
    let mut found = Vec::new();
    let mut at = 0;
    while at < properties.len() && le16(at) != 0 {
        assert_eq!(le16(at), RESV_MEM, "a property that was not negotiated");
        assert_eq!(le16(at + 2), 20, "the length excludes the head");
        assert_eq!(properties[at + 5..at + 8], [0; 3], "reserved");
        found.push((properties[at + 4], le64(at + 8), le64(at + 16)));
        at += 4 + usize::from(le16(at + 2));
    }
    assert_eq!(at % 8, 0, "the total is a multiple of 8");
    assert!(properties[at..].iter().all(|&byte| byte == 0), "the rest is zero");
    found
}

/// A probe that was answered: status and the properties in front of the tail at `size`.
fn answer(reply: &Reply, size: usize) -> (u8, &[u8]) {
    assert_eq!(reply.len as usize, reply.data.len(), "used.len is not the writable length");
    assert_eq!(reply.data[size + 1..size + 4], [0; 3], "tail.reserved");
    assert!(reply.data[size + 4..].iter().all(|&byte| byte == 0), "rest");
    (reply.data[size], &reply.data[..size])
}

fn probe_size(vm: &mut Vm) -> usize {
    vm.front_end.config().probe_size as usize
}

#[cfg(target_arch = "x86_64")]
#[test]
fn the_only_default_property_is_the_msi_region_of_x86() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    for endpoint in [EP0, EP1] {
        let reply = vm.send(&probe(endpoint, size));
        let (status, properties) = answer(&reply, size);
        assert_eq!(status, OK);
        assert_eq!(regions(properties), [(MSI, 0xfee0_0000, 0xfeef_ffff)]);
    }
}

#[test]
fn reserved_regions_of_the_command_line_are_properties() {
    let mut vm = Vm::new(
        "--reserved-region 0x8000000-0x80fffff,type=msi \
         --reserved-region 0x1000-0x1fff,type=reserved \
         --reserved-region 0x40000000-0x7fffffff",
    );
    let size = probe_size(&mut vm);
    let reply = vm.send(&probe(EP0, size));
    let (status, properties) = answer(&reply, size);
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
fn there_is_at_most_one_msi_region_and_no_overlap() {
    let mut vm = Vm::new("--reserved-region 0x1000-0x1fff --reserved-region 0x2000-0x2fff");
    let size = probe_size(&mut vm);
    let reply = vm.send(&probe(EP0, size));
    let mut found = regions(answer(&reply, size).1);
    found.sort_by_key(|region| region.1);
    assert!(found.windows(2).all(|pair| pair[0].2 < pair[1].1), "{found:x?}");
    assert!(found.iter().filter(|region| region.0 == MSI).count() <= 1, "{found:x?}");
    assert!(found.contains(&(RESERVED, 0x1000, 0x1fff)), "{found:x?}");
    assert!(found.contains(&(RESERVED, 0x2000, 0x2fff)), "{found:x?}");
}

#[test]
fn the_reserved_bytes_of_the_request_are_ignored() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let expected = vm.send(&probe(EP0, size));
    for offset in [1, 2, 3, 8, 40, 71] {
        assert_eq!(vm.send(&probe(EP0, size).patched(offset, 0xff)), expected);
    }
}

#[test]
fn the_answer_does_not_depend_on_an_attachment() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let expected = vm.send(&probe(EP0, size));
    vm.ok(attach(1, EP0));
    assert_eq!(vm.send(&probe(EP0, size)), expected);
}

#[test]
fn an_unknown_endpoint_is_no_entity_and_has_no_property() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let reply = vm.send(&probe(NO_ENDPOINT, size));
    let (status, properties) = answer(&reply, size);
    assert_eq!(status, NOENT);
    assert_eq!(regions(properties), []);
}

#[test]
fn too_small_a_buffer_is_invalid_and_gets_no_property() {
    let mut vm = Vm::new("--reserved-region 0x1000-0x1fff --reserved-region 0x2000-0x2fff");
    for size in (0..probe_size(&mut vm)).filter(|size| *size < 2 * RESV_MEM_LEN) {
        let reply = vm.send(&probe(EP0, size));
        let (status, properties) = answer(&reply, size);
        assert_eq!(status, INVAL, "{size} bytes");
        assert!(properties.iter().all(|&byte| byte == 0), "{size} bytes: {properties:x?}");
    }
    // Without room for a tail there is nothing to say.
    for room in 0..4 {
        assert!(vm.send(&probe(EP0, 0).writable(room)).is_unwritten());
    }
}

#[test]
fn a_larger_buffer_has_the_tail_behind_probe_size_bytes() {
    let mut vm = Vm::new("");
    let size = probe_size(&mut vm);
    let expected = vm.send(&probe(EP0, size));
    for more in [1, 4, 100, 4096] {
        let reply = vm.send(&probe(EP0, size + more));
        let (status, properties) = answer(&reply, size);
        assert_eq!((status, properties), answer(&expected, size));
    }
}

#[test]
fn without_the_feature_the_request_comes_back_unwritten() {
    let mut vm = Vm::realized("");
    vm.features &= !feature::PROBE;
    vm.start();
    let size = probe_size(&mut vm);
    assert!(vm.send(&probe(EP0, size)).is_unwritten());
    vm.ok(attach(1, EP0));
}
