//! Translation of DMA: mappings, permissions and attachments.

use testing::accel::{AccessError, fault_read, fault_write, ring_fault};
use testing::memory::PAGE;
use testing::request::{READ, RW, WRITE, attach, detach, map, unmap};
use testing::vm::{DATA, EP0, EP1, HIGH, Vm};

const IOVA: u64 = 0x7000_0000;

/// Maps one page at `IOVA`.
fn map_page(vm: &mut Vm, domain: u32, phys: u64, flags: u32) {
    vm.ok(map(domain, IOVA, IOVA + PAGE - 1, phys, flags));
}

#[test]
fn dma_accesses_mapped_guest_physical_address() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    for (page, phys) in [DATA, DATA + 5 * PAGE, HIGH.0].into_iter().enumerate() {
        let iova = IOVA + page as u64 * PAGE;
        vm.ok(map(1, iova, iova + PAGE - 1, phys, RW));
        let text = format!("page {page}").into_bytes();
        vm.ram.write(phys + 0x123, &text);
        assert_eq!(vm.accel(0).read(iova + 0x123, 6).unwrap(), text);
        vm.accel(0).write(iova + 0xff8, &[page as u8; 8]).unwrap();
        assert_eq!(vm.ram.read(phys + 0xff8, 8), [page as u8; 8]);
    }
    // Adjacent mappings to scattered pages.
    let data: Vec<u8> = (0..=255).collect();
    vm.accel(0).write(IOVA + PAGE - 100, &data).unwrap();
    assert_eq!(vm.ram.read(DATA + PAGE - 100, 100), data[..100]);
    assert_eq!(vm.ram.read(DATA + 5 * PAGE, 156), data[100..]);
}

#[test]
fn mappings_at_both_ends_of_address_space_are_accessible() {
    const TOP: u64 = u64::MAX - 0xfff;
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.ok(map(1, 0, PAGE - 1, DATA, RW));
    vm.ok(map(1, TOP, u64::MAX, DATA + PAGE, RW));
    vm.ram.fill(DATA, 2 * PAGE as usize, 7);
    assert_eq!(vm.accel(0).read(0, PAGE as usize).unwrap(), [7; 4096]);
    assert_eq!(vm.accel(0).read(TOP, PAGE as usize).unwrap(), [7; 4096]);
    vm.accel(0).write(u64::MAX, &[1]).unwrap();
    assert_eq!(vm.ram.read(DATA + 2 * PAGE - 1, 1), [1]);
    vm.ok(unmap(1, TOP, u64::MAX));
    assert_eq!(vm.accel(0).read(u64::MAX, 1), fault_read(u64::MAX));
    assert_eq!(vm.accel(0).read(0, 1).unwrap(), [7]);
}

#[test]
fn write_requires_write_permission_of_mapping() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    map_page(&mut vm, 1, DATA, READ);
    vm.ram.write(DATA, b"read-only");
    assert_eq!(vm.accel(0).write(IOVA, b"overwrite"), fault_write(IOVA));
    assert_eq!(vm.ram.read(DATA, 9), b"read-only");
    assert_eq!(vm.accel(0).read(IOVA, 9).unwrap(), b"read-only");
}

#[test]
fn read_requires_read_permission_of_mapping() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    map_page(&mut vm, 1, DATA, WRITE);
    assert_eq!(vm.accel(0).read(IOVA, 8), fault_read(IOVA));
    vm.accel(0).write(IOVA, b"write-only").unwrap();
    assert_eq!(vm.ram.read(DATA, 10), b"write-only");
}

#[test]
fn access_faults_at_end_of_mapping() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    map_page(&mut vm, 1, DATA, RW);
    vm.ram.fill(DATA, 2 * PAGE as usize, 0);
    assert_eq!(vm.accel(0).write(IOVA + PAGE - 4, &[9; 8]), fault_write(IOVA + PAGE));
    assert_eq!(vm.ram.read(DATA + PAGE - 4, 8), [9, 9, 9, 9, 0, 0, 0, 0]);
    assert_eq!(vm.accel(0).read(IOVA - 4, 8), fault_read(IOVA - 4));
}

#[test]
fn access_after_unmap_faults() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    for _ in 0..20 {
        map_page(&mut vm, 1, DATA, RW);
        vm.accel(0).read(IOVA, 8).unwrap();
        vm.ok(unmap(1, IOVA, IOVA + PAGE - 1));
        assert_eq!(vm.accel(0).read(IOVA, 8), fault_read(IOVA));
    }
}

