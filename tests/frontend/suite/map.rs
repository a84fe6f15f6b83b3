//! MAP requests.

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
fn map_rejects_unaligned_addresses() {
    let mut vm = attached("");
    vm.table([
        ("start", map(1, 0x1001, 0x1fff, 0, RW), RANGE),
        ("start at half a page", map(1, 0x1800, 0x1fff, 0, RW), RANGE),
        ("end", map(1, 0x1000, 0x1ffe, 0, RW), RANGE),
        ("end one byte beyond the page", map(1, 0x1000, 0x2000, 0, RW), RANGE),
        ("physical start", map(1, 0x1000, 0x1fff, 1, RW), RANGE),
        ("all three", map(1, 0x1001, 0x2000, 0x800, RW), RANGE),
        ("no mapping was added", map(1, 0, 0x3fff, 0, RW), OK),
    ]);
}

#[test]
fn map_granularity_is_page_size_option() {
    for (option, size) in [("--page-size 16384", 0x4000), ("--page-size 64K", 0x1_0000_u64)] {
        let mut vm = attached(option);
        assert_eq!(vm.front_end.config().page_size_mask, size);
        vm.table([
            ("smaller than a page", map(1, 0, 0xfff, 0, RW), RANGE),
            ("shifted by 4 KiB", map(1, 0x1000, size + 0xfff, 0, RW), RANGE),
            ("physical start", map(1, 0, size - 1, 0x1000, RW), RANGE),
            ("aligned", map(1, 0, size - 1, size, RW), OK),
        ]);
    }
}

#[test]
fn map_rejects_addresses_outside_input_range() {
    let mut vm = attached("--input-range 0x100000-0x1fffff");
    vm.table([
        ("below", map(1, 0xf_f000, 0xf_ffff, 0, RW), RANGE),
        ("above", map(1, 0x20_0000, 0x20_0fff, 0, RW), RANGE),
        ("across the start", map(1, 0xf_f000, 0x10_0fff, 0, RW), RANGE),
        ("across the end", map(1, 0x1f_f000, 0x20_0fff, 0, RW), RANGE),
        ("around", map(1, 0, 0x2f_ffff, 0, RW), RANGE),
        ("last page of the address space", map(1, TOP, u64::MAX, 0, RW), RANGE),
        ("whole input range", map(1, 0x10_0000, 0x1f_ffff, 0, RW), OK),
    ]);
}

#[test]
fn map_and_unmap_at_both_ends_of_address_space() {
    let mut vm = attached("");
    vm.table([
        ("first page", map(1, 0, 0xfff, 0, RW), OK),
        ("first page again", map(1, 0, 0xfff, 0, RW), INVAL),
        ("second page", map(1, 0x1000, 0x1fff, 0, RW), OK),
        ("last page", map(1, TOP, u64::MAX, 0, RW), OK),
        ("last page again", map(1, TOP, u64::MAX, 0, RW), INVAL),
        ("overlapping the last page", map(1, TOP - 0x1000, u64::MAX, 0, RW), INVAL),
        ("the page before", map(1, TOP - 0x1000, TOP - 1, 0, RW), OK),
        ("last physical page", map(1, 0x2000, 0x2fff, TOP, RW), OK),
        ("beyond the last physical page", map(1, 0x3000, 0x4fff, TOP, RW), RANGE),
        ("whole address space, partly mapped", map(1, 0, u64::MAX, 0, RW), INVAL),
        ("unmap half of the last page", unmap(1, TOP + 0x800, u64::MAX), RANGE),
        ("unmap all", unmap(1, 0, u64::MAX), OK),
        ("last page after unmap", map(1, TOP, u64::MAX, 0, RW), OK),
        ("first page after unmap", map(1, 0, 0xfff, 0, RW), OK),
        ("unmap the last page", unmap(1, TOP, u64::MAX), OK),
        ("unmap the first page", unmap(1, 0, 0xfff), OK),
        ("2 GiB", map(1, 0, (1 << 31) - 1, 0, RW), OK),
    ]);
}

#[test]
fn map_and_unmap_reject_inverted_range() {
    let mut vm = attached("");
    vm.table([
        ("by one page", map(1, 0x2000, 0xfff, 0, RW), INVAL),
        ("by one byte", map(1, 0x1000, 0xfff, 0, RW), INVAL),
        ("from the last to the first page", map(1, TOP, 0xfff, 0, RW), INVAL),
        ("unmap", unmap(1, 0x2000, 0xfff), INVAL),
        ("unmap from the last byte", unmap(1, u64::MAX, 0), INVAL),
    ]);
}

