//! Endpoints on the mock device: behavior that is specific to translation in the kernel. The
//! front-end tests check all other behavior with this kind of endpoint.

use testing::accel::{fault_read, fault_write};
use testing::daemon::Daemon;
use testing::memory::PAGE;
use testing::paging::{Channel, SUCCESS};
use testing::request::status::*;
use testing::request::{READ, RW, WRITE, attach, detach, map, probe, unmap};
use testing::vm::{DATA, ENDPOINTS, EP0, EP1, EP2, HIGH, LOW, Vm};

const IOVA: u64 = 0x7000_0000;
const LAST_ADDRESS: u64 = 0x3f_ffff_ffff;

#[test]
fn input_range_is_that_of_kernel_page_tables() {
    let mut vm = Vm::strict();
    let config = vm.front_end.read_config(0, 40);
    let le64 = |at: usize| u64::from_le_bytes(config[at..at + 8].try_into().unwrap());
    assert_eq!((le64(0), le64(8), le64(16)), (PAGE, 0, LAST_ADDRESS));
    vm.attach_accel(1, 0);
    vm.ok(map(1, LAST_ADDRESS - 0xfff, LAST_ADDRESS, DATA, RW));
    vm.expect(RANGE, map(1, LAST_ADDRESS + 1, LAST_ADDRESS + PAGE, DATA, RW));
    vm.ram.write(DATA, b"the last");
    assert_eq!(vm.accel(0).read(LAST_ADDRESS - 0xfff, 8).unwrap(), b"the last");
    vm.ok(unmap(1, 0, u64::MAX));
    // Addresses beyond the input range are not reported as reserved regions.
    let properties = vm.send(&probe(EP0, 512));
    assert_eq!(properties.status(), OK);
}

#[test]
fn every_byte_is_translated_by_kernel_mappings() {
    const PAGES: u64 = 64;
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    // In descending order, so that contiguous pages do not map to contiguous memory.
    for page in 0..PAGES {
        let (iova, gpa) = (IOVA + page * PAGE, DATA + (PAGES - 1 - page) * PAGE);
        vm.ok(map(1, iova, iova + PAGE - 1, gpa, RW));
        let bytes: Vec<u8> = (0..PAGE).map(|at| (page * 7 + at * 13) as u8).collect();
        vm.ram.write(gpa, &bytes);
    }
    vm.accel(0).copy(IOVA, IOVA + 32 * PAGE, 32 * PAGE).unwrap();
    for page in 0..32 {
        let copy = vm.ram.read(DATA + (PAGES - 1 - page - 32) * PAGE, PAGE as usize);
        let bytes: Vec<u8> = (0..PAGE).map(|at| (page * 7 + at * 13) as u8).collect();
        assert!(copy == bytes, "page {page}");
    }
    // Across the end of a mapping, and with each permission.
    vm.ok(map(1, IOVA + PAGES * PAGE, IOVA + (PAGES + 1) * PAGE - 1, DATA, READ));
    vm.ok(map(1, IOVA + (PAGES + 1) * PAGE, IOVA + (PAGES + 2) * PAGE - 1, DATA, WRITE));
    let (read_only, write_only) = (IOVA + PAGES * PAGE, IOVA + (PAGES + 1) * PAGE);
    assert_eq!(vm.accel(0).read(read_only - 4, 8).unwrap().len(), 8);
    assert_eq!(vm.accel(0).write(read_only - 4, &[0; 8]), fault_write(read_only));
    assert_eq!(vm.accel(0).read(read_only + PAGE - 4, 8), fault_read(write_only));
    vm.accel(0).write(write_only, b"written.").unwrap();
    assert_eq!(vm.ram.read(DATA, 8), b"written.");
}

#[test]
fn faults_belong_to_their_endpoint_in_shared_and_separate_domains() {
    let mut vm = Vm::paging("");
    let process = [0, 1, 2].map(|index| Channel::new(index, 0, Some(5)));
    let own = [0, 1, 2].map(|index| Channel::new(index, 1, None));
    for channel in [process, own].concat() {
        vm.open(channel);
    }
    let groups = [process, own].concat().into_iter().map(|channel| {
        // Different addresses distinguish the groups.
        let address = IOVA + 0x10_0000 * u64::from(channel.domain());
        (channel, vm.fault(channel, address))
    });
    let groups: Vec<_> = groups.collect();
    for (channel, group) in groups.iter().rev() {
        vm.resolve(group);
        assert_eq!(vm.outcome(*channel), Ok(()));
    }
    // One domain for all endpoints.
    const SHARED: u32 = 0x99;
    for (index, (_, endpoint)) in ENDPOINTS.iter().enumerate() {
        vm.ok(attach(SHARED, *endpoint));
        vm.map_home(SHARED, index);
    }
    vm.ok(map(SHARED, IOVA, IOVA + PAGE - 1, DATA, RW));
    for index in 0..ENDPOINTS.len() {
        vm.ram.write(DATA, &[index as u8; 8]);
        vm.accel(index).use_pasid(None);
        assert_eq!(vm.accel(index).read(IOVA, 8).unwrap(), [index as u8; 8]);
    }
    vm.ok(unmap(SHARED, IOVA, IOVA + PAGE - 1));
    let group = vm.fault(Channel::new(1, 1, None), IOVA);
    assert_eq!(group.endpoint, EP1);
    vm.ok(map(SHARED, IOVA, IOVA + PAGE - 1, DATA, RW));
    vm.ok(group.response(SUCCESS));
    assert_eq!(vm.outcome(own[1]), Ok(()));
}

