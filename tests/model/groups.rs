//! Compares the fault path with a model, for sequences of page requests, deliveries, responses,
//! attachments and resets. Each group must get one response, the one that the model predicts; its
//! events must be consecutive and in order; limits must hold.
//!
//! All changes of an endpoint's groups are made under one lock, so that sequences of calls cover
//! all interleavings.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use proptest::prelude::*;
use vhost_user_iommu::address::{EndpointId, Iova, Pasid};
use vhost_user_iommu::host::Access;
use vhost_user_iommu::iopf::{
    DeliveryStatus, Event, EventNotifier, GroupId, Handler, Iopf, Limits, PageRequest, QueueFull,
    RespondError, Response, Source, SourceCookie,
};

const ENDPOINTS: [EndpointId; 2] = [EndpointId(8), EndpointId(16)];
const PASIDS: [Option<Pasid>; 2] = [None, Some(Pasid(5))];
/// Maximum number of outstanding groups of an endpoint.
const LIMIT: usize = 3;
/// The response timeout in ticks.
const TIMEOUT: u32 = 3;
const TICK: Duration = Duration::from_secs(1);
const CODES: [Response; 3] = [Response::Success, Response::Invalid, Response::Failure];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The source makes a page request, in its partial group or otherwise in a new one.
    Request {
        endpoint: usize,
        pasid: usize,
        last: bool,
    },
    /// Events are delivered to a driver with this number of buffers.
    Deliver {
        buffers: usize,
    },
    /// The guest responds to the `nth` of the groups that it has received, counted from the
    /// newest, or to an undelivered one if `nth` is too large.
    Respond {
        endpoint: usize,
        nth: usize,
        pasid: usize,
        code: usize,
    },
    Attach {
        endpoint: usize,
        pasid: usize,
    },
    Detach {
        endpoint: usize,
        pasid: usize,
    },
    /// The source is reset.
    Withdraw {
        endpoint: usize,
    },
    /// The device is reset.
    Reset,
    Tick,
    /// The driver negotiates features, with or without page requests.
    Negotiate(bool),
}

/// Records the calls of the fault path.
#[derive(Default)]
struct RecordingSource {
    responses: Mutex<Vec<(Option<Pasid>, u32, Response)>>,
    capacity_notifications: AtomicUsize,
}

impl Source for RecordingSource {
    fn respond(&self, pasid: Option<Pasid>, cookie: SourceCookie, response: Response) {
        self.responses.lock().unwrap().push((pasid, cookie.0, response));
    }

    fn capacity_available(&self) {
        self.capacity_notifications.fetch_add(1, Ordering::SeqCst);
    }
}

struct NoNotifier;

impl EventNotifier for NoNotifier {
    fn notify(&self) {}
}

/// A group in the model.
#[derive(Clone, Debug)]
struct Group {
    cookie: u32,
    pasid: Option<Pasid>,
    pages: u64,
    age: u32,
    /// The guest's identifier, if the group is delivered.
    id: Option<GroupId>,
}

/// The partially delivered group.
#[derive(Clone, Copy, Debug)]
struct PartialDelivery {
    endpoint: usize,
    cookie: u32,
    pages: u64,
    delivered: u64,
    id: GroupId,
}

#[derive(Default)]
struct Endpoint {
    attached: Vec<Option<Pasid>>,
    stopped_by: Option<Option<Pasid>>,
    /// The group of which the source has not made the last request.
    partial: Option<Group>,
    /// Outstanding groups with all their requests, oldest first.
    groups: Vec<Group>,
    /// Delivered groups, outstanding or not, newest last.
    delivered: Vec<GroupId>,
    last_id: Option<GroupId>,
    next_cookie: u32,
    /// The source received `QueueFull` and was not notified since.
    blocked: bool,
}

impl Endpoint {
    fn outstanding(&self) -> usize {
        self.groups.len() + usize::from(self.partial.is_some())
    }

    /// Removes the groups that match `predicate`.
    fn take(&mut self, predicate: impl Fn(&Group) -> bool) -> Vec<Group> {
        let (taken, kept) = std::mem::take(&mut self.groups).into_iter().partition(predicate);
        self.groups = kept;
        taken
    }
}

type Responses = Vec<(Option<Pasid>, u32, Response)>;

fn invalid_responses(groups: Vec<Group>) -> Responses {
    groups.iter().map(|group| (group.pasid, group.cookie, Response::Invalid)).collect()
}

struct Test {
    iopf: Iopf,
    sources: [Arc<RecordingSource>; 2],
    endpoints: [Endpoint; 2],
    partial_delivery: Option<PartialDelivery>,
    page_requests_enabled: bool,
    /// The endpoint of the group whose delivery started last.
    last_started: Option<usize>,
}

