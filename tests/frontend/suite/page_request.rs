//! Page requests from the driver's side (`docs/page-requests.md`).

use std::collections::HashSet;

use testing::accel::{Accel, AccessError, denied_write, fault_write, regs, ring_fault};
use testing::event::{EVENT_LEN, Fault, LONG_EVENT_LEN};
use testing::front_end::feature;
use testing::memory::PAGE;
use testing::paging::{Channel, INVALID, SUCCESS, backing};
use testing::request::{READ, RW, map, page_resp, probe};
use testing::virtqueue::Chain;
use testing::vm::{DATA, EP0, Vm};

const IOVA: u64 = 0x7000_0000;
const PASID: u32 = 0x12345;
const OWN: Channel = Channel::new(0, 0, None);
const PROCESS: Channel = Channel::new(0, 1, Some(PASID));
const PAGE_REQUEST: u16 = 0x802;

/// Returns the property `kind` of an endpoint, including its head, if the endpoint has it.
fn property(vm: &mut Vm, endpoint: u32, kind: u16) -> Option<Vec<u8>> {
    let size = vm.front_end.config().probe_size as usize;
    let reply = vm.send(&probe(endpoint, size));
    let mut rest = &reply.data[..size];
    while let [t0, t1, l0, l1, ..] = *rest {
        let (found, tail) = rest.split_at(4 + usize::from(u16::from_le_bytes([l0, l1])));
        if u16::from_le_bytes([t0, t1]) == kind {
            return Some(found.to_vec());
        }
        rest = tail;
    }
    None
}

/// Boots with `features` in addition to those of the standard.
fn boot(args: &str, features: u64, event_len: u32) -> Vm {
    let mut vm = Vm::realized(&format!("--boot-bypass off {args}"));
    vm.features |= features;
    vm.event_buffers.1 = event_len;
    vm.boot();
    vm
}

#[test]
fn page_request_feature_is_offered_with_probe() {
    let vm = Vm::realized("");
    assert_ne!(vm.front_end.features & feature::PAGE_REQUEST, 0);
    assert_ne!(vm.front_end.features & feature::PROBE, 0, "offered only with PROBE");
}

#[test]
fn probe_returns_max_groups_and_the_pasid_flag() {
    let head = |groups: u16| [&[0x02, 0x08, 4, 0, 1, 0], &groups.to_le_bytes()[..]].concat();
    for (args, groups) in [("", 64), ("--max-page-groups 1", 1), ("--max-page-groups 32767", 32767)]
    {
        let mut vm = Vm::paging(args);
        assert_eq!(property(&mut vm, EP0, PAGE_REQUEST), Some(head(groups)), "{args}");
    }
    let mut vm = boot("", feature::PAGE_REQUEST, LONG_EVENT_LEN);
    assert_eq!(property(&mut vm, EP0, PAGE_REQUEST), Some(head(64)), "without PASIDs");
}

#[test]
fn extension_is_invisible_unless_negotiated() {
    let mut vm = boot("", feature::PASID, LONG_EVENT_LEN);
    vm.open(OWN);
    vm.open(PROCESS);
    assert_eq!(property(&mut vm, EP0, PAGE_REQUEST), None);
    assert!(vm.send(&page_resp(EP0, None, 0, SUCCESS)).is_unwritten(), "unknown request type");
    // Events have the standard length and no PASID.
    for channel in [OWN, PROCESS] {
        vm.write_pages(channel, IOVA, 1);
        assert_eq!(vm.outcome(channel), denied_write(IOVA));
        let flags = Fault::WRITE | Fault::ADDRESS;
        let expected = Fault { reason: 2, flags, endpoint: EP0, address: IOVA, ..Fault::default() };
        assert_eq!(vm.events.receive(), expected);
    }
}