#[test]
fn access_after_remap_uses_new_mapping() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    for page in 0..20 {
        let phys = DATA + page * PAGE;
        vm.ram.write(phys, &[page as u8]);
        map_page(&mut vm, 1, phys, RW);
        assert_eq!(vm.accel(0).read(IOVA, 1).unwrap(), [page as u8]);
        vm.ok(unmap(1, IOVA, IOVA + PAGE - 1));
    }
}

#[test]
fn rejected_unmap_keeps_mapping() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA, IOVA + 2 * PAGE - 1, DATA, RW));
    vm.expect(testing::request::status::RANGE, unmap(1, IOVA, IOVA + PAGE - 1));
    vm.accel(0).read(IOVA, 2 * PAGE as usize).unwrap();
}

#[test]
fn detach_removes_access_to_mappings() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    map_page(&mut vm, 1, DATA, RW);
    vm.accel(0).read(IOVA, 8).unwrap();
    vm.ok(detach(1, EP0));
    let accel = vm.accel(0);
    assert_eq!(accel.read(IOVA, 8), ring_fault(accel));
    // A new domain with the same number does not contain them.
    vm.attach_accel(1, 0);
    assert_eq!(vm.accel(0).read(IOVA, 8), fault_read(IOVA));
}

#[test]
fn attach_to_other_domain_replaces_translation() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    map_page(&mut vm, 1, DATA, RW);
    vm.attach_accel(2, 1);
    vm.map_home(2, 0);
    vm.ok(map(2, IOVA + PAGE, IOVA + 2 * PAGE - 1, DATA, RW));
    vm.accel(0).read(IOVA, 8).unwrap();
    vm.ok(attach(2, EP0));
    assert_eq!(vm.accel(0).read(IOVA, 8), fault_read(IOVA));
    vm.accel(0).read(IOVA + PAGE, 8).unwrap();
}

#[test]
fn endpoints_of_a_domain_share_its_mappings() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.attach_accel(1, 1);
    map_page(&mut vm, 1, DATA, RW);
    vm.accel(0).write(IOVA, b"from 0 to 1").unwrap();
    assert_eq!(vm.accel(1).read(IOVA, 11).unwrap(), b"from 0 to 1");
    // Detaching one endpoint does not affect the other.
    vm.ok(detach(1, EP0));
    assert!(vm.accel(0).read(IOVA, 8).is_err());
    vm.accel(1).read(IOVA, 8).unwrap();
    vm.ok(unmap(1, IOVA, IOVA + PAGE - 1));
    assert_eq!(vm.accel(1).read(IOVA, 8), fault_read(IOVA));
}

#[test]
fn endpoints_of_separate_domains_have_separate_mappings() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    vm.attach_accel(2, 1);
    map_page(&mut vm, 1, DATA, RW);
    vm.accel(0).read(IOVA, 8).unwrap();
    assert_eq!(vm.accel(1).read(IOVA, 8), fault_read(IOVA));
    map_page(&mut vm, 2, DATA + PAGE, RW);
    vm.accel(0).write(IOVA, b"first").unwrap();
    vm.accel(1).write(IOVA, b"other").unwrap();
    assert_eq!(vm.ram.read(DATA, 5), b"first");
    assert_eq!(vm.ram.read(DATA + PAGE, 5), b"other");
    vm.ok(detach(2, EP1));
    vm.accel(0).read(IOVA, 8).unwrap();
}

#[test]
fn access_outside_memory_is_bus_error_without_event() {
    const NO_MEMORY: u64 = 1 << 40;
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    map_page(&mut vm, 1, NO_MEMORY, RW);
    let bus_error = Err(AccessError::Bus { address: IOVA, write: false });
    assert_eq!(vm.accel(0).read(IOVA, 8), bus_error);
    // The first event is that of the next access.
    vm.accel(0).read(0x1234_5000, 8).unwrap_err();
    assert_eq!(vm.events.receive().address, 0x1234_5000);
}

#[test]
fn memory_unmapped_by_client_is_not_accessible_until_reconnect() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    map_page(&mut vm, 1, DATA, RW);
    vm.accel(0).read(IOVA, 8).unwrap();
    vm.accel(0).unmap_memory();
    assert!(vm.accel(0).read(IOVA, 8).is_err());
    vm.drop_accel(0);
    vm.accel(0).read(IOVA, 8).unwrap();
}

#[test]
fn page_granule_of_16k_translates_whole_pages() {
    let mut vm = Vm::new("--boot-bypass off --page-size 16384");
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA, IOVA + 0x3fff, DATA, RW));
    vm.ram.fill(DATA, 0x4000, 3);
    assert_eq!(vm.accel(0).read(IOVA + 0x3fff, 1).unwrap(), [3]);
    assert_eq!(vm.accel(0).read(IOVA + 0x4000, 1), fault_read(IOVA + 0x4000));
}