impl Test {
    fn new() -> Self {
        let limits = Limits { faults: 4, groups: LIMIT, response_timeout: TICK * TIMEOUT };
        let iopf = Iopf::new(ENDPOINTS, limits, Box::new(NoNotifier));
        let sources: [Arc<RecordingSource>; 2] = Default::default();
        for (endpoint, source) in ENDPOINTS.into_iter().zip(&sources) {
            iopf.set_source(endpoint, source.clone());
        }
        iopf.enable_page_requests(true);
        let mut test = Self {
            iopf,
            sources,
            endpoints: Default::default(),
            partial_delivery: None,
            page_requests_enabled: true,
            last_started: None,
        };
        for endpoint in 0..2 {
            for pasid in 0..2 {
                test.step(Step::Attach { endpoint, pasid });
            }
        }
        test
    }

    /// Executes a step, and checks all responses and counters.
    fn step(&mut self, step: Step) {
        let mut expected: [Responses; 2] = Default::default();
        match step {
            Step::Request { endpoint, pasid, last } => {
                expected[endpoint] = self.request(endpoint, PASIDS[pasid], last);
            }
            Step::Deliver { buffers } => self.deliver(buffers),
            Step::Respond { endpoint, nth, pasid, code } => {
                expected[endpoint] = self.respond(endpoint, nth, PASIDS[pasid], CODES[code]);
            }
            Step::Attach { endpoint, pasid } => self.attach(endpoint, PASIDS[pasid]),
            Step::Detach { endpoint, pasid } => {
                expected[endpoint] = self.detach(endpoint, PASIDS[pasid]);
            }
            Step::Withdraw { endpoint } => expected[endpoint] = self.withdraw(endpoint),
            Step::Reset => expected = self.reset(),
            Step::Tick => expected = self.advance_clock(),
            Step::Negotiate(enabled) => {
                self.iopf.enable_page_requests(enabled);
                self.page_requests_enabled = enabled;
            }
        }
        for (endpoint, expected) in expected.into_iter().enumerate() {
            self.check(endpoint, expected);
        }
    }

    fn check(&mut self, endpoint: usize, mut expected: Responses) {
        let (model, source) = (&mut self.endpoints[endpoint], &self.sources[endpoint]);
        let mut responses = std::mem::take(&mut *source.responses.lock().unwrap());
        responses.sort_by_key(|response| response.1);
        expected.sort_by_key(|response| response.1);
        assert_eq!(responses, expected, "endpoint {endpoint}");
        // A blocked source is notified once, by the first response.
        let notified = model.blocked && !responses.is_empty();
        assert_eq!(source.capacity_notifications.swap(0, Ordering::SeqCst), usize::from(notified));
        model.blocked &= !notified;
        assert!(model.outstanding() <= LIMIT);
        self.check_counters(endpoint);
    }

    fn check_counters(&self, endpoint: usize) {
        let (.., all) = self.iopf.counters().nth(endpoint).unwrap();
        let by_guest = all.success + all.invalid + all.failure;
        let by_daemon = all.detached + all.rejected + all.timed_out + all.reset + all.withdrawn;
        assert_eq!(all.groups, by_guest + by_daemon + all.outstanding, "{all}");
        assert_eq!(all.outstanding as usize, self.endpoints[endpoint].outstanding(), "{all}");
    }

    fn request(&mut self, endpoint: usize, pasid: Option<Pasid>, last: bool) -> Responses {
        let model = &mut self.endpoints[endpoint];
        let is_new = model.partial.is_none();
        let new = Group { cookie: model.next_cookie, pasid, pages: 0, age: 0, id: None };
        let mut group = model.partial.take().unwrap_or(new);
        let request = PageRequest {
            pasid: group.pasid,
            cookie: SourceCookie(group.cookie),
            address: page(group.cookie, group.pages),
            access: Access::READ,
            exec: false,
            privileged: false,
            last,
        };
        let full = is_new && model.outstanding() >= LIMIT;
        let result = self.iopf.report_page_request(ENDPOINTS[endpoint], request);
        assert_eq!(result, if full { Err(QueueFull) } else { Ok(()) });
        if full {
            model.blocked = true;
            return vec![];
        }
        model.next_cookie += u32::from(is_new);
        (group.pages, group.age) = (group.pages + 1, 0);
        if !last {
            model.partial = Some(group);
        } else if self.page_requests_enabled
            && model.attached.contains(&group.pasid)
            && model.stopped_by.is_none()
        {
            model.groups.push(group);
        } else {
            return invalid_responses(vec![group]);
        }
        vec![]
    }

