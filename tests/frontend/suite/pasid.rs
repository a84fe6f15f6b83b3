//! The PASID extension (`docs/page-requests.md`).

use testing::accel::{AccessError, fault_read, fault_write, regs, ring_fault};
use testing::front_end::feature;
use testing::memory::PAGE;
use testing::request::status::*;
use testing::request::{
    ATTACH_BYPASS, READ, RW, attach, attach_pasid, attach_with, detach, detach_pasid, map, probe,
    unmap,
};
use testing::vm::{DATA, EP0, EP1, NO_ENDPOINT, Vm};

const IOVA: u64 = 0x7000_0000;
const PASID: u32 = 0x12345;
const F_PASID: u32 = 2;

/// Unattached endpoints are blocked, and the driver knows PASIDs.
fn vm() -> Vm {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.features |= feature::PASID;
    vm.boot();
    vm
}

/// Attaches a PASID of endpoint 0 and maps what its accelerator needs.
fn attach_accel(vm: &mut Vm, domain: u32, pasid: u32) {
    vm.ok(attach_pasid(domain, EP0, pasid));
    vm.map_home(domain, 0);
    vm.accel(0).use_pasid(Some(pasid));
}

#[test]
fn the_feature_is_offered_and_a_driver_that_does_not_accept_it_sees_nothing_of_it() {
    let mut vm = Vm::realized("");
    assert_ne!(vm.front_end.features & feature::PASID, 0);
    vm.boot();
    vm.expect(INVAL, attach_pasid(1, EP0, PASID));
    vm.ok(attach(1, EP0));
    // Flags and PASID are reserved bytes then, and those of DETACH are ignored.
    vm.ok(detach_pasid(1, EP0, PASID));
    let size = vm.front_end.config().probe_size as usize;
    let reply = vm.send(&probe(EP0, size));
    assert_eq!(reply.data[24..size], vec![0; size - 24], "only the MSI region is shown");
}

#[test]
fn probe_shows_the_width_of_pasids() {
    let mut vm = vm();
    let size = vm.front_end.config().probe_size as usize;
    let reply = vm.send(&probe(EP0, size));
    assert_eq!(reply.data[24..32], [0x01, 0x08, 4, 0, 20, 0, 0, 0]);
    assert_eq!(reply.data[32..size], vec![0; size - 32]);
}

#[test]
fn attach_and_detach_answer_with_the_status_of_each_mistake() {
    let mut vm = vm();
    let attach_raw = |flags, pasid| attach_with(1, EP0, flags).patched(16, pasid);
    vm.table([
        ("a PASID without the flag", attach_raw(0, 5), INVAL),
        ("an unknown flag", attach_raw(F_PASID | 4, 5), INVAL),
        ("no such endpoint", attach_pasid(1, NO_ENDPOINT, PASID), NOENT),
        ("PASID 0", attach_pasid(1, EP0, 0), RANGE),
        ("a PASID of 21 bits", attach_pasid(1, EP0, 1 << 20), RANGE),
        ("a PASID in bypass", attach_raw(F_PASID | ATTACH_BYPASS, 5), UNSUPP),
        ("never attached", detach_pasid(1, EP0, PASID), NOENT),
        ("the widest PASID", attach_pasid(1, EP0, (1 << 20) - 1), OK),
        ("the same again", attach_pasid(1, EP0, (1 << 20) - 1), OK),
        ("from another domain", detach_pasid(2, EP0, (1 << 20) - 1), INVAL),
        ("the endpoint itself", detach(1, EP0), INVAL),
        ("the same PASID of another endpoint", detach_pasid(1, EP1, (1 << 20) - 1), NOENT),
        ("an unknown flag", detach_pasid(1, EP0, 5).patched(12, 3), INVAL),
        ("what is attached", detach_pasid(1, EP0, (1 << 20) - 1), OK),
        ("twice", detach_pasid(1, EP0, (1 << 20) - 1), NOENT),
        ("a bypass domain", attach_with(7, EP0, ATTACH_BYPASS), OK),
        ("a PASID into it", attach_pasid(7, EP0, PASID), INVAL),
    ]);
}

