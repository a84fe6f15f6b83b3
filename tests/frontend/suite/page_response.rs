//! PAGE_RESP requests: valid, invalid, repeated, and for other endpoints and PASIDs.

use testing::accel::{AccessError, denied_write, regs};
use testing::memory::PAGE;
use testing::paging::{Channel, FAILURE, Group, INVALID, SUCCESS};
use testing::request::{RW, map, page_resp, probe};
use testing::request::{Request, status::*};
use testing::vm::{DATA, EP0, EP1, NO_ENDPOINT, Vm};

const IOVA: u64 = 0x7000_0000;
const PASID: u32 = 0x12345;
const PROCESS: Channel = Channel::new(0, 0, Some(PASID));
/// The same endpoint, without a PASID.
const OWN: Channel = Channel::new(0, 1, None);
/// The same endpoint, another PASID.
const OTHER: Channel = Channel::new(0, 2, Some(7));
/// Another endpoint, the same PASID.
const OTHER_ENDPOINT: Channel = Channel::new(1, 0, Some(PASID));

/// Returns responses with one error each, and the expected statuses.
fn invalid_responses(group: &Group) -> Vec<(&'static str, Request, u8)> {
    let (id, valid) = (group.id, group.response(SUCCESS));
    let mut responses = vec![
        ("unknown code", group.response(3), INVAL),
        ("highest code", group.response(u16::MAX), INVAL),
        ("unknown flag", valid.clone().patched(8, 3), INVAL),
        ("unknown flag in the last byte", valid.clone().patched(11, 0x80), INVAL),
        ("PASID without its flag", valid.clone().patched(8, 0), INVAL),
        ("no PASID", page_resp(EP0, None, id, SUCCESS), INVAL),
        ("unknown endpoint", page_resp(NO_ENDPOINT, group.pasid, id, SUCCESS), NOENT),
        ("wrong endpoint", page_resp(EP1, group.pasid, id, SUCCESS), NOENT),
        ("unknown group", page_resp(EP0, group.pasid, id.wrapping_add(1), SUCCESS), NOENT),
        ("distant group", page_resp(EP0, group.pasid, id ^ 0x8000, SUCCESS), NOENT),
        ("wrong PASID", page_resp(EP0, Some(PASID + 1), id, SUCCESS), NOENT),
        ("PASID 0", page_resp(EP0, Some(0), id, SUCCESS), NOENT),
        ("PASID out of range", page_resp(EP0, Some(u32::MAX), id, SUCCESS), NOENT),
        ("truncated", valid.clone().cut(27), INVAL),
        ("head only", valid.clone().cut(4), INVAL),
    ];
    responses.extend((20..28).map(|at| ("reserved", valid.clone().patched(at, 1), INVAL)));
    responses
}

#[test]
fn success_retries_the_access() {
    let mut vm = Vm::open_on("", PROCESS);
    let group = vm.fault(PROCESS, IOVA);
    vm.ok(map(PROCESS.domain(), IOVA, IOVA + PAGE - 1, DATA, RW));
    assert!(vm.is_pending(PROCESS), "MAP alone does not complete the group");
    vm.ok(group.response(SUCCESS));
    assert_eq!(vm.outcome(PROCESS), Ok(()));
    assert_eq!(vm.ram.read(DATA, 8), IOVA.to_le_bytes());
    vm.assert_groups(0, &[("success", 1)]);
}

#[test]
fn invalid_fails_only_the_accesses_of_its_group() {
    let mut vm = Vm::open_on("", PROCESS);
    vm.open(OTHER);
    let group = vm.fault(PROCESS, IOVA);
    let other = vm.fault(OTHER, IOVA);
    vm.ok(group.response(INVALID));
    assert_eq!(vm.outcome(PROCESS), denied_write(IOVA));
    assert!(vm.is_pending(OTHER));
    vm.resolve(&other);
    assert_eq!(vm.outcome(OTHER), Ok(()));
    let again = vm.fault(PROCESS, IOVA + PAGE);
    vm.resolve(&again);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
    vm.assert_groups(0, &[("success", 2), ("invalid", 1)]);
}