    fn deliver(&mut self, buffers: usize) {
        let mut events = Vec::new();
        let mut faults = false;
        let delivered = loop {
            let delivered = self.iopf.deliver(&mut |event| match event {
                Event::Fault(_) => {
                    faults = true;
                    true
                }
                Event::PageRequest { endpoint, group, request } if events.len() < buffers => {
                    events.push((endpoint, group, *request));
                    true
                }
                Event::PageRequest { .. } => false,
            });
            if delivered != DeliveryStatus::More {
                break delivered;
            }
        };
        // Faults count in the service order, too, but not in the model.
        self.last_started.take_if(|_| faults);
        for &(endpoint, id, request) in &events {
            let endpoint = ENDPOINTS.iter().position(|&id| id == endpoint).unwrap();
            self.receive(endpoint, id, &request);
        }
        self.last_started.take_if(|_| faults);
        let undelivered = self.endpoints.iter().any(|e| e.groups.iter().any(|g| g.id.is_none()));
        let more = undelivered || self.partial_delivery.is_some();
        assert_eq!(
            delivered,
            if more { DeliveryStatus::NoBuffer } else { DeliveryStatus::Complete }
        );
        assert!(!more || events.len() == buffers, "events were not delivered despite free buffers");
    }

    /// The guest receives a page request.
    fn receive(&mut self, endpoint: usize, id: GroupId, request: &PageRequest) {
        let mut partial =
            self.partial_delivery.take().unwrap_or_else(|| self.start_delivery(endpoint, id));
        assert_eq!(
            (endpoint, id),
            (partial.endpoint, partial.id),
            "events of a group are not consecutive"
        );
        assert_eq!(request.cookie.0, partial.cookie, "not the oldest group");
        assert_eq!(request.address, page(partial.cookie, partial.delivered));
        partial.delivered += 1;
        assert_eq!(request.last, partial.delivered == partial.pages);
        if !request.last {
            self.partial_delivery = Some(partial);
            return;
        }
        let model = &mut self.endpoints[endpoint];
        model.delivered.push(id);
        if let Some(group) = model.groups.iter_mut().find(|group| group.cookie == partial.cookie) {
            group.id = Some(id);
        }
    }

    fn start_delivery(&mut self, endpoint: usize, id: GroupId) -> PartialDelivery {
        let has_undelivered = |e: &Endpoint| e.groups.iter().any(|group| group.id.is_none());
        let other_is_pending = has_undelivered(&self.endpoints[1 - endpoint]);
        let same_endpoint = self.last_started.replace(endpoint) == Some(endpoint);
        assert!(!other_is_pending || !same_endpoint, "not round robin");
        let model = &mut self.endpoints[endpoint];
        assert!(
            model.groups.iter().all(|group| group.id != Some(id)),
            "identifier of an outstanding group"
        );
        assert_ne!(model.last_id.replace(id), Some(id), "identifier was reused immediately");
        let group =
            model.groups.iter().find(|group| group.id.is_none()).expect("no undelivered group");
        PartialDelivery { endpoint, cookie: group.cookie, pages: group.pages, delivered: 0, id }
    }

    fn respond(
        &mut self,
        endpoint: usize,
        nth: usize,
        pasid: Option<Pasid>,
        code: Response,
    ) -> Responses {
        let model = &mut self.endpoints[endpoint];
        let partial = self
            .partial_delivery
            .filter(|partial| partial.endpoint == endpoint)
            .map(|partial| partial.id);
        let id = model.delivered.iter().rev().nth(nth).copied().or(partial).unwrap_or(GroupId(999));
        let index = model.groups.iter().position(|group| group.id == Some(id));
        let expected = match index.map(|index| model.groups[index].pasid) {
            Some(of_group) if of_group == pasid => Ok(()),
            Some(Some(_)) if pasid.is_none() => Err(RespondError::PasidMissing),
            _ => Err(RespondError::NoSuchGroup),
        };
        let result = self.iopf.respond(ENDPOINTS[endpoint], id, pasid, true, code);
        assert_eq!(result, expected);
        if result.is_err() {
            return vec![];
        }
        let group = model.groups.remove(index.unwrap());
        if code == Response::Failure {
            model.stopped_by = Some(pasid);
        }
        vec![(pasid, group.cookie, code)]
    }

    fn attach(&mut self, endpoint: usize, pasid: Option<Pasid>) {
        self.iopf.attach(ENDPOINTS[endpoint], pasid, Handler::Queue);
        let attached = &mut self.endpoints[endpoint].attached;
        attached.retain(|other| *other != pasid);
        attached.push(pasid);
    }