#[test]
fn each_pasid_and_the_endpoint_itself_have_address_spaces_of_their_own() {
    let mut vm = vm();
    vm.attach_accel(1, 0);
    for (domain, text) in [(1, b"own"), (2, b"two"), (3, b"3rd")] {
        if domain > 1 {
            attach_accel(&mut vm, domain, domain);
        }
        let phys = DATA + u64::from(domain) * PAGE;
        vm.ok(map(domain, IOVA, IOVA + PAGE - 1, phys, READ));
        vm.ram.write(phys, text);
    }
    for (pasid, text) in [(None, b"own"), (Some(2), b"two"), (Some(3), b"3rd"), (None, b"own")] {
        vm.accel(0).use_pasid(pasid);
        assert_eq!(vm.accel(0).read(IOVA, 3).unwrap(), text, "PASID {pasid:?}");
        assert_eq!(vm.accel(0).write(IOVA, b"x"), fault_write(IOVA), "PASID {pasid:?}");
    }
}

#[test]
fn nothing_is_reached_through_a_pasid_that_is_not_attached() {
    let mut vm = vm();
    vm.attach_accel(1, 0);
    vm.accel(0).use_pasid(Some(PASID));
    let refused: Result<Vec<u8>, AccessError> = ring_fault(vm.accel(0));
    assert_eq!(vm.accel(0).read(IOVA, 1), refused);
    // Nor when the endpoint bypasses the IOMMU.
    vm.ok(detach(1, EP0));
    vm.front_end.write_config(36, &[1]);
    assert_eq!(vm.accel(0).read(DATA, 1), refused);
    vm.accel(0).use_pasid(None);
    vm.accel(0).read(DATA, 1).unwrap();
}

#[test]
fn a_domain_can_be_shared_by_pasids_and_endpoints_and_a_pasid_be_moved() {
    let mut vm = vm();
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.ok(attach_pasid(1, EP0, PASID));
    vm.accel(0).use_pasid(Some(PASID));
    vm.accel(0).write(IOVA, b"shared").unwrap();
    attach_accel(&mut vm, 2, PASID);
    assert_eq!(vm.accel(0).read(IOVA, 1), fault_read(IOVA), "moved to a domain without it");
    vm.ok(attach_pasid(1, EP0, PASID));
    vm.expect(NOENT, unmap(2, 0, u64::MAX));
    assert_eq!(vm.accel(0).read(IOVA, 6).unwrap(), b"shared");
}

#[test]
fn pasids_outlive_the_detach_of_their_endpoint_but_not_a_reset() {
    let mut vm = vm();
    vm.attach_accel(1, 0);
    attach_accel(&mut vm, 2, PASID);
    vm.ok(map(2, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.ok(detach(1, EP0));
    vm.accel(0).write(IOVA, b"still here").unwrap();
    vm.reset();
    vm.expect(NOENT, detach_pasid(2, EP0, PASID));
    let refused: Result<Vec<u8>, AccessError> = ring_fault(vm.accel(0));
    assert_eq!(vm.accel(0).read(IOVA, 1), refused);
}

#[test]
fn after_unmap_and_detach_nothing_is_reached_through_the_pasid() {
    let mut vm = vm();
    attach_accel(&mut vm, 2, PASID);
    vm.ok(map(2, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.accel(0).write(IOVA, b"x").unwrap();
    vm.ok(unmap(2, IOVA, IOVA + PAGE - 1));
    assert_eq!(vm.accel(0).write(IOVA, b"y"), fault_write(IOVA));
    vm.ok(detach_pasid(2, EP0, PASID));
    let refused: Result<(), AccessError> = ring_fault(vm.accel(0));
    assert_eq!(vm.accel(0).write(IOVA, b"y"), refused);
}

#[test]
fn the_accelerator_uses_no_pasid_that_its_configuration_space_does_not_enable() {
    let mut vm = vm();
    attach_accel(&mut vm, 2, PASID);
    vm.accel(0).enable_pasids(false);
    let refused = AccessError::Channel { error: regs::ERROR_CONFIG, address: 0 };
    assert_eq!(vm.accel(0).write(DATA, b"x"), Err(refused));
    vm.accel(0).enable_pasids(true);
    vm.ok(map(2, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.accel(0).write(IOVA, b"x").unwrap();
}

#[test]
fn pasids_count_where_endpoints_do() {
    let mut vm = Vm::realized("--max-domains 2 --max-endpoints-per-domain 2");
    vm.features |= feature::PASID;
    vm.boot();
    vm.table([
        ("the first", attach_pasid(1, EP0, 1), OK),
        ("the second", attach_pasid(1, EP0, 2), OK),
        ("one too many for the domain", attach_pasid(1, EP0, 3), NOMEM),
        ("another domain", attach_pasid(2, EP0, 3), OK),
        ("one domain too many", attach_pasid(3, EP0, 4), NOMEM),
        ("room again", detach_pasid(1, EP0, 1), OK),
        ("and used", attach_pasid(1, EP0, 3), OK),
    ]);
}
