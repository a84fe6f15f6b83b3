//! The life of page request groups: whatever happens in whatever order, each group is answered
//! once, by whom the model says; groups are shown whole and in order; bounds are kept.
//!
//! Everything that changes an endpoint's groups does so under one lock, so the sequences of calls
//! are all the interleavings there are.

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
/// Unanswered groups of an endpoint.
const LIMIT: usize = 3;
/// A group is given up after this many ticks.
const PATIENCE: u32 = 3;
const TICK: Duration = Duration::from_secs(1);
const CODES: [Response; 3] = [Response::Success, Response::Invalid, Response::Failure];

#[derive(Clone, Copy, Debug)]
enum Step {
    /// The source makes a request: the next of the group that it is making, else a new group's.
    Request {
        endpoint: usize,
        pasid: usize,
        last: bool,
    },
    /// The driver has so many buffers.
    Deliver {
        buffers: usize,
    },
    /// The guest answers a group that it has seen, counted from the newest, or one that it has
    /// not (`nth` too large).
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
    /// The driver takes page requests, or does not.
    Accept(bool),
}

/// What a source is told.
#[derive(Default)]
struct Recorder {
    answers: Mutex<Vec<(Option<Pasid>, u32, Response)>>,
    resumed: AtomicUsize,
}

impl Source for Recorder {
    fn respond(&self, pasid: Option<Pasid>, cookie: SourceCookie, response: Response) {
        self.answers.lock().unwrap().push((pasid, cookie.0, response));
    }

    fn capacity_available(&self) {
        self.resumed.fetch_add(1, Ordering::SeqCst);
    }
}

struct Silent;

impl EventNotifier for Silent {
    fn notify(&self) {}
}

/// A group as the model knows it.
#[derive(Clone, Debug)]
struct Group {
    cookie: u32,
    pasid: Option<Pasid>,
    pages: u64,
    age: u32,
    /// What the guest calls it, once it has seen the whole.
    id: Option<GroupId>,
}

/// The group of which the guest has seen the beginning only.
#[derive(Clone, Copy, Debug)]
struct Amid {
    endpoint: usize,
    cookie: u32,
    pages: u64,
    shown: u64,
    id: GroupId,
}

#[derive(Default)]
struct Endpoint {
    attached: Vec<Option<Pasid>>,
    stopped_by: Option<Option<Pasid>>,
    /// What the source is making.
    partial: Option<Group>,
    /// Complete and not answered, oldest first.
    groups: Vec<Group>,
    /// What the guest has seen the whole of, answered or not, newest last.
    seen: Vec<GroupId>,
    last_id: Option<GroupId>,
    next_cookie: u32,
    /// The source was told that there is no room.
    waits: bool,
}

impl Endpoint {
    fn waiting(&self) -> usize {
        self.groups.len() + usize::from(self.partial.is_some())
    }

    /// Takes those of the complete groups that `which` chooses.
    fn take(&mut self, which: impl Fn(&Group) -> bool) -> Vec<Group> {
        let (taken, kept) = std::mem::take(&mut self.groups).into_iter().partition(which);
        self.groups = kept;
        taken
    }
}

type Answers = Vec<(Option<Pasid>, u32, Response)>;

fn invalid(groups: Vec<Group>) -> Answers {
    groups.iter().map(|group| (group.pasid, group.cookie, Response::Invalid)).collect()
}

struct Test {
    iopf: Iopf,
    sources: [Arc<Recorder>; 2],
    endpoints: [Endpoint; 2],
    amid: Option<Amid>,
    accepted: bool,
    /// The endpoint whose group was begun last.
    last_begun: Option<usize>,
}

impl Test {
    fn new() -> Self {
        let limits = Limits { faults: 4, groups: LIMIT, response_timeout: TICK * PATIENCE };
        let iopf = Iopf::new(ENDPOINTS, limits, Box::new(Silent));
        let sources: [Arc<Recorder>; 2] = Default::default();
        for (endpoint, source) in ENDPOINTS.into_iter().zip(&sources) {
            iopf.set_source(endpoint, source.clone());
        }
        iopf.enable_page_requests(true);
        let mut test = Self {
            iopf,
            sources,
            endpoints: Default::default(),
            amid: None,
            accepted: true,
            last_begun: None,
        };
        for endpoint in 0..2 {
            for pasid in 0..2 {
                test.step(Step::Attach { endpoint, pasid });
            }
        }
        test
    }

