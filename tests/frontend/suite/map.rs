//! MAP.

use testing::request::status::*;
use testing::request::{ATTACH_BYPASS, MMIO, READ, RW, WRITE, attach, attach_with, map, unmap};
use testing::vm::{EP0, Vm};

const TOP: u64 = u64::MAX - 0xfff;

fn attached(args: &str) -> Vm {
    let mut vm = Vm::new(args);
    vm.ok(attach(1, EP0));
    vm
}

#[test]
fn an_address_off_the_granule_is_out_of_range() {
    let mut vm = attached("");
    vm.table([
        ("start", map(1, 0x1001, 0x1fff, 0, RW), RANGE),
        ("start at half a page", map(1, 0x1800, 0x1fff, 0, RW), RANGE),
        ("end", map(1, 0x1000, 0x1ffe, 0, RW), RANGE),
        ("end one too far", map(1, 0x1000, 0x2000, 0, RW), RANGE),
        ("physical start", map(1, 0x1000, 0x1fff, 1, RW), RANGE),
        ("all of them", map(1, 0x1001, 0x2000, 0x800, RW), RANGE),
        ("nothing of it was mapped", map(1, 0, 0x3fff, 0, RW), OK),
    ]);
}

#[test]
fn the_granule_is_the_page_size_option() {
    for (option, size) in [("--page-size 16384", 0x4000), ("--page-size 64K", 0x1_0000_u64)] {
        let mut vm = attached(option);
        assert_eq!(vm.front_end.config().page_size_mask, size);
        vm.table([
            ("smaller", map(1, 0, 0xfff, 0, RW), RANGE),
            ("off by a small page", map(1, 0x1000, size + 0xfff, 0, RW), RANGE),
            ("physical start", map(1, 0, size - 1, 0x1000, RW), RANGE),
            ("aligned", map(1, 0, size - 1, size, RW), OK),
        ]);
    }
}

#[test]
fn an_address_outside_the_input_range_is_out_of_range() {
    let mut vm = attached("--input-range 0x100000-0x1fffff");
    vm.table([
        ("below", map(1, 0xf_f000, 0xf_ffff, 0, RW), RANGE),
        ("above", map(1, 0x20_0000, 0x20_0fff, 0, RW), RANGE),
        ("across the start", map(1, 0xf_f000, 0x10_0fff, 0, RW), RANGE),
        ("across the end", map(1, 0x1f_f000, 0x20_0fff, 0, RW), RANGE),
        ("around", map(1, 0, 0x2f_ffff, 0, RW), RANGE),
        ("at the top of all addresses", map(1, TOP, u64::MAX, 0, RW), RANGE),
        ("all of it", map(1, 0x10_0000, 0x1f_ffff, 0, RW), OK),
    ]);
}

#[test]
fn ranges_at_both_ends_of_the_address_space_are_exact() {
    let mut vm = attached("");
    vm.table([
        ("first page", map(1, 0, 0xfff, 0, RW), OK),
        ("first page again", map(1, 0, 0xfff, 0, RW), INVAL),
        ("second page", map(1, 0x1000, 0x1fff, 0, RW), OK),
        ("last page", map(1, TOP, u64::MAX, 0, RW), OK),
        ("last page again", map(1, TOP, u64::MAX, 0, RW), INVAL),
        ("over the last page", map(1, TOP - 0x1000, u64::MAX, 0, RW), INVAL),
        ("the page before", map(1, TOP - 0x1000, TOP - 1, 0, RW), OK),
        ("last physical page", map(1, 0x2000, 0x2fff, TOP, RW), OK),
        ("beyond the last physical page", map(1, 0x3000, 0x4fff, TOP, RW), RANGE),
        ("all, with things in it", map(1, 0, u64::MAX, 0, RW), INVAL),
        ("unmap half of what is at the top", unmap(1, TOP + 0x800, u64::MAX), RANGE),
        ("unmap all", unmap(1, 0, u64::MAX), OK),
        ("last page, free again", map(1, TOP, u64::MAX, 0, RW), OK),
        ("first page, free again", map(1, 0, 0xfff, 0, RW), OK),
        ("unmap the last page", unmap(1, TOP, u64::MAX), OK),
        ("unmap the first page", unmap(1, 0, 0xfff), OK),
        ("the first half", map(1, 0, (1 << 31) - 1, 0, RW), OK),
    ]);
}