#[test]
fn unnegotiated_page_requests_are_rejected_and_reported_as_faults() {
    let mut vm = boot("", feature::PASID, EVENT_LEN);
    vm.open(OWN);
    vm.accel(0).group_pages = 4;
    vm.write_pages(OWN, IOVA, 4);
    assert_eq!(vm.outcome(OWN), denied_write(IOVA));
    // The accelerator retries the first page in a separate group.
    for page in [0, 1, 2, 3, 0] {
        let event = vm.events.receive();
        assert_eq!((event.reason, event.address), (Fault::R_MAPPING, IOVA + page * PAGE));
    }
    vm.write_pages(PROCESS, IOVA, 1);
    let ring =
        AccessError::Channel { error: regs::ERROR_RING_FAULT, address: vm.accel(0).home + PAGE };
    assert_eq!(vm.outcome(PROCESS), Err(ring));
    let event = vm.events.receive();
    assert_eq!((event.reason, event.address), (Fault::R_DOMAIN, vm.accel(0).home + PAGE));
    vm.assert_groups(0, &[("refused", 3)]);
    vm.assert_requests(0, 4 + 1 + 1);
}

#[test]
fn next_driver_without_the_feature_gets_no_page_requests() {
    let mut vm = Vm::open_on("", OWN);
    let group = vm.fault(OWN, IOVA);
    vm.resolve(&group);
    assert_eq!(vm.outcome(OWN), Ok(()));
    vm.features &= !feature::PAGE_REQUEST;
    vm.reset();
    vm.open(OWN);
    vm.write_pages(OWN, IOVA + PAGE, 1);
    assert_eq!(vm.outcome(OWN), denied_write(IOVA + PAGE));
    assert_eq!(vm.events.receive().address, IOVA + PAGE);
    vm.assert_groups(0, &[("success", 1), ("refused", 1)]);
}

#[test]
fn page_request_has_endpoint_pasid_address_access_and_group() {
    let mut vm = Vm::paging("");
    let flags = Fault::PAGE_REQ | Fault::ADDRESS | Fault::GROUP_ID | Fault::LAST;
    for (index, pasid) in [(0, None), (1, Some(PASID)), (2, Some(1))] {
        let channel = Channel::new(index, 3, pasid);
        vm.open(channel);
        let with_pasid = if pasid.is_some() { Fault::PASID } else { 0 };
        for (address, access) in [(IOVA + 0x123, Fault::READ), (IOVA + PAGE, Fault::WRITE)] {
            match access {
                Fault::READ => vm.read_byte(channel, address),
                _ => vm.write_pages(channel, address, 1),
            }
            let event = vm.events.receive();
            let expected = Fault {
                reason: Fault::R_MAPPING,
                flags: flags | access | with_pasid,
                endpoint: channel.endpoint(),
                pasid: pasid.unwrap_or(0),
                address: address / PAGE * PAGE,
                group: event.group,
            };
            assert_eq!(event, expected);
            let group = vm.rest_of(event);
            vm.resolve(&group);
            assert_eq!(vm.outcome(channel), Ok(()));
        }
    }
}

#[test]
fn access_without_permission_causes_a_page_request() {
    let mut vm = Vm::open_on("", PROCESS);
    vm.ok(map(PROCESS.domain(), IOVA, IOVA + PAGE - 1, DATA, READ));
    vm.read_byte(PROCESS, IOVA);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
    let group = vm.fault(PROCESS, IOVA);
    vm.ok(group.response(INVALID));
    assert_eq!(vm.outcome(PROCESS), denied_write(IOVA));
}

#[test]
fn page_requests_of_a_group_are_consecutive_and_end_with_last() {
    let mut vm = Vm::open_on("", PROCESS);
    for pages in [2, 3, 32] {
        vm.accel(0).group_pages = pages;
        let start = IOVA + u64::from(pages) * 0x10_0000;
        vm.write_pages(PROCESS, start, pages.into());
        let group = vm.group();
        let expected: Vec<_> = (0..pages).map(|page| start + u64::from(page) * PAGE).collect();
        assert_eq!(group.pages, expected);
        vm.resolve(&group);
        assert_eq!(vm.outcome(PROCESS), Ok(()));
    }
    vm.assert_groups(0, &[("success", 3)]);
    vm.assert_requests(0, 2 + 3 + 32);
}