    /// Does it, and checks everything.
    fn step(&mut self, step: Step) {
        let mut expected: [Answers; 2] = Default::default();
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
            Step::Accept(accepted) => {
                self.iopf.enable_page_requests(accepted);
                self.accepted = accepted;
            }
        }
        for (endpoint, expected) in expected.into_iter().enumerate() {
            self.check(endpoint, expected);
        }
    }

    fn check(&mut self, endpoint: usize, mut expected: Answers) {
        let (model, source) = (&mut self.endpoints[endpoint], &self.sources[endpoint]);
        let mut answers = std::mem::take(&mut *source.answers.lock().unwrap());
        answers.sort_by_key(|answer| answer.1);
        expected.sort_by_key(|answer| answer.1);
        assert_eq!(answers, expected, "endpoint {endpoint}");
        // Whoever waits for room hears of the first there is.
        let hears = model.waits && !answers.is_empty();
        assert_eq!(source.resumed.swap(0, Ordering::SeqCst), usize::from(hears));
        model.waits &= !hears;
        assert!(model.waiting() <= LIMIT);
        self.check_counters(endpoint);
    }

    fn check_counters(&self, endpoint: usize) {
        let (.., all) = self.iopf.counters().nth(endpoint).unwrap();
        let by_guest = all.success + all.invalid + all.failure;
        let by_daemon = all.detached + all.rejected + all.timed_out + all.reset + all.withdrawn;
        assert_eq!(all.groups, by_guest + by_daemon + all.outstanding, "{all}");
        assert_eq!(all.outstanding as usize, self.endpoints[endpoint].waiting(), "{all}");
    }

    fn request(&mut self, endpoint: usize, pasid: Option<Pasid>, last: bool) -> Answers {
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
        let full = is_new && model.waiting() >= LIMIT;
        let result = self.iopf.report_page_request(ENDPOINTS[endpoint], request);
        assert_eq!(result, if full { Err(QueueFull) } else { Ok(()) });
        if full {
            model.waits = true;
            return vec![];
        }
        model.next_cookie += u32::from(is_new);
        (group.pages, group.age) = (group.pages + 1, 0);
        if !last {
            model.partial = Some(group);
        } else if self.accepted
            && model.attached.contains(&group.pasid)
            && model.stopped_by.is_none()
        {
            model.groups.push(group);
        } else {
            return invalid(vec![group]);
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
        // Faults take turns too, which are not counted here.
        self.last_begun.take_if(|_| faults);
        for &(endpoint, id, request) in &events {
            let endpoint = ENDPOINTS.iter().position(|&id| id == endpoint).unwrap();
            self.shown(endpoint, id, &request);
        }
        self.last_begun.take_if(|_| faults);
        let unseen = self.endpoints.iter().any(|e| e.groups.iter().any(|g| g.id.is_none()));
        let more = unseen || self.amid.is_some();
        assert_eq!(
            delivered,
            if more { DeliveryStatus::NoBuffer } else { DeliveryStatus::Complete }
        );
        assert!(!more || events.len() == buffers, "buffers are left, and events too");
    }

    /// The guest sees a request.
    fn shown(&mut self, endpoint: usize, id: GroupId, request: &PageRequest) {
        let mut amid = self.amid.take().unwrap_or_else(|| self.begin(endpoint, id));
        assert_eq!((endpoint, id), (amid.endpoint, amid.id), "something came between");
        assert_eq!(request.cookie.0, amid.cookie, "not the oldest");
        assert_eq!(request.address, page(amid.cookie, amid.shown));
        amid.shown += 1;
        assert_eq!(request.last, amid.shown == amid.pages);
        if !request.last {
            self.amid = Some(amid);
            return;
        }
        let model = &mut self.endpoints[endpoint];
        model.seen.push(id);
        if let Some(group) = model.groups.iter_mut().find(|group| group.cookie == amid.cookie) {
            group.id = Some(id);
        }
    }

    fn begin(&mut self, endpoint: usize, id: GroupId) -> Amid {
        let has_unseen = |e: &Endpoint| e.groups.iter().any(|group| group.id.is_none());
        let other = has_unseen(&self.endpoints[1 - endpoint]);
        let again = self.last_begun.replace(endpoint) == Some(endpoint);
        assert!(!other || !again, "two turns, and the other waits");
        let model = &mut self.endpoints[endpoint];
        assert!(model.groups.iter().all(|group| group.id != Some(id)), "in use");
        assert_ne!(model.last_id.replace(id), Some(id), "used again at once");
        let group = model.groups.iter().find(|group| group.id.is_none()).expect("answered");
        Amid { endpoint, cookie: group.cookie, pages: group.pages, shown: 0, id }
    }

    fn respond(
        &mut self,
        endpoint: usize,
        nth: usize,
        pasid: Option<Pasid>,
        code: Response,
    ) -> Answers {
        let model = &mut self.endpoints[endpoint];
        let amid = self.amid.filter(|amid| amid.endpoint == endpoint).map(|amid| amid.id);
        let id = model.seen.iter().rev().nth(nth).copied().or(amid).unwrap_or(GroupId(999));
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

    fn detach(&mut self, endpoint: usize, pasid: Option<Pasid>) -> Answers {
        self.iopf.detach(ENDPOINTS[endpoint], pasid);
        let model = &mut self.endpoints[endpoint];
        model.attached.retain(|other| *other != pasid);
        if pasid.is_none() || model.stopped_by == Some(pasid) {
            model.stopped_by = None;
        }
        invalid(model.take(|group| group.pasid == pasid))
    }

    fn withdraw(&mut self, endpoint: usize) -> Answers {
        self.iopf.withdraw(ENDPOINTS[endpoint]);
        let model = &mut self.endpoints[endpoint];
        model.stopped_by = None;
        let partial = model.partial.take();
        invalid(model.take(|_| true).into_iter().chain(partial).collect())
    }

    fn reset(&mut self) -> [Answers; 2] {
        self.iopf.reset();
        (self.amid, self.last_begun) = (None, None);
        self.endpoints.each_mut().map(|model| {
            model.stopped_by = None;
            model.seen.clear();
            invalid(model.take(|_| true))
        })
    }

    fn advance_clock(&mut self) -> [Answers; 2] {
        self.iopf.advance_clock(TICK);
        self.endpoints.each_mut().map(|model| {
            model.groups.iter_mut().for_each(|group| group.age += 1);
            invalid(model.take(|group| group.age >= PATIENCE))
        })
    }

    /// Whatever has happened, nothing is left once the device and its sources have been reset.
    fn finish(mut self) {
        self.step(Step::Reset);
        for endpoint in 0..2 {
            self.step(Step::Withdraw { endpoint });
            assert_eq!(self.endpoints[endpoint].waiting(), 0);
        }
        self.step(Step::Deliver { buffers: 100 });
        assert!(!self.iopf.has_outstanding_groups());
    }
}

/// Where the `nth` request of a group points.
fn page(cookie: u32, nth: u64) -> Iova {
    Iova((u64::from(cookie) << 32) + (nth << 12))
}

fn run(steps: &[Step]) {
    let mut test = Test::new();
    steps.iter().for_each(|&step| test.step(step));
    test.finish();
}

fn steps() -> impl Strategy<Value = Step> {
    let endpoint = || 0..2usize;
    let pasid = || 0..2usize;
    prop_oneof![
        8 => (endpoint(), pasid(), prop::bool::weighted(0.7))
            .prop_map(|(endpoint, pasid, last)| Step::Request { endpoint, pasid, last }),
        6 => (0..5usize).prop_map(|buffers| Step::Deliver { buffers }),
        6 => (endpoint(), 0..4usize, pasid(), 0..3usize).prop_map(
            |(endpoint, nth, pasid, code)| Step::Respond { endpoint, nth, pasid, code }
        ),
        2 => (endpoint(), pasid()).prop_map(|(endpoint, pasid)| Step::Attach { endpoint, pasid }),
        2 => (endpoint(), pasid()).prop_map(|(endpoint, pasid)| Step::Detach { endpoint, pasid }),
        1 => endpoint().prop_map(|endpoint| Step::Withdraw { endpoint }),
        1 => Just(Step::Reset),
        2 => Just(Step::Tick),
        1 => prop::bool::weighted(0.8).prop_map(Step::Accept),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]

    #[test]
    fn each_group_is_answered_once_by_whom_the_model_says(
        steps in prop::collection::vec(steps(), 1..80)
    ) {
        run(&steps);
    }
}

/// All sequences of five steps that concern one attachment, after a group was begun.
#[test]
fn every_short_sequence_of_events_answers_each_group_once() {
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
