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

/// Starts a driver that has negotiated PASIDs. Unattached endpoints are blocked.
fn vm() -> Vm {
    let mut vm = Vm::realized("--boot-bypass off");
    vm.features |= feature::PASID;
    vm.boot();
    vm
}

/// Attaches a PASID of endpoint 0 and maps the memory that its accelerator requires.
fn attach_accel(vm: &mut Vm, domain: u32, pasid: u32) {
    vm.ok(attach_pasid(domain, EP0, pasid));
    vm.map_home(domain, 0);
    vm.accel(0).use_pasid(Some(pasid));
}

#[test]
fn pasids_are_hidden_without_the_negotiated_feature() {
    let mut vm = Vm::realized("");
    assert_ne!(vm.front_end.features & feature::PASID, 0);
    vm.boot();
    vm.expect(INVAL, attach_pasid(1, EP0, PASID));
    vm.ok(attach(1, EP0));
    // Flags and PASID are then reserved, and ignored in DETACH.
    vm.ok(detach_pasid(1, EP0, PASID));
    let size = vm.front_end.config().probe_size as usize;
    let reply = vm.send(&probe(EP0, size));
    assert_eq!(reply.data[24..size], vec![0; size - 24], "only the MSI region is returned");
}

#[test]
fn probe_returns_pasid_width() {
    let mut vm = vm();
    let size = vm.front_end.config().probe_size as usize;
    let reply = vm.send(&probe(EP0, size));
    assert_eq!(reply.data[24..32], [0x01, 0x08, 4, 0, 20, 0, 0, 0]);
    assert_eq!(reply.data[32..size], vec![0; size - 32]);
}

#[test]
fn attach_and_detach_reject_invalid_pasid_requests() {
    let mut vm = vm();
    let attach_raw = |flags, pasid| attach_with(1, EP0, flags).patched(16, pasid);
    vm.table([
        ("PASID without flag", attach_raw(0, 5), INVAL),
        ("unknown flag", attach_raw(F_PASID | 4, 5), INVAL),
        ("unknown endpoint", attach_pasid(1, NO_ENDPOINT, PASID), NOENT),
        ("PASID 0", attach_pasid(1, EP0, 0), RANGE),
        ("PASID of 21 bits", attach_pasid(1, EP0, 1 << 20), RANGE),
        ("PASID with bypass flag", attach_raw(F_PASID | ATTACH_BYPASS, 5), UNSUPP),
        ("detach of unattached PASID", detach_pasid(1, EP0, PASID), NOENT),
        ("highest PASID", attach_pasid(1, EP0, (1 << 20) - 1), OK),
        ("same PASID again", attach_pasid(1, EP0, (1 << 20) - 1), OK),
        ("detach from wrong domain", detach_pasid(2, EP0, (1 << 20) - 1), INVAL),
        ("detach of endpoint without PASID", detach(1, EP0), INVAL),
        ("same PASID of another endpoint", detach_pasid(1, EP1, (1 << 20) - 1), NOENT),
        ("unknown flag in detach", detach_pasid(1, EP0, 5).patched(12, 3), INVAL),
        ("detach", detach_pasid(1, EP0, (1 << 20) - 1), OK),
        ("second detach", detach_pasid(1, EP0, (1 << 20) - 1), NOENT),
        ("endpoint to bypass domain", attach_with(7, EP0, ATTACH_BYPASS), OK),
        ("PASID to bypass domain", attach_pasid(7, EP0, PASID), INVAL),
    ]);
}

#[test]
fn pasids_and_endpoint_have_separate_address_spaces() {
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
fn dma_with_unattached_pasid_is_blocked() {
    let mut vm = vm();
    vm.attach_accel(1, 0);
    vm.accel(0).use_pasid(Some(PASID));
    let blocked: Result<Vec<u8>, AccessError> = ring_fault(vm.accel(0));
    assert_eq!(vm.accel(0).read(IOVA, 1), blocked);
    // Bypass does not apply to PASIDs.
    vm.ok(detach(1, EP0));
    vm.front_end.write_config(36, &[1]);
    assert_eq!(vm.accel(0).read(DATA, 1), blocked);
    vm.accel(0).use_pasid(None);
    vm.accel(0).read(DATA, 1).unwrap();
}

#[test]
fn domain_is_shared_by_pasid_and_endpoint() {
    let mut vm = vm();
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.ok(attach_pasid(1, EP0, PASID));
    vm.accel(0).use_pasid(Some(PASID));
    vm.accel(0).write(IOVA, b"shared").unwrap();
    attach_accel(&mut vm, 2, PASID);
    assert_eq!(
        vm.accel(0).read(IOVA, 1),
        fault_read(IOVA),
        "moved to a domain without the mapping"
    );
    vm.ok(attach_pasid(1, EP0, PASID));
    vm.expect(NOENT, unmap(2, 0, u64::MAX));
    assert_eq!(vm.accel(0).read(IOVA, 6).unwrap(), b"shared");
}

#[test]
fn detach_of_endpoint_keeps_pasids_and_reset_removes_them() {
    let mut vm = vm();
    vm.attach_accel(1, 0);
    attach_accel(&mut vm, 2, PASID);
    vm.ok(map(2, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.ok(detach(1, EP0));
    vm.accel(0).write(IOVA, b"still here").unwrap();
    vm.reset();
    vm.expect(NOENT, detach_pasid(2, EP0, PASID));
    let blocked: Result<Vec<u8>, AccessError> = ring_fault(vm.accel(0));
    assert_eq!(vm.accel(0).read(IOVA, 1), blocked);
}

#[test]
fn unmap_and_detach_block_dma_with_pasid() {
    let mut vm = vm();
    attach_accel(&mut vm, 2, PASID);
    vm.ok(map(2, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.accel(0).write(IOVA, b"x").unwrap();
    vm.ok(unmap(2, IOVA, IOVA + PAGE - 1));
    assert_eq!(vm.accel(0).write(IOVA, b"y"), fault_write(IOVA));
    vm.ok(detach_pasid(2, EP0, PASID));
    let blocked: Result<(), AccessError> = ring_fault(vm.accel(0));
    assert_eq!(vm.accel(0).write(IOVA, b"y"), blocked);
}

#[test]
fn accelerator_requires_pasid_capability_to_be_enabled() {
    let mut vm = vm();
    attach_accel(&mut vm, 2, PASID);
    vm.accel(0).enable_pasids(false);
    let blocked = AccessError::Channel { error: regs::ERROR_CONFIG, address: 0 };
    assert_eq!(vm.accel(0).write(DATA, b"x"), Err(blocked));
    vm.accel(0).enable_pasids(true);
    vm.ok(map(2, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.accel(0).write(IOVA, b"x").unwrap();
}

#[test]
fn limits_count_pasids_like_endpoints() {
    let mut vm = Vm::realized("--max-domains 2 --max-endpoints-per-domain 2");
    vm.features |= feature::PASID;
    vm.boot();
    vm.table([
        ("first PASID", attach_pasid(1, EP0, 1), OK),
        ("second PASID", attach_pasid(1, EP0, 2), OK),
        ("beyond limit of domain", attach_pasid(1, EP0, 3), NOMEM),
        ("second domain", attach_pasid(2, EP0, 3), OK),
        ("beyond limit of domains", attach_pasid(3, EP0, 4), NOMEM),
        ("detach", detach_pasid(1, EP0, 1), OK),
        ("third PASID after detach", attach_pasid(1, EP0, 3), OK),
    ]);
}
