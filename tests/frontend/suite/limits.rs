//! Requests beyond a limit are rejected with NOMEM until the guest releases resources.

use testing::request::Request;
use testing::request::status::*;
use testing::request::{RW, attach, detach, map, unmap};
use testing::vm::{EP0, EP1, Vm};

fn map_page(domain: u32, page: u64) -> Request {
    map(domain, page << 12, (page << 12) + 0xfff, 0, RW)
}

#[test]
fn attach_beyond_domain_limit_is_rejected() {
    let mut vm = Vm::new("--max-domains 1");
    vm.table([
        ("first domain", attach(1, EP0), OK),
        ("second domain", attach(2, EP1), NOMEM),
        ("second domain does not exist", map_page(2, 0), NOENT),
        ("existing domain", attach(1, EP1), OK),
        ("second domain, from existing one", attach(2, EP1), NOMEM),
        ("endpoint is still attached", detach(1, EP1), OK),
        ("remove first domain", detach(1, EP0), OK),
        ("second domain again", attach(2, EP1), OK),
    ]);
}

#[test]
fn map_beyond_limit_over_all_domains_is_rejected() {
    let mut vm = Vm::new("--max-mappings 4");
    vm.ok(attach(1, EP0));
    vm.ok(attach(2, EP1));
    vm.table([
        ("1", map_page(1, 0), OK),
        ("2", map_page(1, 1), OK),
        ("3", map_page(2, 0), OK),
        ("4", map_page(2, 1), OK),
        ("5, first domain", map_page(1, 2), NOMEM),
        ("5, second domain", map_page(2, 2), NOMEM),
        ("a large one counts as one", map(1, 0x10_0000, 0xff_ffff, 0, RW), NOMEM),
        ("unmap of a hole releases no mapping", unmap(1, 0x10_0000, 0x1f_ffff), OK),
        ("limit still reached", map_page(1, 2), NOMEM),
        ("unmap two", unmap(1, 0, 0x1fff), OK),
        ("large mapping", map(1, 0x10_0000, 0xff_ffff, 0, RW), OK),
        ("second mapping", map_page(2, 2), OK),
        ("limit reached again", map_page(2, 3), NOMEM),
        ("removal of a domain releases its mappings", detach(2, EP1), OK),
        ("1 of 3", map_page(1, 3), OK),
        ("2 of 3", map_page(1, 4), OK),
        ("3 of 3", map_page(1, 5), OK),
        ("limit reached", map_page(1, 6), NOMEM),
    ]);
    vm.reset();
    vm.ok(attach(1, EP0));
    (0..4).for_each(|page| vm.ok(map_page(1, page)));
    vm.expect(NOMEM, map_page(1, 4));
}

#[test]
fn attach_beyond_endpoint_limit_of_domain_is_rejected() {
    let mut vm = Vm::new("--max-endpoints-per-domain 1");
    vm.table([
        ("first endpoint", attach(1, EP0), OK),
        ("same endpoint", attach(1, EP0), OK),
        ("second endpoint", attach(1, EP1), NOMEM),
        ("another domain", attach(2, EP1), OK),
        ("move from another domain", attach(1, EP1), NOMEM),
        ("still attached to the other domain", detach(2, EP1), OK),
        ("detach first endpoint", detach(1, EP0), OK),
        ("second endpoint again", attach(1, EP1), OK),
    ]);
}

#[test]
fn limits_count_only_existing_domains_and_mappings() {
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
