//! ATTACH and DETACH.

use testing::front_end::feature;
use testing::request::status::*;
use testing::request::{ATTACH_BYPASS, RW, attach, attach_with, detach, map};
use testing::vm::{EP0, EP1, NO_ENDPOINT, Vm};

/// A domain exists if it can be mapped to.
fn exists(vm: &mut Vm, domain: u32, page: u64) -> bool {
    match vm.status(&map(domain, page << 12, (page << 12) + 0xfff, 0, RW)) {
        OK => true,
        NOENT => false,
        status => panic!("status {status}"),
    }
}

#[test]
fn attach_with_a_reserved_byte_set_is_invalid() {
    let mut vm = Vm::new("");
    for offset in 16..20 {
        vm.expect(INVAL, attach(1, EP0).patched(offset, 1));
    }
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn attach_with_an_unknown_flag_is_invalid() {
    let mut vm = Vm::new("");
    for bit in 1..32 {
        vm.expect(INVAL, attach_with(1, EP0, 1 << bit));
    }
    vm.expect(INVAL, attach_with(1, EP0, ATTACH_BYPASS | 2));
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn attach_bypass_is_an_unknown_flag_without_the_feature() {
    let mut vm = Vm::realized("");
    vm.features &= !feature::BYPASS_CONFIG;
    vm.start();
    vm.expect(INVAL, attach_with(1, EP0, ATTACH_BYPASS));
    vm.ok(attach(1, EP0));
}

#[test]
fn an_unknown_endpoint_is_no_entity() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.table([
        ("attach", attach(2, NO_ENDPOINT), NOENT),
        ("attach to an existing domain", attach(1, NO_ENDPOINT), NOENT),
        ("attach of a function beside an endpoint", attach(2, EP0 + 1), NOENT),
        ("attach of an endpoint without its segment", attach(2, EP1 & 0xffff), NOENT),
        ("attach of the highest number", attach(2, u32::MAX), NOENT),
        ("detach", detach(1, NO_ENDPOINT), NOENT),
    ]);
    assert!(!exists(&mut vm, 2, 0));
}

#[test]
fn head_reserved_is_ignored() {
    let mut vm = Vm::new("");
    for offset in 1..4 {
        vm.ok(attach(1, EP0).patched(offset, 0xff));
        vm.ok(detach(1, EP0).patched(offset, 0xff));
    }
}

#[test]
fn any_domain_number_can_be_used() {
    let mut vm = Vm::new("");
    for domain in [0, 1, 0x8000_0000, u32::MAX] {
        vm.ok(attach(domain, EP0));
        assert!(exists(&mut vm, domain, 0));
        vm.ok(detach(domain, EP0));
    }
}

#[test]
fn an_existing_domain_takes_another_endpoint() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.ok(attach(1, EP1));
    // The domain lasts until the last one has gone.
    vm.ok(detach(1, EP0));
    assert!(exists(&mut vm, 1, 0));
    vm.ok(detach(1, EP1));
    assert!(!exists(&mut vm, 1, 1));
}

#[test]
fn attaching_twice_to_the_same_domain_keeps_it_attached() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    assert!(exists(&mut vm, 1, 0));
    vm.ok(attach(1, EP0));
    vm.expect(INVAL, map(1, 0, 0xfff, 0, RW));
    vm.ok(detach(1, EP0));
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn an_endpoint_that_is_attached_elsewhere_moves() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.ok(attach(2, EP0));
    assert!(!exists(&mut vm, 1, 0), "the domain it left was empty");
    assert!(exists(&mut vm, 2, 0));
    vm.expect(INVAL, detach(1, EP0));
    vm.ok(detach(2, EP0));
}

#[test]
fn a_bypass_flag_that_differs_from_the_domain_is_invalid() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.expect(INVAL, attach_with(1, EP1, ATTACH_BYPASS));
    vm.ok(detach(1, EP0));
    // Now the number is free for the other kind.
    vm.ok(attach_with(1, EP0, ATTACH_BYPASS));
    vm.expect(INVAL, attach(1, EP1));
    vm.ok(attach_with(1, EP1, ATTACH_BYPASS));
}

#[test]
fn a_refused_attach_leaves_the_endpoint_where_it_was() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    vm.ok(attach_with(2, EP1, ATTACH_BYPASS));
    vm.table([
        ("other kind", attach(2, EP0), INVAL),
        ("unknown flag", attach_with(3, EP0, 4), INVAL),
        ("reserved", attach(3, EP0).patched(16, 1), INVAL),
        ("cut short", attach(3, EP0).cut(19), INVAL),
    ]);
    assert!(exists(&mut vm, 1, 0));
    assert!(!exists(&mut vm, 3, 0));
    vm.ok(detach(1, EP0));
}

#[test]
fn detach_ignores_its_reserved_field() {
    let mut vm = Vm::new("");
    for offset in 12..20 {
        vm.ok(attach(1, EP0));
        vm.ok(detach(1, EP0).patched(offset, 0xff));
    }
    assert!(!exists(&mut vm, 1, 0));
}

#[test]
fn detach_from_a_domain_the_endpoint_is_not_in_is_invalid() {
    let mut vm = Vm::new("");
    vm.expect(INVAL, detach(1, EP0));
    vm.ok(attach(1, EP0));
    vm.ok(attach(2, EP1));
    vm.expect(INVAL, detach(2, EP0));
    vm.expect(INVAL, detach(3, EP0));
    assert!(exists(&mut vm, 1, 0) && exists(&mut vm, 2, 0));
}
