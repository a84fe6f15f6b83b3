use std::sync::Mutex;
use std::sync::atomic::AtomicUsize;

use super::*;
use crate::address::Iova;
use crate::host::Access;

#[derive(Clone, Default)]
struct Rings(Arc<AtomicUsize>);

impl EventNotifier for Rings {
    fn notify(&self) {
        self.0.fetch_add(1, Ordering::SeqCst);
    }
}

/// A source that remembers its answers.
#[derive(Default)]
struct Recorder {
    answers: Mutex<Vec<(u32, Response)>>,
    resumed: AtomicUsize,
    /// A group that its host has answered.
    answered_by_host: Mutex<Option<u32>>,
}

impl Recorder {
    fn take(&self) -> Vec<(u32, Response)> {
        std::mem::take(&mut self.answers.lock().unwrap())
    }
}

impl Source for Recorder {
    fn respond(&self, _: Option<Pasid>, cookie: SourceCookie, response: Response) {
        self.answers.lock().unwrap().push((cookie.0, response));
    }

    fn expects_response(&self, cookie: SourceCookie) -> bool {
        *self.answered_by_host.lock().unwrap() != Some(cookie.0)
    }

    fn capacity_available(&self) {
        self.resumed.fetch_add(1, Ordering::SeqCst);
    }
}

/// What the driver has been given.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Seen {
    Fault(EndpointId, u64),
    Request(EndpointId, GroupId, u64, bool),
}

use Seen::{Fault as F, Request as R};

const A: EndpointId = EndpointId(8);
const B: EndpointId = EndpointId(16);
const LIMITS: Limits = Limits { faults: 8, groups: 4, response_time: Duration::from_secs(30) };
const SECOND: Duration = Duration::from_secs(1);

fn iopf(faults: usize) -> (Iopf, Rings) {
    let rings = Rings::default();
    let iopf = Iopf::new([A, B], Limits { faults, ..LIMITS }, Box::new(rings.clone()));
    iopf.attach(A, None, Handler::Queue);
    iopf.attach(B, None, Handler::Queue);
    (iopf, rings)
}

