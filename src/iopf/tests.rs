use std::sync::atomic::AtomicUsize;

use super::group::Group;
use super::*;
use crate::address::{Access, Iova};

const A: EndpointId = EndpointId(8);
const B: EndpointId = EndpointId(16);
const UNKNOWN: EndpointId = EndpointId(99);
const PASID: Option<Pasid> = Some(Pasid(5));
const LIMITS: Limits = Limits { faults: 8, groups: 4, response_timeout: Duration::from_secs(30) };
const SECOND: Duration = Duration::from_secs(1);

/// Counts notifications.
#[derive(Clone, Default)]
struct CountingNotifier(Arc<AtomicUsize>);

impl CountingNotifier {
    fn count(&self) -> usize {
        self.0.load(Ordering::SeqCst)
    }
}

impl EventNotifier for CountingNotifier {
    fn notify(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// Records the calls of the fault path.
#[derive(Default)]
struct RecordingSource {
    responses: Mutex<Vec<(u32, Response)>>,
    capacity_notifications: AtomicUsize,
    /// A group to which the host responded.
    completed_by_host: Mutex<Option<u32>>,
}

impl RecordingSource {
    fn take_responses(&self) -> Vec<(u32, Response)> {
        std::mem::take(&mut self.responses.lock().unwrap())
    }

    fn capacity_notifications(&self) -> usize {
        self.capacity_notifications.load(Ordering::SeqCst)
    }
}

impl Source for RecordingSource {
    fn respond(&self, _: Option<Pasid>, cookie: SourceCookie, response: Response) {
        self.responses.lock().unwrap().push((cookie.0, response));
    }

    fn expects_response(&self, cookie: SourceCookie) -> bool {
        *self.completed_by_host.lock().unwrap() != Some(cookie.0)
    }

    fn capacity_available(&self) {
        self.capacity_notifications.fetch_add(1, Ordering::SeqCst);
    }
}

/// An event that the driver received.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Received {
    /// Endpoint and address.
    Fault(EndpointId, u64),
    /// Endpoint, group, address and whether it is the last request of the group.
    Request(EndpointId, GroupId, u64, bool),
}

use Received::{Fault as F, Request as R};

impl From<Event<'_>> for Received {
    fn from(event: Event) -> Self {
        match event {
            Event::Fault(fault) => F(fault.endpoint, fault.address.0),
            Event::PageRequest { endpoint, group, request } => {
                R(endpoint, group, request.address.0, request.last)
            }
        }
    }
}

/// Returns a fault path with attached endpoints and a driver without page requests.
fn without_page_requests(faults: usize) -> (Iopf, CountingNotifier) {
    let notifier = CountingNotifier::default();
    let iopf = Iopf::new([A, B], Limits { faults, ..LIMITS }, Box::new(notifier.clone()));
    iopf.attach(A, None, Handler::Queue);
    iopf.attach(B, None, Handler::Queue);
    (iopf, notifier)
}

/// Returns a fault path with attached endpoints and a driver that negotiated page requests.
fn with_page_requests() -> (Iopf, [Arc<RecordingSource>; 2]) {
    let (iopf, _) = without_page_requests(LIMITS.faults);
    let sources = [A, B].map(|endpoint| {
        let source = Arc::new(RecordingSource::default());
        iopf.set_source(endpoint, source.clone());
        source
    });
    iopf.enable_page_requests(true);
    (iopf, sources)
}

fn fault(endpoint: EndpointId, address: u64) -> Fault {
    Fault {
        endpoint,
        pasid: None,
        address: Iova(address),
        access: Access::READ,
        reason: FaultReason::Mapping,
    }
}

fn request(cookie: u32, address: u64, last: bool) -> PageRequest {
    PageRequest {
        pasid: None,
        cookie: SourceCookie(cookie),
        address: Iova(address),
        access: Access::WRITE,
        exec: false,
        privileged: false,
        last,
    }
}

/// Reports the only request of a group.
fn report_group(iopf: &Iopf, endpoint: EndpointId, cookie: u32) -> Result<(), QueueFull> {
    iopf.report_page_request(endpoint, request(cookie, u64::from(cookie) << 12, true))
}

/// Reports the only request of a group with a PASID.
fn report_pasid_group(iopf: &Iopf, pasid: u32, cookie: u32) {
    let pasid = Some(Pasid(pasid));
    iopf.report_page_request(A, PageRequest { pasid, ..request(cookie, 0, true) }).unwrap();
}