#[test]
fn emulated_and_iommufd_endpoints_share_a_domain() {
    let kinds = ["mock", "sim", "mock"];
    let builder = ENDPOINTS
        .iter()
        .zip(kinds)
        .fold(Daemon::builder(), |builder, (at, kind)| builder.endpoint_of(kind, at.0));
    let mut vm = Vm::realized_on(builder.args("--boot-bypass off").start());
    vm.boot();
    vm.attach_accel(1, 1);
    vm.ok(map(1, IOVA, IOVA + PAGE - 1, DATA, RW));
    // Attached to a domain that has mappings.
    vm.attach_accel(1, 0);
    vm.ok(map(1, IOVA + PAGE, IOVA + 2 * PAGE - 1, DATA, RW));
    for address in [IOVA, IOVA + PAGE] {
        vm.accel(0).write(address, b"kernel's").unwrap();
        assert_eq!(vm.accel(1).read(address, 8).unwrap(), b"kernel's");
    }
    vm.ok(detach(1, EP0));
    vm.ok(unmap(1, IOVA, IOVA + PAGE - 1));
    vm.ok(attach(1, EP0));
    assert_eq!(vm.accel(0).read(IOVA, 8), fault_read(IOVA));
    assert_eq!(vm.accel(1).read(IOVA, 8), fault_read(IOVA));
    assert_eq!(vm.accel(0).read(IOVA + PAGE, 8).unwrap(), b"kernel's");
}

#[test]
fn mappings_follow_added_and_removed_memory() {
    let mut vm = Vm::strict();
    vm.attach_accel(1, 0);
    // From the end of one region, across a hole, to the other one and beyond its end.
    let (first, len) = (LOW.1 - PAGE, HIGH.0 + HIGH.1 - LOW.1 + 2 * PAGE);
    vm.ok(map(1, 0x10_0000_0000, 0x10_0000_0000 + len - 1, first, RW));
    let at = |gpa: u64| 0x10_0000_0000 + gpa - first;
    vm.ram.write(first, b"the low ");
    vm.ram.write(HIGH.0, b"the high");
    assert_eq!(vm.accel(0).read(at(first), 8).unwrap(), b"the low ");
    assert_eq!(vm.accel(0).read(at(HIGH.0), 8).unwrap(), b"the high");
    for hole in [LOW.1, HIGH.0 - PAGE, HIGH.0 + HIGH.1] {
        assert_eq!(vm.accel(0).read(at(hole), 8), fault_read(at(hole)));
    }
    let regions = vm.memory();
    for _ in 0..3 {
        vm.front_end.remove_region(&regions[1]);
        assert_eq!(vm.accel(0).read(at(HIGH.0), 8), fault_read(at(HIGH.0)));
        assert_eq!(vm.accel(0).read(at(first), 8).unwrap(), b"the low ");
        vm.front_end.add_region(&regions[1]);
        assert_eq!(vm.accel(0).read(at(HIGH.0), 8).unwrap(), b"the high");
    }
    vm.ok(unmap(1, 0x10_0000_0000, 0x10_0000_0000 + len - 1));
    assert_eq!(vm.accel(0).read(at(first), 8), fault_read(at(first)));
}

#[test]
fn bypass_follows_added_and_removed_memory() {
    let mut vm = Vm::new("");
    let regions = vm.memory();
    vm.ram.write(DATA, b"the low ");
    vm.ram.write(HIGH.0, b"the high");
    for _ in 0..2 {
        assert_eq!(vm.accel(0).read(DATA, 8).unwrap(), b"the low ");
        assert_eq!(vm.accel(0).read(HIGH.0, 8).unwrap(), b"the high");
        vm.front_end.remove_region(&regions[1]);
        assert!(vm.accel(0).read(HIGH.0, 8).is_err());
        vm.front_end.add_region(&regions[1]);
        vm.front_end.write_bypass(0);
        assert!(vm.accel(0).read(DATA, 8).is_err());
        vm.front_end.write_bypass(1);
    }
    vm.ok(attach(7, EP2));
    assert!(vm.accel(2).read(DATA, 8).is_err());
    vm.ok(detach(7, EP2));
    assert_eq!(vm.accel(2).read(DATA, 8).unwrap(), b"the low ");
}

#[test]
fn disconnecting_front_ends_leave_no_pending_groups() {
    const TIMES: usize = 100;
    let mut vm = Vm::paging("");
    let channels =
        [(0, 0, Some(5)), (0, 1, None), (1, 0, None)].map(|(i, n, p)| Channel::new(i, n, p));
    for round in 0..TIMES {
        channels.into_iter().for_each(|channel| vm.open(channel));
        let groups = channels.map(|channel| vm.fault(channel, IOVA));
        if round % 2 == 0 {
            vm.resolve(&groups[round % 3]);
        }
        // Some requests are not read yet when the front end disconnects.
        vm.write_pages(Channel::new(1, 2, None), IOVA + PAGE, 1);
        vm.replace_front_end();
        vm.expect(NOENT, groups[1].response(SUCCESS));
        for (index, channel) in channels.into_iter().enumerate() {
            if round % 2 != 0 || index != round % 3 {
                vm.outcome(channel).unwrap_err();
            }
        }
    }
    for index in 0..2 {
        let counted = vm.page_requests(index);
        assert!(counted["reset"] >= TIMES as u64, "{counted:?}");
        assert_eq!(counted["waiting"], 0, "{counted:?}");
    }
}
