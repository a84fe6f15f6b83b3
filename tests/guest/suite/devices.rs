//! Translation of DMA, and the guest's reports of faults.

use super::{Guest, SMALL_GROUP, check_groups, for_each_guest, give_to_vfio};
use crate::vm::{A, B, Vm};

for_each_guest!(dma_is_translated_and_faults_are_reported, domains_are_shared_or_separate);

/// VFIO's group interface sends other requests to the IOMMU than its character devices.
#[test]
fn vfio_group_interface_works_like_character_devices() {
    dma_is_translated_and_faults_are_reported(SMALL_GROUP);
    domains_are_shared_or_separate(SMALL_GROUP);
}

fn dma_is_translated_and_faults_are_reported(guest: Guest) {
    let mut vm = guest.boot();
    check_groups(&mut vm);
    check_reserved_regions(&mut vm);
    give_to_vfio(&mut vm);
    for endpoint in [A, B] {
        let output = guest.dma(&mut vm, &format!("verify {endpoint}"));
        assert!(output.ends_with("verified 4194304 bytes"), "{output}");
    }

    // The report of an unaligned access has the exact address.
    let output = guest.dma(&mut vm, &format!("fault {A} --read --iova 0xdeadb00d"));
    assert_eq!(output, "FAULT, read at 0xdeadb00d after 0 bytes");
    vm.expect_faults(&[(A, 0xdead_b00d, 'R')]);

    // An access that starts in a mapping faults where it leaves it.
    guest.dma(&mut vm, &format!("fault {B} --write --iova 0xffff123456789000 --after 100"));
    vm.expect_faults(&[(B, 0xffff_1234_5678_9000, 'W')]);

    guest.dma(&mut vm, &format!("fault {A} --write --read-only --iova 0x7000"));
    vm.expect_faults(&[(A, 0x7000, 'W')]);

    guest.dma(&mut vm, &format!("unmap {B} --iova 0x5000000000"));
    vm.expect_faults(&[(B, 0x50_0000_0000, 'W'), (B, 0x50_0000_8000, 'W')]);
    vm.finish();
}

fn domains_are_shared_or_separate(guest: Guest) {
    let mut vm = guest.boot();
    give_to_vfio(&mut vm);
    guest.dma(&mut vm, &format!("two {A} {B} --iova 0x6000000000"));
    vm.expect_faults(&[A, B, B].map(|endpoint| (endpoint, 0x60_0000_0000, 'R')));

    // Programs that exit and drivers that are replaced leave no state.
    guest.dma(&mut vm, &format!("verify {A} --pages 64"));
    for endpoint in [A, B] {
        vm.run(&format!("echo 0000:{endpoint} >/sys/bus/pci/drivers/vfio-pci/unbind"));
    }
    check_groups(&mut vm);
    give_to_vfio(&mut vm);
    guest.dma(&mut vm, &format!("two {B} {A} --iova 0x6000000000"));
    vm.expect_faults(&[B, A, A].map(|endpoint| (endpoint, 0x60_0000_0000, 'R')));
    vm.finish();
}

/// Checks the result of PROBE: by default the window of message-signalled interrupts.
fn check_reserved_regions(vm: &mut Vm) {
    let file = format!("/sys/bus/pci/devices/0000:{A}/iommu_group/reserved_regions");
    let regions = vm.run(&format!("cat {file}"));
    assert_eq!(regions, "0x00000000fee00000 0x00000000feefffff msi");
}