#[test]
fn failure_stops_the_endpoint_until_its_function_is_reset() {
    let mut vm = Vm::open_on("", PROCESS);
    [OTHER, OTHER_ENDPOINT].into_iter().for_each(|channel| vm.open(channel));
    let [group, other, other_endpoint] =
        [PROCESS, OTHER, OTHER_ENDPOINT].map(|channel| vm.fault(channel, IOVA));
    vm.ok(group.response(FAILURE));
    for channel in [PROCESS, OTHER] {
        let outcome = vm.outcome(channel);
        let stopped =
            matches!(outcome, Err(AccessError::Channel { error: regs::ERROR_PAGE_RESPONSE, .. }));
        assert!(stopped, "{outcome:x?}");
    }
    vm.resolve(&other_endpoint);
    assert_eq!(vm.outcome(OTHER_ENDPOINT), Ok(()), "other endpoint stopped");
    vm.accel(0).reset();
    vm.expect(NOENT, other.response(SUCCESS));
    let again = vm.fault(PROCESS, IOVA);
    vm.resolve(&again);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
    vm.assert_groups(0, &[("success", 1), ("failure", 1), ("withdrawn", 1)]);
}

#[test]
fn invalid_response_is_rejected_and_leaves_the_group_outstanding() {
    let mut vm = Vm::open_on("", PROCESS);
    let group = vm.fault(PROCESS, IOVA);
    for (error, request, status) in invalid_responses(&group) {
        assert_eq!(vm.status(&request), status, "{error}: status of {request:x?}");
        assert!(vm.is_pending(PROCESS), "{error}: completed the group");
    }
    vm.assert_groups(0, &[("waiting", 1)]);
    vm.resolve(&group);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
    vm.assert_groups(0, &[("success", 1)]);
}

#[test]
fn format_errors_take_precedence_over_unknown_endpoint_or_group() {
    let mut vm = Vm::open_on("", PROCESS);
    let no_endpoint = page_resp(NO_ENDPOINT, Some(PASID), 0, SUCCESS);
    let no_group = page_resp(EP0, Some(PASID), 0, SUCCESS);
    for request in [no_endpoint, no_group] {
        vm.table([
            ("valid format", request.clone(), NOENT),
            ("code", request.clone().patched(18, 3), INVAL),
            ("flags", request.clone().patched(8, 5), INVAL),
            ("reserved", request.clone().patched(27, 1), INVAL),
            ("PASID without its flag", request.clone().patched(8, 0), INVAL),
            ("truncated", request.cut(27), INVAL),
        ]);
    }
    vm.table([("no PASID and no group", page_resp(EP0, None, 0, SUCCESS), NOENT)]);
}

#[test]
fn reserved_head_bytes_and_trailing_bytes_are_ignored() {
    let mut vm = Vm::open_on("", PROCESS);
    for page in 0..4 {
        let group = vm.fault(PROCESS, IOVA + page * PAGE);
        let request = group.response(INVALID);
        vm.ok(if page < 3 {
            request.patched(1 + page as usize, 0xff)
        } else {
            request.raw(&[0xff; 8])
        });
        assert_eq!(vm.outcome(PROCESS), denied_write(IOVA + page * PAGE));
    }
}

#[test]
fn second_response_returns_noent() {
    let mut vm = Vm::open_on("", PROCESS);
    vm.open(OTHER);
    let outstanding = vm.fault(OTHER, IOVA);
    for (page, code) in (0..).zip([SUCCESS, INVALID]) {
        let group = vm.fault(PROCESS, IOVA + page * PAGE);
        vm.ok(map(PROCESS.domain(), group.pages[0], group.pages[0] + PAGE - 1, DATA, RW));
        vm.ok(group.response(code));
        for again in [SUCCESS, INVALID, FAILURE] {
            vm.expect(NOENT, group.response(again));
        }
        assert_eq!(vm.outcome(PROCESS).is_ok(), code == SUCCESS);
        vm.expect(NOENT, group.response(SUCCESS));
    }
    assert!(vm.is_pending(OTHER));
    vm.resolve(&outstanding);
    assert_eq!(vm.outcome(OTHER), Ok(()));
    vm.assert_groups(0, &[("success", 2), ("invalid", 1)]);
}

#[test]
fn second_response_in_the_same_batch_returns_noent() {
    let mut vm = Vm::open_on("", PROCESS);
    let group = vm.fault(PROCESS, IOVA);
    let heads = [INVALID, SUCCESS].map(|code| vm.requests.add(&group.response(code).chain()));
    vm.requests.submit();
    for (head, status) in heads.into_iter().zip([OK, NOENT]) {
        let (used, reply) = vm.requests.reply();
        assert_eq!((used, reply.status()), (head, status));
    }
    assert_eq!(vm.outcome(PROCESS), denied_write(IOVA));
    vm.assert_groups(0, &[("invalid", 1)]);
}