#[test]
fn unrecoverable_faults_have_the_long_format_if_negotiated() {
    let mut vm = Vm::paging("");
    for channel in [OWN, PROCESS] {
        vm.open(channel);
        vm.accel(0).makes_page_requests = false;
        vm.write_pages(channel, IOVA + 8, 1);
        assert_eq!(vm.outcome(channel), fault_write(IOVA + 8));
        let with_pasid = if channel.pasid.is_some() { Fault::PASID } else { 0 };
        let expected = Fault {
            reason: Fault::R_MAPPING,
            flags: Fault::WRITE | Fault::ADDRESS | with_pasid,
            endpoint: EP0,
            pasid: channel.pasid.unwrap_or(0),
            address: IOVA + 8,
            group: 0,
        };
        assert_eq!(vm.events.receive(), expected);
    }
    vm.assert_groups(0, &[]);
}

#[test]
fn fault_has_no_pasid_without_the_pasid_feature() {
    let mut vm = boot("", feature::PAGE_REQUEST, LONG_EVENT_LEN);
    vm.accel(0).use_pasid(Some(PASID));
    let rejected: Result<Vec<u8>, AccessError> = ring_fault(vm.accel(0));
    assert_eq!(vm.accel(0).read(IOVA, 1), rejected);
    let event = vm.events.receive();
    assert_eq!((event.reason, event.has(Fault::PASID)), (Fault::R_DOMAIN, false));
}

#[test]
fn page_requests_work_without_the_pasid_feature() {
    let mut vm = boot("", feature::PAGE_REQUEST, LONG_EVENT_LEN);
    vm.open(OWN);
    let group = vm.fault(OWN, IOVA);
    vm.resolve(&group);
    assert_eq!(vm.outcome(OWN), Ok(()));
}

#[test]
fn page_requests_without_attachment_are_rejected_silently() {
    let witness = Channel::new(1, 0, Some(1));
    let mut vm = Vm::open_on("", witness);
    vm.accel(0).enable_page_requests();
    for channel in [Channel::new(0, 0, None), Channel::new(0, 0, Some(PASID))] {
        vm.write_pages(channel, IOVA, 1);
        let rejected: Result<(), AccessError> = ring_fault(vm.accel(0));
        assert_eq!(vm.outcome(channel), rejected);
    }
    vm.assert_no_event(witness);
    vm.assert_groups(0, &[("refused", 2)]);
}

#[test]
fn larger_buffer_is_written_up_to_the_event_length() {
    let mut vm = Vm::paging_with("", 0);
    vm.events.fill(8, 64);
    vm.open(PROCESS);
    vm.write_pages(PROCESS, IOVA, 1);
    let (len, data) = vm.events.receive_raw();
    assert_eq!(len, LONG_EVENT_LEN);
    assert_eq!(data[48..], [0xEE; 16]);
    let group = vm.rest_of(Fault::parse(&data[..48]));
    vm.resolve(&group);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
}

#[test]
fn event_can_span_several_descriptors() {
    let mut vm = Vm::paging_with("", 0);
    vm.open(PROCESS);
    let head = vm.events.queue.add(&Chain::new(vec![], vec![1, 7, 5, 12, 20, 3]));
    vm.events.queue.publish();
    vm.write_pages(PROCESS, IOVA, 1);
    let (used, reply) = vm.events.queue.reply();
    assert_eq!((used, reply.len), (head, LONG_EVENT_LEN));
    let group = vm.rest_of(Fault::parse(&reply.data));
    assert_eq!((group.pasid, group.pages.as_slice()), (Some(PASID), [IOVA].as_slice()));
    vm.resolve(&group);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
}

#[test]
fn page_request_requires_buffer_of_48_bytes() {
    let mut vm = Vm::paging_with("", 0);
    vm.open(PROCESS);
    vm.events.fill_with(&[0, 23, 24, 47, 48, 48]);
    vm.accel(0).group_pages = 2;
    vm.write_pages(PROCESS, IOVA, 2);
    for small in [0, 23, 24, 47] {
        let (len, data) = vm.events.receive_raw();
        assert_eq!((len, data), (0, vec![0xEE; small]), "a buffer of {small} bytes");
    }
    let group = vm.group();
    assert_eq!(group.pages, [IOVA, IOVA + PAGE]);
    vm.resolve(&group);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
}