#[test]
fn map_rejects_overlapping_range() {
    let mut vm = attached("");
    vm.ok(map(1, 0x4000, 0x7fff, 0x4000, RW));
    vm.table([
        ("same range", map(1, 0x4000, 0x7fff, 0x4000, RW), INVAL),
        ("inside", map(1, 0x5000, 0x5fff, 0, RW), INVAL),
        ("around", map(1, 0x3000, 0x8fff, 0, RW), INVAL),
        ("first page", map(1, 0x3000, 0x4fff, 0, RW), INVAL),
        ("last page", map(1, 0x7000, 0x8fff, 0, RW), INVAL),
        ("directly below", map(1, 0x3000, 0x3fff, 0, RW), OK),
        ("directly above", map(1, 0x8000, 0x8fff, 0, RW), OK),
        ("adjacent mappings stay separate", unmap(1, 0x8000, 0x8fff), OK),
        ("split of a mapping", unmap(1, 0x4000, 0x6fff), RANGE),
    ]);
}

#[test]
fn map_rejects_unknown_flags() {
    let mut vm = attached("");
    for bit in 2..32 {
        vm.expect(INVAL, map(1, 0, 0xfff, 0, RW | 1 << bit));
    }
    // Defined by the specification, but its feature is not offered.
    vm.expect(INVAL, map(1, 0, 0xfff, 0, MMIO));
    for (page, flags) in [READ, WRITE, RW].into_iter().enumerate() {
        let first = (page as u64) << 12;
        vm.ok(map(1, first, first + 0xfff, 0, flags));
    }
}

#[test]
fn map_rejects_unknown_domain() {
    let mut vm = attached("");
    vm.expect(NOENT, map(2, 0, 0xfff, 0, RW));
    vm.expect(NOENT, map(0, 0, 0xfff, 0, RW));
    vm.expect(NOENT, map(u32::MAX, 0, 0xfff, 0, RW));
}

#[test]
fn map_rejects_bypass_domain() {
    let mut vm = Vm::new("");
    vm.ok(attach_with(1, EP0, ATTACH_BYPASS));
    vm.expect(INVAL, map(1, 0, 0xfff, 0, RW));
}

#[test]
fn map_rejects_reserved_regions() {
    let option = "--reserved-region 0xfee00000-0xfeefffff,type=msi \
                  --reserved-region 0x10000-0x1ffff,type=reserved \
                  --reserved-region 0x40000000-0x40000fff";
    let mut vm = attached(option);
    vm.table([
        ("MSI region", map(1, 0xfee0_0000, 0xfeef_ffff, 0, RW), INVAL),
        ("first page of the MSI region", map(1, 0xfedf_f000, 0xfee0_0fff, 0, RW), INVAL),
        ("last page of the MSI region", map(1, 0xfeef_f000, 0xfef0_0fff, 0, RW), INVAL),
        ("around a reserved region", map(1, 0, 0x2_ffff, 0, RW), INVAL),
        ("inside a reserved region", map(1, 0x1_1000, 0x1_1fff, 0, RW), INVAL),
        ("region of a single page", map(1, 0x4000_0000, 0x4000_0fff, 0, RW), INVAL),
        ("below a reserved region", map(1, 0, 0xffff, 0, RW), OK),
        ("above a reserved region", map(1, 0x2_0000, 0x2_ffff, 0, RW), OK),
        ("below the MSI region", map(1, 0xfedf_f000, 0xfedf_ffff, 0, RW), OK),
        ("above the MSI region", map(1, 0xfef0_0000, 0xfef0_0fff, 0, RW), OK),
    ]);
}

#[test]
fn domains_have_separate_address_spaces() {
    let mut vm = attached("");
    vm.ok(attach(2, testing::vm::EP1));
    vm.ok(map(1, 0, 0xffff, 0, RW));
    vm.ok(map(2, 0, 0xffff, 0, RW));
    vm.ok(unmap(1, 0, u64::MAX));
    vm.expect(INVAL, map(2, 0, 0xffff, 0, RW));
}
