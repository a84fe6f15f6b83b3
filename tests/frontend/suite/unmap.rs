//! UNMAP requests.

use testing::request::status::*;
use testing::request::{ATTACH_BYPASS, RW, attach, attach_with, map, unmap};
use testing::vm::{EP0, Vm};

/// First and last page number, inclusive.
type Pages = (u64, u64);

fn bytes((first, last): Pages) -> (u64, u64) {
    (first << 12, (last << 12) + 0xfff)
}

fn map_pages(pages: Pages) -> testing::request::Request {
    let (first, last) = bytes(pages);
    map(1, first, last, 0, RW)
}

fn unmap_pages(pages: Pages) -> testing::request::Request {
    let (first, last) = bytes(pages);
    unmap(1, first, last)
}

/// Returns which of `pages` are still mapped: mapping them again is rejected.
fn remaining(vm: &mut Vm, pages: &[Pages]) -> Vec<Pages> {
    pages.iter().copied().filter(|&pages| vm.status(&map_pages(pages)) == INVAL).collect()
}

/// Name, mapped ranges, unmapped range, expected status, remaining mappings.
type Case<'a> = (&'a str, &'a [Pages], Pages, u8, &'a [Pages]);

/// Checks each case in an empty domain.
fn check(cases: &[Case]) {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    for &(name, mapped, unmapped, status, expected) in cases {
        for &pages in mapped {
            vm.ok(map_pages(pages));
        }
        assert_eq!(vm.status(&unmap_pages(unmapped)), status, "example {name}");
        assert_eq!(remaining(&mut vm, mapped), expected, "remaining mappings, example {name}");
        vm.ok(unmap(1, 0, u64::MAX));
    }
}

#[test]
fn unmap_examples_of_specification() {
    check(&[
        ("1", &[], (0, 4), OK, &[]),
        ("2", &[(0, 9)], (0, 9), OK, &[]),
        ("3", &[(0, 4), (5, 9)], (0, 9), OK, &[]),
        ("4", &[(0, 9)], (0, 4), RANGE, &[(0, 9)]),
        ("5", &[(0, 4), (5, 9)], (0, 4), OK, &[(5, 9)]),
        ("6", &[(0, 4)], (0, 9), OK, &[]),
        ("7", &[(0, 4), (10, 14)], (0, 14), OK, &[]),
    ]);
}

#[test]
fn unmap_that_splits_a_mapping_is_rejected_without_effect() {
    check(&[
        ("at its end", &[(10, 19)], (10, 18), RANGE, &[(10, 19)]),
        ("at its start", &[(10, 19)], (11, 19), RANGE, &[(10, 19)]),
        ("inside", &[(10, 19)], (12, 13), RANGE, &[(10, 19)]),
        ("one page over its start", &[(10, 19)], (9, 10), RANGE, &[(10, 19)]),
        ("one page over its end", &[(10, 19)], (19, 20), RANGE, &[(10, 19)]),
        (
            "the last of three",
            &[(0, 4), (5, 9), (10, 14)],
            (0, 10),
            RANGE,
            &[(0, 4), (5, 9), (10, 14)],
        ),
        (
            "the first of three",
            &[(0, 4), (5, 9), (10, 14)],
            (4, 14),
            RANGE,
            &[(0, 4), (5, 9), (10, 14)],
        ),
        ("both ends", &[(0, 4), (5, 9), (10, 14)], (4, 10), RANGE, &[(0, 4), (5, 9), (10, 14)]),
    ]);
}

#[test]
fn unmap_ignores_unmapped_addresses() {
    check(&[
        ("hole only", &[(0, 4), (10, 14)], (5, 9), OK, &[(0, 4), (10, 14)]),
        ("hole below", &[(10, 14)], (0, 14), OK, &[]),
        ("hole above", &[(0, 4), (20, 20)], (0, 10), OK, &[(20, 20)]),
        ("several holes", &[(1, 1), (3, 3), (5, 5)], (0, 6), OK, &[]),
    ]);
}

#[test]
fn unmap_of_whole_address_space_removes_all_mappings() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    for page in 0..64 {
        vm.ok(map_pages((page * 3, page * 3 + 1)));
    }
    vm.ok(map(1, u64::MAX - 0xfff, u64::MAX, 0, RW));
    vm.ok(unmap(1, 0, u64::MAX));
    vm.ok(map_pages((0, 1000)));
    vm.ok(map(1, u64::MAX - 0xfff, u64::MAX, 0, RW));
}

#[test]
fn unmap_rejects_unknown_domain() {
    let mut vm = Vm::new("");
    vm.expect(NOENT, unmap(1, 0, 0xfff));
    vm.ok(attach(1, EP0));
    vm.expect(NOENT, unmap(2, 0, u64::MAX));
}

#[test]
fn unmap_rejects_bypass_domain() {
    let mut vm = Vm::new("");
    vm.ok(attach_with(1, EP0, ATTACH_BYPASS));
    vm.expect(INVAL, unmap(1, 0, 0xfff));
    vm.expect(INVAL, unmap(1, 0, u64::MAX));
}

#[test]
fn unmap_ignores_reserved_bytes() {
    let mut vm = Vm::new("");
    vm.ok(attach(1, EP0));
    for offset in 24..28 {
        vm.ok(map(1, 0, 0xfff, 0, RW));
        vm.ok(unmap(1, 0, 0xfff).patched(offset, 0xff));
    }
}