#[test]
fn buffer_of_24_to_47_bytes_gets_a_fault_in_the_standard_format() {
    for (capacity, written) in [(23, None), (24, Some(24)), (47, Some(24)), (48, Some(48))] {
        let mut vm = Vm::paging_with("", 0);
        vm.open(PROCESS);
        vm.accel(0).makes_page_requests = false;
        vm.events.fill_with(&[capacity, 64]);
        vm.write_pages(PROCESS, IOVA, 1);
        assert_eq!(vm.outcome(PROCESS), fault_write(IOVA));
        let (len, data) = vm.events.receive_raw();
        assert_eq!(len, written.unwrap_or(0), "buffer of {capacity} bytes");
        assert!(data[len as usize..].iter().all(|&byte| byte == 0xEE));
        if len == EVENT_LEN {
            let flags = Fault::WRITE | Fault::ADDRESS;
            let expected =
                Fault { reason: 2, flags, endpoint: EP0, address: IOVA, ..Fault::default() };
            assert_eq!(Fault::parse(&data[..24]), expected, "the PASID field is reserved");
        }
    }
}

#[test]
fn outstanding_groups_of_an_endpoint_have_distinct_ids() {
    let mut vm = Vm::paging("");
    let pasids = [None, Some(1), Some(PASID)];
    let channels: Vec<_> =
        (0..Accel::CHANNELS).map(|n| Channel::new(0, n, pasids[n as usize % 3])).collect();
    channels[..3].iter().for_each(|channel| vm.open(*channel));
    let groups: Vec<_> = channels
        .iter()
        .map(|channel| vm.fault(*channel, IOVA + u64::from(channel.number) * PAGE))
        .collect();
    let ids: HashSet<_> = groups.iter().map(|group| group.id).collect();
    assert_eq!(ids.len(), groups.len());
    // Each response completes the group of its channel, in any order.
    for (group, channel) in groups.iter().zip(channels).rev() {
        assert!(vm.is_pending(channel));
        vm.resolve(group);
        assert_eq!(vm.outcome(channel), Ok(()));
        let page = vm.ram.read(backing(group.pages[0]), 8);
        assert_eq!(page, group.pages[0].to_le_bytes(), "contents of the requested page");
    }
    vm.assert_groups(0, &[("success", u64::from(Accel::CHANNELS))]);
}

#[test]
fn group_id_is_not_reused_immediately_or_while_outstanding() {
    let pending = Channel::new(0, 0, Some(PASID));
    let mut vm = Vm::open_on("", pending);
    let kept = vm.fault(pending, IOVA);
    let busy = Channel::new(0, 1, None);
    vm.open(busy);
    let mut before = vm.fault(busy, IOVA);
    // Until the 16-bit identifiers wrap. The page is never mapped, so the channel repeats the request.
    for _ in 0..0x1_0010 {
        vm.ok(before.response(SUCCESS));
        let group = vm.group();
        assert!(group.id != before.id && group.id != kept.id, "{:#x}", group.id);
        before = group;
    }
    vm.ok(before.response(INVALID));
    vm.resolve(&kept);
    assert_eq!(vm.outcome(pending), Ok(()));
}

#[test]
fn success_without_a_mapping_causes_a_new_group() {
    let mut vm = Vm::open_on("", PROCESS);
    let first = vm.fault(PROCESS, IOVA);
    vm.ok(first.response(SUCCESS));
    let second = vm.group();
    assert_eq!(second.pages, first.pages);
    vm.resolve(&second);
    assert_eq!(vm.outcome(PROCESS), Ok(()));
    vm.assert_groups(0, &[("success", 2)]);
}

#[test]
fn descriptor_ring_and_completion_record_cause_page_requests() {
    let mut vm = Vm::paging("");
    vm.ok(PROCESS.attach(PROCESS.domain()));
    vm.accel(0).enable_page_requests();
    vm.write_pages(PROCESS, IOVA, 1);
    let home = vm.accel(0).home;
    for page in [home + PAGE, IOVA, vm.accel(0).record(PROCESS.number) / PAGE * PAGE] {
        let group = vm.group();
        assert_eq!(group.pages, [page]);
        let phys = if page == IOVA { DATA } else { page };
        vm.ok(map(PROCESS.domain(), page, page + PAGE - 1, phys, RW));
        vm.ok(group.response(SUCCESS));
    }
    assert_eq!(vm.outcome(PROCESS), Ok(()));
}