/// Delivers to a driver with the given number of buffers, until the status is not `More`.
fn deliver_to(iopf: &Iopf, buffers: usize) -> (Vec<Received>, DeliveryStatus) {
    let mut received = Vec::new();
    loop {
        let status = iopf.deliver(&mut |event| {
            let has_buffer = received.len() < buffers;
            if has_buffer {
                received.push(event.into());
            }
            has_buffer
        });
        if status != DeliveryStatus::More {
            return (received, status);
        }
    }
}

fn deliver_all(iopf: &Iopf) -> Vec<Received> {
    deliver_to(iopf, usize::MAX).0
}

/// Sends a page response with SUCCESS and without a PASID.
fn respond(iopf: &Iopf, endpoint: EndpointId, group: u16) -> Result<(), RespondError> {
    iopf.respond(endpoint, GroupId(group), None, true, Response::Success)
}

/// Returns the counters of an endpoint's page requests as they are logged.
fn summary(iopf: &Iopf, endpoint: EndpointId) -> String {
    let (.., requests) = iopf.counters().find(|(id, ..)| *id == endpoint).unwrap();
    requests.to_string()
}

#[test]
fn endpoints_are_served_round_robin_and_in_order() {
    let (iopf, _) = without_page_requests(8);
    for address in 0..4 {
        iopf.report_fault(fault(A, address));
    }
    iopf.report_fault(fault(B, 0));
    assert_eq!(deliver_all(&iopf), [F(A, 0), F(B, 0), F(A, 1), F(A, 2), F(A, 3)]);
}

#[test]
fn full_fault_queue_drops_new_faults_of_its_endpoint() {
    let (iopf, _) = without_page_requests(2);
    let outcomes: Vec<_> = (0..3).map(|address| iopf.report_fault(fault(A, address))).collect();
    assert_eq!(outcomes, [FaultOutcome::Queued, FaultOutcome::Queued, FaultOutcome::Dropped]);
    assert_eq!(iopf.report_fault(fault(B, 0)), FaultOutcome::Queued);
    assert_eq!(deliver_all(&iopf), [F(A, 0), F(B, 0), F(A, 1)]);
}

#[test]
fn notifier_is_signalled_once_per_delivery() {
    let (iopf, notifier) = without_page_requests(8);
    iopf.report_fault(fault(A, 0));
    iopf.report_fault(fault(B, 0));
    assert_eq!(notifier.count(), 1);
    deliver_all(&iopf);
    iopf.report_fault(fault(B, 1));
    assert_eq!(notifier.count(), 2);
}

#[test]
fn direct_handler_only_counts_faults_of_its_attachment() {
    let (iopf, notifier) = without_page_requests(8);
    iopf.attach(A, None, Handler::Direct);
    assert_eq!(iopf.report_fault(fault(A, 0)), FaultOutcome::Direct);
    assert_eq!(deliver_all(&iopf), []);
    assert_eq!(notifier.count(), 0);
    let other_pasid = Fault { pasid: Some(Pasid(1)), ..fault(A, 0) };
    assert_eq!(iopf.report_fault(other_pasid), FaultOutcome::Queued);
}

#[test]
fn fault_counters_add_up() {
    let (iopf, _) = without_page_requests(3);
    for address in 0..5 {
        iopf.report_fault(fault(A, address));
    }
    let mut buffers = [true, false].into_iter();
    while iopf.deliver(&mut |_| buffers.next().unwrap()) == DeliveryStatus::More
        && buffers.len() > 0
    {}
    iopf.reset();
    iopf.attach(A, None, Handler::Direct);
    iopf.report_fault(fault(A, 9));
    let (_, faults, _) = iopf.counters().next().unwrap();
    assert_eq!(faults.to_string(), "reported 6: delivered 1, dropped 4, direct 1, waiting 0");
    assert_eq!(iopf.report_fault(fault(UNKNOWN, 0)), FaultOutcome::Dropped);
}