#[test]
fn a_range_that_ends_before_it_starts_is_invalid() {
    let mut vm = attached("");
    vm.table([
        ("by a page", map(1, 0x2000, 0xfff, 0, RW), INVAL),
        ("by one byte", map(1, 0x1000, 0xfff, 0, RW), INVAL),
        ("from the top to the bottom", map(1, TOP, 0xfff, 0, RW), INVAL),
        ("unmap", unmap(1, 0x2000, 0xfff), INVAL),
        ("unmap from the top", unmap(1, u64::MAX, 0), INVAL),
    ]);
}

#[test]
fn an_overlap_with_a_mapping_is_invalid() {
    let mut vm = attached("");
    vm.ok(map(1, 0x4000, 0x7fff, 0x4000, RW));
    vm.table([
        ("the same", map(1, 0x4000, 0x7fff, 0x4000, RW), INVAL),
        ("inside", map(1, 0x5000, 0x5fff, 0, RW), INVAL),
        ("around", map(1, 0x3000, 0x8fff, 0, RW), INVAL),
        ("its first page", map(1, 0x3000, 0x4fff, 0, RW), INVAL),
        ("its last page", map(1, 0x7000, 0x8fff, 0, RW), INVAL),
        ("just before", map(1, 0x3000, 0x3fff, 0, RW), OK),
        ("just behind", map(1, 0x8000, 0x8fff, 0, RW), OK),
        ("adjacent ones stay separate", unmap(1, 0x8000, 0x8fff), OK),
        ("and whole", unmap(1, 0x4000, 0x6fff), RANGE),
    ]);
}

#[test]
fn an_unknown_flag_is_invalid() {
    let mut vm = attached("");
    for bit in 2..32 {
        vm.expect(INVAL, map(1, 0, 0xfff, 0, RW | 1 << bit));
    }
    // Known, but the feature that goes with it is not offered.
    vm.expect(INVAL, map(1, 0, 0xfff, 0, MMIO));
    for (page, flags) in [READ, WRITE, RW].into_iter().enumerate() {
        let first = (page as u64) << 12;
        vm.ok(map(1, first, first + 0xfff, 0, flags));
    }
}

#[test]
fn a_domain_that_does_not_exist_is_no_entity() {
    let mut vm = attached("");
    vm.expect(NOENT, map(2, 0, 0xfff, 0, RW));
    vm.expect(NOENT, map(0, 0, 0xfff, 0, RW));
    vm.expect(NOENT, map(u32::MAX, 0, 0xfff, 0, RW));
}

#[test]
fn a_bypass_domain_cannot_be_mapped() {
    let mut vm = Vm::new("");
    vm.ok(attach_with(1, EP0, ATTACH_BYPASS));
    vm.expect(INVAL, map(1, 0, 0xfff, 0, RW));
}

#[test]
fn a_mapping_over_a_reserved_region_is_invalid() {
    let option = "--reserved-region 0xfee00000-0xfeefffff,type=msi \
                  --reserved-region 0x10000-0x1ffff,type=reserved \
                  --reserved-region 0x40000000-0x40000fff";
    let mut vm = attached(option);
    vm.table([
        ("the MSI region", map(1, 0xfee0_0000, 0xfeef_ffff, 0, RW), INVAL),
        ("its first page", map(1, 0xfedf_f000, 0xfee0_0fff, 0, RW), INVAL),
        ("its last page", map(1, 0xfeef_f000, 0xfef0_0fff, 0, RW), INVAL),
        ("around another", map(1, 0, 0x2_ffff, 0, RW), INVAL),
        ("inside another", map(1, 0x1_1000, 0x1_1fff, 0, RW), INVAL),
        ("one of a single page", map(1, 0x4000_0000, 0x4000_0fff, 0, RW), INVAL),
        ("before", map(1, 0, 0xffff, 0, RW), OK),
        ("behind", map(1, 0x2_0000, 0x2_ffff, 0, RW), OK),
        ("before the MSI region", map(1, 0xfedf_f000, 0xfedf_ffff, 0, RW), OK),
        ("behind the MSI region", map(1, 0xfef0_0000, 0xfef0_0fff, 0, RW), OK),
    ]);
}

#[test]
fn domains_have_address_spaces_of_their_own() {
    let mut vm = attached("");
    vm.ok(attach(2, testing::vm::EP1));
    vm.ok(map(1, 0, 0xffff, 0, RW));
    vm.ok(map(2, 0, 0xffff, 0, RW));
    vm.ok(unmap(1, 0, u64::MAX));
    vm.expect(INVAL, map(2, 0, 0xffff, 0, RW));
}