    fn detach(&mut self, endpoint: usize, pasid: Option<Pasid>) -> Responses {
        self.iopf.detach(ENDPOINTS[endpoint], pasid);
        let model = &mut self.endpoints[endpoint];
        model.attached.retain(|other| *other != pasid);
        if pasid.is_none() || model.stopped_by == Some(pasid) {
            model.stopped_by = None;
        }
        invalid_responses(model.take(|group| group.pasid == pasid))
    }

    fn withdraw(&mut self, endpoint: usize) -> Responses {
        self.iopf.withdraw(ENDPOINTS[endpoint]);
        let model = &mut self.endpoints[endpoint];
        model.stopped_by = None;
        let partial = model.partial.take();
        invalid_responses(model.take(|_| true).into_iter().chain(partial).collect())
    }

    fn reset(&mut self) -> [Responses; 2] {
        self.iopf.reset();
        (self.partial_delivery, self.last_started) = (None, None);
        self.endpoints.each_mut().map(|model| {
            model.stopped_by = None;
            model.delivered.clear();
            invalid_responses(model.take(|_| true))
        })
    }

    fn advance_clock(&mut self) -> [Responses; 2] {
        self.iopf.advance_clock(TICK);
        self.endpoints.each_mut().map(|model| {
            model.groups.iter_mut().for_each(|group| group.age += 1);
            invalid_responses(model.take(|group| group.age >= TIMEOUT))
        })
    }

    /// Asserts that no group is left after a reset of the device and its sources.
    fn finish(mut self) {
        self.step(Step::Reset);
        for endpoint in 0..2 {
            self.step(Step::Withdraw { endpoint });
            assert_eq!(self.endpoints[endpoint].outstanding(), 0);
        }
        self.step(Step::Deliver { buffers: 100 });
        assert!(!self.iopf.has_outstanding_groups());
    }
}

/// Returns the address of the `nth` request of a group.
fn page(cookie: u32, nth: u64) -> Iova {
    Iova((u64::from(cookie) << 32) + (nth << 12))
}

fn run(steps: &[Step]) {
    let mut test = Test::new();
    steps.iter().for_each(|&step| test.step(step));
    test.finish();
}

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (0..2usize, 0..2usize, prop::bool::weighted(0.7))
            .prop_map(|(endpoint, pasid, last)| Step::Request { endpoint, pasid, last }),
        6 => (0..5usize).prop_map(|buffers| Step::Deliver { buffers }),
        6 => (0..2usize, 0..4usize, 0..2usize, 0..3usize).prop_map(
            |(endpoint, nth, pasid, code)| Step::Respond { endpoint, nth, pasid, code }
        ),
        2 => (0..2usize, 0..2usize).prop_map(|(endpoint, pasid)| Step::Attach { endpoint, pasid }),
        2 => (0..2usize, 0..2usize).prop_map(|(endpoint, pasid)| Step::Detach { endpoint, pasid }),
        1 => (0..2usize).prop_map(|endpoint| Step::Withdraw { endpoint }),
        1 => Just(Step::Reset),
        2 => Just(Step::Tick),
        1 => prop::bool::weighted(0.8).prop_map(Step::Negotiate),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(500), ..ProptestConfig::default() })]

    #[test]
    fn random_sequences_match_the_model(
        steps in prop::collection::vec(steps(), 1..80)
    ) {
        run(&steps);
    }
}

/// Runs all sequences of five steps on one attachment, after the first request of a group.
#[test]
fn all_short_sequences_match_the_model() {
    let alphabet = [
        Step::Request { endpoint: 0, pasid: 1, last: true },
        Step::Request { endpoint: 0, pasid: 1, last: false },
        Step::Deliver { buffers: 1 },
        Step::Respond { endpoint: 0, nth: 0, pasid: 1, code: 0 },
        Step::Respond { endpoint: 0, nth: 0, pasid: 1, code: 2 },
        Step::Detach { endpoint: 0, pasid: 1 },
        Step::Attach { endpoint: 0, pasid: 1 },
        Step::Withdraw { endpoint: 0 },
        Step::Reset,
        Step::Tick,
    ];
    let mut sequence = vec![alphabet[1]];
    all_sequences(&alphabet, 5, &mut sequence);
}

fn all_sequences(alphabet: &[Step], length: usize, sequence: &mut Vec<Step>) {
    if length == 0 {
        return run(sequence);
    }
    for &step in alphabet {
        sequence.push(step);
        all_sequences(alphabet, length - 1, sequence);
        sequence.pop();
    }
}