#[test]
fn group_is_delivered_whole_and_completed_once() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.report_page_request(A, request(7, 0x1000, false)).unwrap();
    assert_eq!(deliver_all(&iopf), []);
    iopf.report_page_request(A, request(7, 0x2000, true)).unwrap();
    let group = GroupId(1);
    assert_eq!(deliver_all(&iopf), [R(A, group, 0x1000, false), R(A, group, 0x2000, true)]);
    assert!(iopf.has_outstanding_groups());
    assert_eq!(respond(&iopf, A, 1), Ok(()));
    assert_eq!(respond(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    assert_eq!(source.take_responses(), [(7, Response::Success)]);
    assert!(!iopf.has_outstanding_groups());
    assert_eq!(
        summary(&iopf, A),
        "groups 1 requests 2: success 1, invalid 0, failure 0, detached 0, refused 0, \
         timed out 0, reset 0, withdrawn 0, waiting 0"
    );
}

#[test]
fn response_before_last_event_matches_no_group() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.report_page_request(A, request(7, 0x1000, false)).unwrap();
    iopf.report_page_request(A, request(7, 0x2000, true)).unwrap();
    assert_eq!(respond(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    assert_eq!(
        deliver_to(&iopf, 1),
        (vec![R(A, GroupId(1), 0x1000, false)], DeliveryStatus::NoBuffer)
    );
    assert_eq!(respond(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    deliver_all(&iopf);
    assert_eq!(respond(&iopf, B, 1), Err(RespondError::NoSuchGroup), "wrong endpoint");
    assert_eq!(respond(&iopf, UNKNOWN, 1), Err(RespondError::NoSuchGroup));
    assert_eq!(source.take_responses(), []);
    assert_eq!(respond(&iopf, A, 1), Ok(()));
}

#[test]
fn response_must_match_the_pasid_of_the_group() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.attach(A, PASID, Handler::Queue);
    for cookie in 0..2 {
        report_pasid_group(&iopf, 5, cookie);
    }
    report_group(&iopf, A, 2).unwrap();
    deliver_all(&iopf);
    for (group, pasid, pasid_required, response, expected) in [
        (1, Some(6), true, Response::Invalid, Err(RespondError::NoSuchGroup)),
        (1, None, true, Response::Invalid, Err(RespondError::PasidMissing)),
        (1, Some(5), true, Response::Invalid, Ok(())),
        (2, None, false, Response::Success, Ok(())),
        (3, Some(5), true, Response::Success, Err(RespondError::NoSuchGroup)),
    ] {
        let result = iopf.respond(A, GroupId(group), pasid.map(Pasid), pasid_required, response);
        assert_eq!(result, expected, "group {group}, response with PASID {pasid:?}");
    }
    assert_eq!(source.take_responses(), [(0, Response::Invalid), (1, Response::Success)]);
}

#[test]
fn source_above_group_limit_is_blocked_until_a_group_completes() {
    let (iopf, [source, other]) = with_page_requests();
    for cookie in 0..4 {
        iopf.report_page_request(A, request(cookie, 0, false)).unwrap();
    }
    assert_eq!(report_group(&iopf, A, 9), Err(QueueFull));
    assert_eq!(report_group(&iopf, B, 9), Ok(()));
    // Partial groups can be continued, and count until they are complete.
    for cookie in 0..4 {
        iopf.report_page_request(A, request(cookie, 0x1000, true)).unwrap();
        assert_eq!(report_group(&iopf, A, 9), Err(QueueFull));
    }
    deliver_all(&iopf);
    assert_eq!(report_group(&iopf, A, 9), Err(QueueFull));
    assert_eq!(source.capacity_notifications(), 0);
    respond(&iopf, A, 2).unwrap();
    assert_eq!(source.capacity_notifications(), 1);
    respond(&iopf, A, 1).unwrap();
    assert_eq!(source.capacity_notifications(), 1, "notified again");
    assert_eq!(report_group(&iopf, A, 9), Ok(()));
    assert_eq!(other.capacity_notifications(), 0);
}

#[test]
fn events_of_a_group_stay_consecutive_without_buffers() {
    let (iopf, _) = with_page_requests();
    for address in [0x1000, 0x2000, 0x3000] {
        iopf.report_page_request(B, request(1, address, address == 0x3000)).unwrap();
    }
    let group = GroupId(1);
    let (events, status) = deliver_to(&iopf, 2);
    assert_eq!(events, [R(B, group, 0x1000, false), R(B, group, 0x2000, false)]);
    assert_eq!(status, DeliveryStatus::NoBuffer);
    // A would be served before B, but the group of B is partially delivered.
    report_group(&iopf, A, 2).unwrap();
    iopf.report_fault(fault(B, 9));
    assert_eq!(deliver_all(&iopf), [R(B, group, 0x3000, true), R(A, group, 0x2000, true), F(B, 9)]);
}

#[test]
fn all_faults_are_dropped_when_page_requests_lack_buffers() {
    let (iopf, _) = with_page_requests();
    report_group(&iopf, A, 1).unwrap();
    assert_eq!(deliver_to(&iopf, 0), (vec![], DeliveryStatus::NoBuffer));
    iopf.report_fault(fault(A, 1));
    iopf.report_fault(fault(B, 2));
    assert_eq!(deliver_to(&iopf, 0), (vec![], DeliveryStatus::NoBuffer));
    assert_eq!(deliver_all(&iopf), [R(A, GroupId(1), 0x1000, true)]);
    let dropped: Vec<_> = iopf.counters().map(|(_, faults, _)| faults.dropped).collect();
    assert_eq!(dropped, [1, 1]);
}

#[test]
fn detach_completes_groups_of_the_attachment() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.attach(A, PASID, Handler::Queue);
    report_group(&iopf, A, 1).unwrap();
    report_pasid_group(&iopf, 5, 2);
    deliver_all(&iopf);
    report_group(&iopf, A, 3).unwrap();
    assert_eq!(iopf.detach(A, None), Some(Handler::Queue));
    assert_eq!(source.take_responses(), [(1, Response::Invalid), (3, Response::Invalid)]);
    assert_eq!(deliver_all(&iopf), [], "delivered a completed group");
    assert_eq!(respond(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    report_group(&iopf, A, 4).unwrap();
    assert_eq!(source.take_responses(), [(4, Response::Invalid)], "without an attachment");
    assert_eq!(iopf.detach(A, PASID), Some(Handler::Queue));
    assert_eq!(source.take_responses(), [(2, Response::Invalid)]);
    assert!(summary(&iopf, A).contains("detached 3, refused 1,"));
}

#[test]
fn detach_does_not_cut_off_a_partially_delivered_group() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    deliver_to(&iopf, 1);
    iopf.detach(A, None);
    assert_eq!(source.take_responses(), [(1, Response::Invalid)]);
    assert_eq!(deliver_all(&iopf), [R(A, GroupId(1), 0x2000, true)]);
    assert_eq!(respond(&iopf, A, 1), Err(RespondError::NoSuchGroup));
}

#[test]
fn reset_completes_all_groups_and_discards_their_events() {
    let (iopf, sources) = with_page_requests();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    report_group(&iopf, A, 2).unwrap();
    report_group(&iopf, B, 3).unwrap();
    deliver_to(&iopf, 1);
    iopf.reset();
    assert_eq!(sources[0].take_responses(), [(1, Response::Invalid), (2, Response::Invalid)]);
    assert_eq!(sources[1].take_responses(), [(3, Response::Invalid)]);
    assert_eq!(deliver_all(&iopf), []);
}

#[test]
fn withdraw_completes_partial_and_delivered_groups() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    report_group(&iopf, A, 2).unwrap();
    report_group(&iopf, A, 3).unwrap();
    deliver_to(&iopf, 1);
    iopf.withdraw(A);
    assert_eq!(source.take_responses().len(), 3);
    assert!(summary(&iopf, A).ends_with("withdrawn 3, waiting 0"));
    // A further request with the cookie of the partial group begins a new group.
    iopf.report_page_request(A, request(1, 0x1000, true)).unwrap();
    assert_eq!(deliver_all(&iopf).len(), 1);
}

#[test]
fn groups_complete_with_invalid_after_the_response_timeout() {
    let (iopf, [source, _]) = with_page_requests();
    report_group(&iopf, A, 1).unwrap();
    deliver_all(&iopf);
    iopf.advance_clock(29 * SECOND);
    report_group(&iopf, A, 2).unwrap();
    assert_eq!(source.take_responses(), []);
    iopf.advance_clock(SECOND);
    assert_eq!(source.take_responses(), [(1, Response::Invalid)]);
    assert_eq!(respond(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    iopf.advance_clock(29 * SECOND);
    assert_eq!(source.take_responses(), [(2, Response::Invalid)], "not delivered");
    assert_eq!(deliver_all(&iopf), []);
    assert!(summary(&iopf, A).contains("timed out 2"));
}

#[test]
fn failure_stops_the_endpoint_until_detach_or_reset() {
    let restarts: [fn(&Iopf); 4] = [
        |iopf| _ = iopf.detach(A, PASID),
        |iopf| _ = iopf.detach(A, None),
        |iopf| iopf.reset(),
        |iopf| iopf.withdraw(A),
    ];
    for restart in restarts {
        let (iopf, [source, _]) = with_page_requests();
        iopf.attach(A, PASID, Handler::Queue);
        iopf.attach(A, Some(Pasid(6)), Handler::Queue);
        report_pasid_group(&iopf, 5, 1);
        report_pasid_group(&iopf, 6, 2);
        deliver_all(&iopf);
        iopf.respond(A, GroupId(1), PASID, true, Response::Failure).unwrap();
        report_pasid_group(&iopf, 6, 3);
        assert_eq!(source.take_responses(), [(1, Response::Failure), (3, Response::Invalid)]);
        iopf.detach(A, Some(Pasid(7)));
        report_pasid_group(&iopf, 6, 4);
        assert_eq!(source.take_responses(), [(4, Response::Invalid)], "other PASID detached");
        restart(&iopf);
        source.take_responses();
        report_pasid_group(&iopf, 6, 5);
        assert_eq!(deliver_all(&iopf).len(), 1);
        assert_eq!(source.take_responses(), []);
    }
}

#[test]
fn page_requests_become_faults_if_not_negotiated() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.enable_page_requests(false);
    report_group(&iopf, A, 1).unwrap();
    iopf.report_page_request(A, PageRequest { pasid: PASID, ..request(2, 0x5000, true) }).unwrap();
    assert_eq!(source.take_responses(), [(1, Response::Invalid), (2, Response::Invalid)]);
    assert_eq!(deliver_all(&iopf), [F(A, 0x1000), F(A, 0x5000)]);
}

#[test]
fn page_requests_before_the_first_attach_are_rejected() {
    let iopf = Iopf::new([A], LIMITS, Box::new(CountingNotifier::default()));
    let source = Arc::new(RecordingSource::default());
    iopf.set_source(A, source.clone());
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    assert_eq!(source.take_responses(), []);
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    assert_eq!(source.take_responses(), [(1, Response::Invalid)]);
    assert_eq!(deliver_all(&iopf), [F(A, 0x1000), F(A, 0x2000)]);
    assert!(summary(&iopf, A).starts_with("groups 1 requests 2:"));
}

#[test]
fn group_with_too_many_requests_is_rejected() {
    let (iopf, [source, _]) = with_page_requests();
    for page in 0..5000 {
        iopf.report_page_request(A, request(1, page << 12, page == 4999)).unwrap();
    }
    assert_eq!(source.take_responses(), [(1, Response::Invalid)]);
    assert_eq!(deliver_all(&iopf), []);
}

#[test]
fn group_identifiers_are_reused_as_late_as_possible() {
    let (iopf, _) = with_page_requests();
    report_group(&iopf, A, 0).unwrap();
    deliver_all(&iopf);
    let mut last = 1;
    for cookie in 1..=u32::from(u16::MAX) {
        report_group(&iopf, A, cookie).unwrap();
        let [R(_, GroupId(id), ..)] = deliver_all(&iopf)[..] else { panic!() };
        let expected = if last == u16::MAX { 0 } else { last + 1 };
        assert_eq!(id, expected);
        respond(&iopf, A, id).unwrap();
        last = id;
    }
    report_group(&iopf, A, 0).unwrap();
    let [R(_, group, ..)] = deliver_all(&iopf)[..] else { panic!() };
    assert_eq!(group, GroupId(2), "group 1 is still outstanding");
}

#[test]
#[should_panic(expected = "page request group dropped without a response")]
fn dropping_a_group_without_a_response_panics() {
    let source = Arc::new(RecordingSource::default());
    drop(Group::new(A, source, &request(1, 0, true), None));
}

#[test]
fn group_is_not_delivered_if_its_source_expects_no_response() {
    let (iopf, [source, _]) = with_page_requests();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    *source.completed_by_host.lock().unwrap() = Some(1);
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    iopf.report_page_request(A, request(2, 0x3000, true)).unwrap();
    assert_eq!(deliver_all(&iopf), [R(A, GroupId(1), 0x3000, true)]);
    let (_, _, requests) = iopf.counters().next().unwrap();
    assert_eq!((requests.groups, requests.withdrawn, requests.outstanding), (2, 1, 1));
}