#[test]
fn map_and_response_work_in_the_same_batch() {
    let mut vm = Vm::open_on("", PROCESS);
    for page in 0..20 {
        let address = IOVA + page * PAGE;
        let group = vm.fault(PROCESS, address);
        let map = map(PROCESS.domain(), address, address + PAGE - 1, DATA, RW);
        for request in [map, group.response(SUCCESS)] {
            vm.requests.add(&request.chain());
        }
        vm.requests.submit();
        assert_eq!([(), ()].map(|()| vm.requests.reply().1.status()), [OK, OK]);
        assert_eq!(vm.outcome(PROCESS), Ok(()));
    }
    vm.assert_groups(0, &[("success", 20)]);
}

#[test]
fn response_requires_the_endpoint_and_pasid_of_the_group() {
    let mut vm = Vm::open_on("", PROCESS);
    [OWN, OTHER, OTHER_ENDPOINT].into_iter().for_each(|channel| vm.open(channel));
    let channels = [PROCESS, OWN, OTHER, OTHER_ENDPOINT];
    let groups = channels.map(|channel| vm.fault(channel, IOVA));
    for (group, channel) in groups.iter().zip(channels) {
        for (endpoint, pasid) in
            [(EP0, None), (EP0, Some(PASID)), (EP0, Some(7)), (EP1, None), (EP1, Some(PASID))]
        {
            let expected = match groups.iter().find(|g| (g.endpoint, g.id) == (endpoint, group.id))
            {
                Some(found) if found.pasid == pasid => continue,
                Some(found) if found.pasid.is_some() && pasid.is_none() => INVAL,
                _ => NOENT,
            };
            let response = page_resp(endpoint, pasid, group.id, INVALID);
            assert_eq!(vm.status(&response), expected, "{response:x?} for {group:x?}");
            assert!(vm.is_pending(channel));
        }
    }
    for (group, channel) in groups.iter().zip(channels) {
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
    }
    vm.assert_groups(0, &[("success", 3)]);
    vm.assert_groups(1, &[("success", 1)]);
}

#[test]
fn response_to_an_undelivered_group_returns_noent() {
    let mut vm = Vm::paging_with("", 0);
    vm.open(PROCESS);
    vm.write_pages(PROCESS, IOVA, 1);
    vm.assert_groups(0, &[("waiting", 1)]);
    // No identifier matches.
    for first in (0..=u16::MAX).step_by(64) {
        let requests: Vec<_> =
            (first..=first + 63).map(|id| page_resp(EP0, Some(PASID), id, INVALID)).collect();
        for request in &requests {
            vm.requests.add(&request.chain());
        }
        vm.requests.submit();
        requests.iter().for_each(|_| assert_eq!(vm.requests.reply().1.status(), NOENT));
    }
    assert!(vm.is_pending(PROCESS));
    vm.events.fill(4, 48);
    vm.events.queue.submit();
    let group = vm.group();
    vm.resolve(&group);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
}

#[test]
fn response_to_a_partially_delivered_group_returns_noent() {
    let mut vm = Vm::paging_with("", 2);
    vm.open(PROCESS);
    vm.events.hold = true;
    vm.accel(0).group_pages = 3;
    vm.write_pages(PROCESS, IOVA, 3);
    let first = vm.events.receive();
    vm.expect(NOENT, page_resp(EP0, Some(PASID), first.group, INVALID));
    assert!(vm.is_pending(PROCESS));
    vm.events.receive();
    vm.expect(NOENT, page_resp(EP0, Some(PASID), first.group, INVALID));
    vm.events.refill();
    let last = vm.events.receive();
    assert_eq!(last.address, IOVA + 2 * PAGE);
    vm.ok(page_resp(EP0, Some(PASID), last.group, INVALID));
    vm.assert_groups(0, &[("invalid", 1), ("waiting", 1)]);
}

#[test]
fn response_for_a_stopped_channel_is_accepted() {
    let mut vm = Vm::open_on("", PROCESS);
    let group = vm.fault(PROCESS, IOVA);
    vm.accel(0).stop(PROCESS.number);
    vm.ok(group.response(SUCCESS));
    vm.expect(NOENT, group.response(SUCCESS));
    let group = vm.fault(PROCESS, IOVA + PAGE);
    vm.resolve(&group);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
    vm.assert_groups(0, &[("success", 2)]);
}

#[test]
fn requests_are_served_while_groups_are_outstanding() {
    let mut vm = Vm::open_on("", PROCESS);
    let group = vm.fault(PROCESS, IOVA);
    let size = vm.front_end.config().probe_size as usize;
    for _ in 0..100 {
        vm.send(&probe(EP0, size));
        vm.ok(map(PROCESS.domain(), IOVA, IOVA + PAGE - 1, DATA, RW));
        vm.ok(testing::request::unmap(PROCESS.domain(), IOVA, IOVA + PAGE - 1));
    }
    vm.resolve(&group);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
}