/// With a driver that takes page requests.
fn with_sources() -> (Iopf, [Arc<Recorder>; 2]) {
    let iopf = Iopf::new([A, B], LIMITS, Box::new(Rings::default()));
    let sources = [A, B].map(|endpoint| {
        let source = Arc::new(Recorder::default());
        iopf.set_source(endpoint, source.clone());
        source
    });
    iopf.enable_page_requests(true);
    iopf.attach(A, None, Handler::Queue);
    iopf.attach(B, None, Handler::Queue);
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

/// A group of one request.
fn ask(iopf: &Iopf, endpoint: EndpointId, cookie: u32) -> Result<(), QueueFull> {
    iopf.report_page_request(endpoint, request(cookie, u64::from(cookie) << 12, true))
}

fn seen(event: Event) -> Seen {
    match event {
        Event::Fault(fault) => F(fault.endpoint, fault.address.0),
        Event::PageRequest { endpoint, group, request } => {
            R(endpoint, group, request.address.0, request.last)
        }
    }
}

/// Delivers into `buffers` buffers.
fn drain_into(iopf: &Iopf, buffers: usize) -> (Vec<Seen>, DeliveryStatus) {
    let mut all = Vec::new();
    loop {
        let delivered = iopf.deliver(&mut |event| {
            let taken = all.len() < buffers;
            if taken {
                all.push(seen(event));
            }
            taken
        });
        if delivered != DeliveryStatus::More {
            return (all, delivered);
        }
    }
}

fn drain(iopf: &Iopf) -> Vec<Seen> {
    drain_into(iopf, usize::MAX).0
}

fn answer(iopf: &Iopf, endpoint: EndpointId, group: u16) -> Result<(), RespondError> {
    iopf.respond(endpoint, GroupId(group), None, true, Response::Success)
}

fn summary(iopf: &Iopf, endpoint: EndpointId) -> String {
    let (.., requests) = iopf.counters().find(|(id, ..)| *id == endpoint).unwrap();
    requests.to_string()
}

#[test]
fn endpoints_take_turns_and_each_keeps_its_order() {
    let (iopf, _) = iopf(8);
    for address in 0..4 {
        iopf.report_fault(fault(A, address));
    }
    iopf.report_fault(fault(B, 0));
    assert_eq!(drain(&iopf), [F(A, 0), F(B, 0), F(A, 1), F(A, 2), F(A, 3)]);
}

#[test]
fn a_full_queue_drops_the_newest_and_only_its_own() {
    let (iopf, _) = iopf(2);
    let outcomes: Vec<_> = (0..3).map(|address| iopf.report_fault(fault(A, address))).collect();
    assert_eq!(outcomes, [FaultOutcome::Queued, FaultOutcome::Queued, FaultOutcome::Dropped]);
    assert_eq!(iopf.report_fault(fault(B, 0)), FaultOutcome::Queued);
    assert_eq!(drain(&iopf), [F(A, 0), F(B, 0), F(A, 1)]);
}

#[test]
fn the_doorbell_rings_once_until_the_server_comes() {
    let (iopf, rings) = iopf(8);
    iopf.report_fault(fault(A, 0));
    iopf.report_fault(fault(B, 0));
    assert_eq!(rings.0.load(Ordering::SeqCst), 1);
    drain(&iopf);
    iopf.report_fault(fault(B, 1));
    assert_eq!(rings.0.load(Ordering::SeqCst), 2);
}

#[test]
fn the_handler_of_the_attachment_decides() {
    let (iopf, rings) = iopf(8);
    iopf.attach(A, None, Handler::Direct);
    assert_eq!(iopf.report_fault(fault(A, 0)), FaultOutcome::Direct);
    assert_eq!(drain(&iopf), []);
    assert_eq!(rings.0.load(Ordering::SeqCst), 0);
    let other_pasid = Fault { pasid: Some(Pasid(1)), ..fault(A, 0) };
    assert_eq!(iopf.report_fault(other_pasid), FaultOutcome::Queued);
}

#[test]
fn counters_of_faults_add_up() {
    let (iopf, _) = iopf(3);
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
    assert_eq!(iopf.report_fault(fault(EndpointId(99), 0)), FaultOutcome::Dropped);
}

#[test]
fn a_group_is_delivered_whole_and_answered_once() {
    let (iopf, [source, _]) = with_sources();
    iopf.report_page_request(A, request(7, 0x1000, false)).unwrap();
    assert_eq!(drain(&iopf), []);
    iopf.report_page_request(A, request(7, 0x2000, true)).unwrap();
    let group = GroupId(1);
    assert_eq!(drain(&iopf), [R(A, group, 0x1000, false), R(A, group, 0x2000, true)]);
    assert!(iopf.has_pending_groups());
    assert_eq!(answer(&iopf, A, 1), Ok(()));
    assert_eq!(answer(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    assert_eq!(source.take(), [(7, Response::Success)]);
    assert!(!iopf.has_pending_groups());
    assert_eq!(
        summary(&iopf, A),
        "groups 1 requests 2: success 1, invalid 0, failure 0, detached 0, refused 0, \
         timed out 0, reset 0, withdrawn 0, waiting 0"
    );
}

#[test]
fn a_group_that_was_not_shown_cannot_be_answered() {
    let (iopf, [source, _]) = with_sources();
    iopf.report_page_request(A, request(7, 0x1000, false)).unwrap();
    iopf.report_page_request(A, request(7, 0x2000, true)).unwrap();
    assert_eq!(answer(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    assert_eq!(
        drain_into(&iopf, 1),
        (vec![R(A, GroupId(1), 0x1000, false)], DeliveryStatus::NoBuffer)
    );
    assert_eq!(answer(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    drain(&iopf);
    assert_eq!(answer(&iopf, B, 1), Err(RespondError::NoSuchGroup), "of another endpoint");
    assert_eq!(answer(&iopf, EndpointId(99), 1), Err(RespondError::NoSuchGroup));
    assert_eq!(source.take(), []);
    assert_eq!(answer(&iopf, A, 1), Ok(()));
}

#[test]
fn an_answer_names_the_pasid_where_that_is_needed() {
    let (iopf, [source, _]) = with_sources();
    iopf.attach(A, Some(Pasid(5)), Handler::Queue);
    for cookie in 0..2 {
        iopf.report_page_request(
            A,
            PageRequest { pasid: Some(Pasid(5)), ..request(cookie, 0, true) },
        )
        .unwrap();
    }
    drain(&iopf);
    let answer = |pasid: Option<u32>, needs_pasid| {
        iopf.respond(A, GroupId(1), pasid.map(Pasid), needs_pasid, Response::Invalid)
    };
    assert_eq!(answer(Some(6), true), Err(RespondError::NoSuchGroup));
    assert_eq!(answer(None, true), Err(RespondError::PasidMissing));
    assert_eq!(answer(Some(5), true), Ok(()));
    assert_eq!(iopf.respond(A, GroupId(2), None, false, Response::Success), Ok(()));
    assert_eq!(source.take(), [(0, Response::Invalid), (1, Response::Success)]);

    ask(&iopf, A, 2).unwrap();
    drain(&iopf);
    let with_pasid = iopf.respond(A, GroupId(3), Some(Pasid(5)), true, Response::Success);
    assert_eq!(with_pasid, Err(RespondError::NoSuchGroup), "the group has none");
}

#[test]
fn a_source_with_too_many_groups_is_held_back() {
    let (iopf, [source, other]) = with_sources();
    for cookie in 0..4 {
        iopf.report_page_request(A, request(cookie, 0, false)).unwrap();
    }
    assert_eq!(ask(&iopf, A, 9), Err(QueueFull));
    assert_eq!(ask(&iopf, B, 9), Ok(()));
    // Begun groups go on, and count until they are answered.
    for cookie in 0..4 {
        iopf.report_page_request(A, request(cookie, 0x1000, true)).unwrap();
        assert_eq!(ask(&iopf, A, 9), Err(QueueFull));
    }
    drain(&iopf);
    assert_eq!(ask(&iopf, A, 9), Err(QueueFull));
    assert_eq!(source.resumed.load(Ordering::SeqCst), 0);
    answer(&iopf, A, 2).unwrap();
    assert_eq!(source.resumed.load(Ordering::SeqCst), 1);
    answer(&iopf, A, 1).unwrap();
    assert_eq!(source.resumed.load(Ordering::SeqCst), 1, "told once");
    assert_eq!(ask(&iopf, A, 9), Ok(()));
    assert_eq!(other.resumed.load(Ordering::SeqCst), 0);
}

#[test]
fn groups_wait_for_buffers_and_nothing_comes_between() {
    let (iopf, _) = with_sources();
    for address in [0x1000, 0x2000, 0x3000] {
        iopf.report_page_request(B, request(1, address, address == 0x3000)).unwrap();
    }
    let group = GroupId(1);
    let (events, delivered) = drain_into(&iopf, 2);
    assert_eq!(events, [R(B, group, 0x1000, false), R(B, group, 0x2000, false)]);
    assert_eq!(delivered, DeliveryStatus::NoBuffer);
    // A is before B in order, but B is not done.
    ask(&iopf, A, 2).unwrap();
    iopf.report_fault(fault(B, 9));
    assert_eq!(drain(&iopf), [R(B, group, 0x3000, true), R(A, group, 0x2000, true), F(B, 9)]);
}

#[test]
fn faults_are_dropped_where_page_requests_wait() {
    let (iopf, _) = with_sources();
    ask(&iopf, A, 1).unwrap();
    assert_eq!(drain_into(&iopf, 0), (vec![], DeliveryStatus::NoBuffer));
    iopf.report_fault(fault(A, 1));
    iopf.report_fault(fault(B, 2));
    assert_eq!(drain_into(&iopf, 0), (vec![], DeliveryStatus::NoBuffer));
    assert_eq!(drain(&iopf), [R(A, GroupId(1), 0x1000, true)]);
    let dropped: Vec<_> = iopf.counters().map(|(_, faults, _)| faults.dropped).collect();
    assert_eq!(dropped, [1, 1]);
}

#[test]
fn detach_answers_the_groups_of_the_attachment() {
    let (iopf, [source, _]) = with_sources();
    iopf.attach(A, Some(Pasid(5)), Handler::Queue);
    ask(&iopf, A, 1).unwrap();
    iopf.report_page_request(A, PageRequest { pasid: Some(Pasid(5)), ..request(2, 0, true) })
        .unwrap();
    drain(&iopf);
    ask(&iopf, A, 3).unwrap();
    assert_eq!(iopf.detach(A, None), Some(Handler::Queue));
    assert_eq!(source.take(), [(1, Response::Invalid), (3, Response::Invalid)]);
    assert_eq!(drain(&iopf), [], "what was not begun is not shown");
    assert_eq!(answer(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    ask(&iopf, A, 4).unwrap();
    assert_eq!(source.take(), [(4, Response::Invalid)], "nobody to ask");
    assert_eq!(iopf.detach(A, Some(Pasid(5))), Some(Handler::Queue));
    assert_eq!(source.take(), [(2, Response::Invalid)]);
    assert!(summary(&iopf, A).contains("detached 3, refused 1,"));
}

#[test]
fn what_the_driver_has_seen_begin_it_sees_end() {
    let (iopf, [source, _]) = with_sources();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    drain_into(&iopf, 1);
    iopf.detach(A, None);
    assert_eq!(source.take(), [(1, Response::Invalid)]);
    assert_eq!(drain(&iopf), [R(A, GroupId(1), 0x2000, true)]);
    assert_eq!(answer(&iopf, A, 1), Err(RespondError::NoSuchGroup));
}

#[test]
fn reset_answers_all_and_leaves_nothing_to_deliver() {
    let (iopf, sources) = with_sources();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    ask(&iopf, A, 2).unwrap();
    ask(&iopf, B, 3).unwrap();
    drain_into(&iopf, 1);
    iopf.reset();
    assert_eq!(sources[0].take(), [(1, Response::Invalid), (2, Response::Invalid)]);
    assert_eq!(sources[1].take(), [(3, Response::Invalid)]);
    assert_eq!(drain(&iopf), []);
}

#[test]
fn withdrawn_groups_are_settled_complete_or_not() {
    let (iopf, [source, _]) = with_sources();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    ask(&iopf, A, 2).unwrap();
    ask(&iopf, A, 3).unwrap();
    drain_into(&iopf, 1);
    iopf.withdraw(A);
    assert_eq!(source.take().len(), 3);
    assert!(summary(&iopf, A).ends_with("withdrawn 3, waiting 0"));
    // The rest of the first would be the beginning of another.
    iopf.report_page_request(A, request(1, 0x1000, true)).unwrap();
    assert_eq!(drain(&iopf).len(), 1);
}

#[test]
fn a_guest_that_takes_too_long_is_not_waited_for() {
    let (iopf, [source, _]) = with_sources();
    ask(&iopf, A, 1).unwrap();
    drain(&iopf);
    iopf.advance_clock(29 * SECOND);
    ask(&iopf, A, 2).unwrap();
    assert_eq!(source.take(), []);
    iopf.advance_clock(SECOND);
    assert_eq!(source.take(), [(1, Response::Invalid)]);
    assert_eq!(answer(&iopf, A, 1), Err(RespondError::NoSuchGroup));
    iopf.advance_clock(29 * SECOND);
    assert_eq!(source.take(), [(2, Response::Invalid)], "never shown");
    assert_eq!(drain(&iopf), []);
    assert!(summary(&iopf, A).contains("timed out 2"));
}

#[test]
fn failure_stops_the_endpoint_until_it_is_detached_or_reset() {
    let ends: [fn(&Iopf); 4] = [
        |iopf| _ = iopf.detach(A, Some(Pasid(5))),
        |iopf| _ = iopf.detach(A, None),
        |iopf| iopf.reset(),
        |iopf| iopf.withdraw(A),
    ];
    for end in ends {
        let (iopf, [source, _]) = with_sources();
        for pasid in [5, 6] {
            iopf.attach(A, Some(Pasid(pasid)), Handler::Queue);
        }
        let ask_as = |pasid, cookie| {
            let pasid = Some(Pasid(pasid));
            iopf.report_page_request(A, PageRequest { pasid, ..request(cookie, 0, true) }).unwrap();
        };
        ask_as(5, 1);
        ask_as(6, 2);
        drain(&iopf);
        iopf.respond(A, GroupId(1), Some(Pasid(5)), true, Response::Failure).unwrap();
        ask_as(6, 3);
        assert_eq!(source.take(), [(1, Response::Failure), (3, Response::Invalid)]);
        iopf.detach(A, Some(Pasid(7)));
        ask_as(6, 4);
        assert_eq!(source.take(), [(4, Response::Invalid)], "another attachment went");
        end(&iopf);
        source.take();
        ask_as(6, 5);
        assert_eq!(drain(&iopf).len(), 1);
        assert_eq!(source.take(), []);
    }
}

#[test]
fn a_driver_that_takes_no_page_requests_hears_of_faults() {
    let (iopf, [source, _]) = with_sources();
    iopf.enable_page_requests(false);
    ask(&iopf, A, 1).unwrap();
    iopf.report_page_request(A, PageRequest { pasid: Some(Pasid(5)), ..request(2, 0x5000, true) })
        .unwrap();
    assert_eq!(source.take(), [(1, Response::Invalid), (2, Response::Invalid)]);
    assert_eq!(drain(&iopf), [F(A, 0x1000), F(A, 0x5000)]);
}

#[test]
fn an_endpoint_that_was_never_attached_gets_an_answer() {
    let iopf = Iopf::new([A], LIMITS, Box::new(Rings::default()));
    let source = Arc::new(Recorder::default());
    iopf.set_source(A, source.clone());
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    assert_eq!(source.take(), []);
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    assert_eq!(source.take(), [(1, Response::Invalid)]);
    assert_eq!(drain(&iopf), [F(A, 0x1000), F(A, 0x2000)]);
    assert!(summary(&iopf, A).starts_with("groups 1 requests 2:"));
}

#[test]
fn a_group_without_end_is_bounded_and_refused() {
    let (iopf, [source, _]) = with_sources();
    for page in 0..5000 {
        iopf.report_page_request(A, request(1, page << 12, page == 4999)).unwrap();
    }
    assert_eq!(source.take(), [(1, Response::Invalid)]);
    assert_eq!(drain(&iopf), []);
}

#[test]
fn group_identifiers_are_not_used_again_at_once() {
    let (iopf, _) = with_sources();
    ask(&iopf, A, 0).unwrap();
    drain(&iopf);
    let mut last = 1;
    for cookie in 1..=u32::from(u16::MAX) {
        ask(&iopf, A, cookie).unwrap();
        let [R(_, GroupId(id), ..)] = drain(&iopf)[..] else { panic!() };
        let expected = if last == u16::MAX { 0 } else { last + 1 };
        assert_eq!(id, expected);
        answer(&iopf, A, id).unwrap();
        last = id;
    }
    ask(&iopf, A, 0).unwrap();
    let [R(_, group, ..)] = drain(&iopf)[..] else { panic!() };
    assert_eq!(group, GroupId(2), "1 waits still");
}

#[test]
#[should_panic(expected = "a group was dropped without an answer")]
fn a_group_cannot_be_lost() {
    let source = Arc::new(Recorder::default());
    drop(ticket::Ticket::new(A, source, Arc::default(), None, SourceCookie(1)));
}

#[test]
fn a_group_that_its_source_does_not_wait_for_is_not_delivered() {
    let (iopf, [source, _]) = with_sources();
    iopf.report_page_request(A, request(1, 0x1000, false)).unwrap();
    *source.answered_by_host.lock().unwrap() = Some(1);
    iopf.report_page_request(A, request(1, 0x2000, true)).unwrap();
    iopf.report_page_request(A, request(2, 0x3000, true)).unwrap();
    let mut events = Vec::new();
    while iopf.deliver(&mut |event| {
        events.push(seen(event));
        true
    }) != DeliveryStatus::Complete
    {}
    assert_eq!(events, [R(A, GroupId(1), 0x3000, true)]);
    let (_, _, counted) = iopf.counters().next().unwrap();
    assert_eq!((counted.groups, counted.withdrawn, counted.pending), (2, 1, 1));
}
