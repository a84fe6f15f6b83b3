//! A guest that asks for more than it may have is told so, and gets it once it has given back.

use testing::request::Request;
use testing::request::status::*;
use testing::request::{RW, attach, detach, map, unmap};
use testing::vm::{EP0, EP1, Vm};

fn map_page(domain: u32, page: u64) -> Request {
    map(domain, page << 12, (page << 12) + 0xfff, 0, RW)
}

#[test]
fn more_domains_than_allowed_are_no_memory() {
    let mut vm = Vm::new("--max-domains 1");
    vm.table([
        ("the first", attach(1, EP0), OK),
        ("one more", attach(2, EP1), NOMEM),
        ("was not made", map_page(2, 0), NOENT),
        ("an existing one", attach(1, EP1), OK),
        ("one more, from an existing one", attach(2, EP1), NOMEM),
        ("the endpoint has stayed", detach(1, EP1), OK),
        ("give back", detach(1, EP0), OK),
        ("free again", attach(2, EP1), OK),
    ]);
}

#[test]
fn more_mappings_than_allowed_over_all_domains_are_no_memory() {
    let mut vm = Vm::new("--max-mappings 4");
    vm.ok(attach(1, EP0));
    vm.ok(attach(2, EP1));
    vm.table([
        ("1", map_page(1, 0), OK),
        ("2", map_page(1, 1), OK),
        ("3", map_page(2, 0), OK),
        ("4", map_page(2, 1), OK),
        ("5, here", map_page(1, 2), NOMEM),
        ("5, there", map_page(2, 2), NOMEM),
        ("a large one counts as one", map(1, 0x10_0000, 0xff_ffff, 0, RW), NOMEM),
        ("unmap of nothing gives nothing back", unmap(1, 0x10_0000, 0x1f_ffff), OK),
        ("still full", map_page(1, 2), NOMEM),
        ("give two back", unmap(1, 0, 0x1fff), OK),
        ("large", map(1, 0x10_0000, 0xff_ffff, 0, RW), OK),
        ("and another", map_page(2, 2), OK),
        ("full again", map_page(2, 3), NOMEM),
        ("a domain that goes gives back", detach(2, EP1), OK),
        ("1 of 3", map_page(1, 3), OK),
        ("2 of 3", map_page(1, 4), OK),
        ("3 of 3", map_page(1, 5), OK),
        ("full", map_page(1, 6), NOMEM),
    ]);
    vm.reset();
    vm.ok(attach(1, EP0));
    (0..4).for_each(|page| vm.ok(map_page(1, page)));
    vm.expect(NOMEM, map_page(1, 4));
}

#[test]
fn more_endpoints_in_a_domain_than_allowed_are_refused() {
    let mut vm = Vm::new("--max-endpoints-per-domain 1");
    vm.table([
        ("the first", attach(1, EP0), OK),
        ("again", attach(1, EP0), OK),
        ("one more", attach(1, EP1), NOMEM),
        ("elsewhere", attach(2, EP1), OK),
        ("from elsewhere", attach(1, EP1), NOMEM),
        ("it has stayed", detach(2, EP1), OK),
        ("give back", detach(1, EP0), OK),
        ("free again", attach(1, EP1), OK),
    ]);
}

#[test]
fn domains_that_come_and_go_leave_nothing_behind() {
    let mut vm = Vm::new("--max-domains 2 --max-mappings 2");
    for domain in 0..2000 {
        vm.ok(attach(domain, EP0));
        vm.ok(map_page(domain, 0));
        vm.ok(map_page(domain, 1));
        if domain % 2 == 0 {
            vm.ok(detach(domain, EP0));
        }
    }
}
