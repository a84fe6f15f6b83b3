//! DMA of endpoints in bypass mode and of blocked endpoints, from power-on.

use testing::accel::{Accel, ring_fault};
use testing::memory::GuestMemory;
use testing::request::{ATTACH_BYPASS, attach, attach_with, detach};
use testing::vm::{DATA, ENDPOINTS, EP0, HIGH, LOW, Vm, daemon};

/// Checks that the first endpoint accesses guest memory by guest-physical addresses.
#[track_caller]
fn assert_bypassed(vm: &mut Vm) {
    for address in [DATA, HIGH.0] {
        vm.ram.write(address, b"by physical");
        assert_eq!(vm.accel(0).read(address, 11).unwrap(), b"by physical");
        vm.accel(0).write(address, b"written").unwrap();
        assert_eq!(vm.ram.read(address, 7), b"written");
    }
}

/// Checks that all accesses of the first endpoint are blocked.
#[track_caller]
fn assert_blocked(vm: &mut Vm) {
    let accel = vm.accel(0);
    assert_eq!(accel.read(DATA, 8), ring_fault(accel));
}

#[test]
fn boot_bypass_allows_dma_before_front_end_connects() {
    let daemon = daemon("");
    let ram = GuestMemory::new(&[LOW]);
    let mut accel = Accel::connect(&daemon.endpoint_socket(0), &ram, 0x1_0000);
    ram.write(DATA, b"firmware");
    assert_eq!(accel.read(DATA, 8).unwrap(), b"firmware");
}

#[test]
fn dma_is_blocked_before_front_end_connects_without_boot_bypass() {
    let daemon = daemon("--boot-bypass off");
    let ram = GuestMemory::new(&[LOW]);
    let mut accel = Accel::connect(&daemon.endpoint_socket(0), &ram, 0x1_0000);
    assert_eq!(accel.read(DATA, 8), ring_fault(&accel));
}

#[test]
fn bypass_applies_before_and_after_driver_start() {
    let mut vm = Vm::realized("");
    assert_bypassed(&mut vm);
    vm.start();
    assert_bypassed(&mut vm);
    assert_eq!(vm.front_end.config().bypass, 1);
}

#[test]
fn unattached_endpoint_is_blocked_without_bypass() {
    let mut vm = Vm::realized("--boot-bypass off");
    assert_blocked(&mut vm);
    vm.start();
    assert_blocked(&mut vm);
}

#[test]
fn writing_bypass_takes_effect_immediately() {
    let mut vm = Vm::realized("");
    for round in 0..2 {
        vm.front_end.write_bypass(0);
        assert_blocked(&mut vm);
        vm.front_end.write_bypass(1);
        assert_bypassed(&mut vm);
        if round == 0 {
            vm.start();
        }
    }
}

#[test]
fn device_reset_keeps_bypass() {
    let mut vm = Vm::strict();
    vm.front_end.write_bypass(1);
    vm.reset();
    assert_eq!(vm.front_end.config().bypass, 1);
    assert_bypassed(&mut vm);
    vm.front_end.write_bypass(0);
    vm.reset();
    assert_eq!(vm.front_end.config().bypass, 0);
    assert_blocked(&mut vm);
}

#[test]
fn boot_bypass_option_applies_to_each_front_end() {
    for (option, initial) in [("--boot-bypass on", 1), ("--boot-bypass off", 0)] {
        let mut vm = Vm::new(option);
        assert_eq!(vm.front_end.config().bypass, initial);
        vm.front_end.write_bypass(1 - initial);
        vm.replace_front_end();
        assert_eq!(vm.front_end.config().bypass, initial);
        if initial == 1 { assert_bypassed(&mut vm) } else { assert_blocked(&mut vm) }
    }
}

#[test]
fn writing_bypass_does_not_affect_attached_endpoint() {
    let mut vm = Vm::new("");
    vm.attach_accel(1, 0);
    for bypass in [0, 1] {
        vm.front_end.write_bypass(bypass);
        assert!(vm.accel(0).read(DATA, 8).is_err());
    }
}

#[test]
fn detach_and_reset_return_endpoint_to_bypass() {
    let mut vm = Vm::new("");
    vm.attach_accel(1, 0);
    assert!(vm.accel(0).read(DATA, 8).is_err());
    vm.ok(detach(1, EP0));
    assert_bypassed(&mut vm);
    vm.attach_accel(1, 0);
    vm.reset();
    assert_bypassed(&mut vm);
}

#[test]
fn bypass_domain_translates_to_guest_physical_addresses() {
    let mut vm = Vm::strict();
    assert_blocked(&mut vm);
    vm.ok(attach_with(1, EP0, ATTACH_BYPASS));
    assert_bypassed(&mut vm);
    vm.ok(attach(2, EP0));
    assert_blocked(&mut vm);
    vm.ok(attach_with(1, EP0, ATTACH_BYPASS));
    vm.ok(detach(1, EP0));
    assert_blocked(&mut vm);
}

#[test]
fn attach_to_bypass_domain_does_not_affect_other_endpoint() {
    let mut vm = Vm::strict();
    vm.ok(attach_with(1, ENDPOINTS[1].1, ATTACH_BYPASS));
    assert_blocked(&mut vm);
    vm.ram.write(DATA, b"other");
    assert_eq!(vm.accel(1).read(DATA, 5).unwrap(), b"other");
}
