//! ATTACH and DETACH requests.

use testing::front_end::feature;
use testing::request::status::*;
use testing::request::{ATTACH_BYPASS, RW, attach, attach_with, detach, map};
use testing::vm::{EP0, EP1, NO_ENDPOINT, Vm};

/// Returns whether a domain exists: MAP does not return NOENT.
fn exists(vm: &mut Vm, domain: u32, page: u64) -> bool {
    match vm.status(&map(domain, page << 12, (page << 12) + 0xfff, 0, RW)) {
        OK => true,
        NOENT => false,
        status => panic!("status {status}"),
    }
}

#[test]
fn attach_rejects_nonzero_reserved_bytes() {
    let mut vm = Vm::new("");
    for offset in 16..20 {
        vm.expect(INVAL, attach(1, EP0).patched(offset, 1));
    }
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn attach_rejects_unknown_flags() {
    let mut vm = Vm::new("");
    for bit in 1..32 {
        vm.expect(INVAL, attach_with(1, EP0, 1 << bit));
    }
    vm.expect(INVAL, attach_with(1, EP0, ATTACH_BYPASS | 2));
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn attach_rejects_bypass_flag_without_bypass_config() {
    let mut vm = Vm::realized("");
    vm.features &= !feature::BYPASS_CONFIG;
    vm.start();
    vm.expect(INVAL, attach_with(1, EP0, ATTACH_BYPASS));
    vm.ok(attach(1, EP0));
}

#[test]
fn attach_and_detach_reject_unknown_endpoints() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.table([
        ("attach", attach(2, NO_ENDPOINT), NOENT),
        ("attach to an existing domain", attach(1, NO_ENDPOINT), NOENT),
        ("attach of an adjacent PCI function", attach(2, EP0 + 1), NOENT),
        ("attach of an endpoint in another segment", attach(2, EP1 & 0xffff), NOENT),
        ("attach of the highest endpoint ID", attach(2, u32::MAX), NOENT),
        ("detach", detach(1, NO_ENDPOINT), NOENT),
    ]);
    assert!(!exists(&mut vm, 2, 0));
}

#[test]
fn reserved_bytes_of_head_are_ignored() {
    let mut vm = Vm::new("");
    for offset in 1..4 {
        vm.ok(attach(1, EP0).patched(offset, 0xff));
        vm.ok(detach(1, EP0).patched(offset, 0xff));
    }
}

#[test]
fn all_domain_ids_are_valid() {
    let mut vm = Vm::new("");
    for domain in [0, 1, 0x8000_0000, u32::MAX] {
        vm.ok(attach(domain, EP0));
        assert!(exists(&mut vm, domain, 0));
        vm.ok(detach(domain, EP0));
    }
}

#[test]
fn attach_second_endpoint_shares_domain() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.ok(attach(1, EP1));
    // The domain exists until its last endpoint is detached.
    vm.ok(detach(1, EP0));
    assert!(exists(&mut vm, 1, 0));
    vm.ok(detach(1, EP1));
    assert!(!exists(&mut vm, 1, 1));
}

#[test]
fn attach_to_same_domain_keeps_mappings() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    assert!(exists(&mut vm, 1, 0));
    vm.ok(attach(1, EP0));
    vm.expect(INVAL, map(1, 0, 0xfff, 0, RW));
    vm.ok(detach(1, EP0));
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn attach_moves_endpoint_to_new_domain() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.ok(attach(2, EP0));
    assert!(!exists(&mut vm, 1, 0), "the previous domain has no endpoint left");
    assert!(exists(&mut vm, 2, 0));
    vm.expect(INVAL, detach(1, EP0));
    vm.ok(detach(2, EP0));
}

#[test]
fn attach_rejects_bypass_flag_that_differs_from_domain() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.expect(INVAL, attach_with(1, EP1, ATTACH_BYPASS));
    vm.ok(detach(1, EP0));
    // The domain no longer exists and can be created as a bypass domain.
    vm.ok(attach_with(1, EP0, ATTACH_BYPASS));
    vm.expect(INVAL, attach(1, EP1));
    vm.ok(attach_with(1, EP1, ATTACH_BYPASS));
}

#[test]
fn rejected_attach_keeps_previous_attachment() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.ok(attach_with(2, EP1, ATTACH_BYPASS));
    vm.table([
        ("bypass domain", attach(2, EP0), INVAL),
        ("unknown flag", attach_with(3, EP0, 4), INVAL),
        ("reserved byte", attach(3, EP0).patched(16, 1), INVAL),
        ("truncated", attach(3, EP0).cut(19), INVAL),
    ]);
    assert!(exists(&mut vm, 1, 0));
    assert!(!exists(&mut vm, 3, 0));
    vm.ok(detach(1, EP0));
}

#[test]
fn detach_ignores_reserved_bytes() {
    let mut vm = Vm::new("");
    for offset in 12..20 {
        vm.ok(attach(1, EP0));
        vm.ok(detach(1, EP0).patched(offset, 0xff));
    }
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn detach_rejects_wrong_domain() {
    let mut vm = Vm::new("");
    vm.expect(INVAL, detach(1, EP0));
    vm.ok(attach(1, EP0));
    vm.ok(attach(2, EP1));
    vm.expect(INVAL, detach(2, EP0));
    vm.expect(INVAL, detach(3, EP0));
    assert!(exists(&mut vm, 1, 0) && exists(&mut vm, 2, 0));
}
