//! The waiting of channels in any order of events, without threads: what the worker, the client
//! and the fault path do is cut into the steps that the registers' lock makes of it.

use super::*;
use crate::exec::Outcome;
use crate::faults::{PageRequest, PrgIndex, QueueFull, Response};
use crate::function::{Function, Turn};
use crate::pri::Group;
use proptest::prelude::*;
use std::collections::BTreeMap;

const USED: u32 = 4;
/// Each channel copies these pages, which come and go, to a page of its own, which does too.
const SHARED: u64 = SOURCE;
const PAGES: u64 = 3;
/// Most groups that the fault path keeps.
const MOST_GROUPS: usize = 2;

/// One event.
#[derive(Clone, Debug)]
enum Event {
    /// The worker makes its next step: takes a turn, runs it, makes one page request, comes back.
    Work,
    /// The fault path answers one of the groups it knows, complete or not.
    Answer(usize, Response),
    /// The fault path has room, whether it was asked for or not.
    Resume,
    /// Pages come or go.
    Map(u64, bool),
    Enable(u32),
    Disable(u32),
    /// A write to a byte of the page request interface.
    Pri(usize, u8),
    Allow(Allowed),
    ResetRegisters,
    ResetFunction,
}

fn event() -> impl Strategy<Value = Event> {
    let response = prop_oneof![
        12 => Just(Response::Success),
        3 => Just(Response::Invalid),
        1 => Just(Response::Failure),
    ];
    let page = prop_oneof![0..PAGES, 16..16 + USED as u64];
    let allowed = (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.9))
        .prop_map(|(bus_master, pasids, ats)| Allowed { bus_master, pasids, ats });
    let pri = prop_oneof![
        4 => Just((0, 1)),
        1 => Just((0, 0)),
        1 => Just((0, 2)),
        1 => Just((2, 3)),
        2 => (Just(8), 0..8u8),
    ];
    prop_oneof![
        60 => Just(Event::Work),
        15 => (0..8usize, response).prop_map(|(which, response)| Event::Answer(which, response)),
        5 => Just(Event::Resume),
        10 => (page, any::<bool>()).prop_map(|(page, mapped)| Event::Map(page, mapped)),
        10 => (0..USED).prop_map(Event::Enable),
        3 => (0..USED).prop_map(Event::Disable),
        6 => pri.prop_map(|(byte, value)| Event::Pri(byte, value)),
        2 => allowed.prop_map(Event::Allow),
        1 => Just(Event::ResetRegisters),
        1 => Just(Event::ResetFunction),
    ]
}

/// Where the worker stands between two of its steps.
enum Worker {
    Idle,
    /// Has run a turn of the channel and not told the outcome yet.
    Ran(usize, Box<Outcome>),
    /// Makes the requests of a group; so many are made.
    Asks(Group, usize),
}

/// A group in the fault path.
struct Known {
    channel: usize,
    requests: Vec<PageRequest>,
}

struct Model {
    function: Function,
    executor: Executor,
    dma: Arc<FakeDma>,
    worker: Worker,
    known: BTreeMap<PrgIndex, Known>,
    /// The fault path has said that it has no room.
    full: bool,
    /// The index that each channel waits for, in the model's view.
    waits: [Option<PrgIndex>; CHANNELS],
}

impl Model {
    fn new() -> Self {
        let dma = Arc::new(FakeDma::mapping(RING..=RECORDS + PAGE - 1));
        let executor = Executor::new(dma.clone(), Arc::new(FakeFaults::default()));
        let waits = [None; CHANNELS];
        let (function, worker) = (Function::default(), Worker::Idle);
        let mut model =
            Self { function, executor, dma, worker, known: BTreeMap::new(), full: false, waits };
        model.function.allowed = Allowed { bus_master: true, pasids: true, ats: true };
        model.function.write_pri(8, 6);
        model.function.write_pri(0, 1);
        (0..USED).for_each(|channel| model.enable(channel));
        model
    }

    /// Channels differ in their groups' size, and two of them use a PASID.
    fn enable(&mut self, channel: u32) {
        let base = RING + channel as u64 * PAGE;
        let copy = Descriptor {
            source: SHARED + 8,
            destination: TARGET + channel as u64 * PAGE,
            ..descriptor(OP_COPY, (PAGES - 1) * PAGE, channel as u64)
        };
        self.dma.put(base, &copy.to_bytes());
        let set = |function: &mut Function, register, value| {
            function.write(channel_register(channel, register), value);
        };
        set(&mut self.function, CH_RING_BASE, base as u32);
        set(&mut self.function, CH_RING_SIZE, ENTRIES);
        set(&mut self.function, CH_GROUP_PAGES, channel);
        set(&mut self.function, CH_PASID, (channel % 2) * (CH_PASID_VALID | channel));
        set(&mut self.function, CH_CONTROL, CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
        set(&mut self.function, CH_DOORBELL, 1);
    }

    fn is_busy(&self, channel: u32) -> bool {
        self.function.read(channel_register(channel, CH_STATUS)) & CH_STATUS_BUSY != 0
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Work => drop(self.work()),
            Event::Answer(which, response) => {
                if let Some(&index) = self.known.keys().nth(which) {
                    self.answer(index, response);
                }
            }
            Event::Resume => self.resume(),
            Event::Map(page, mapped) => self.map(page, mapped),
            change => {
                // Such a change waits for the end of the turn, requests included.
                while !matches!(self.worker, Worker::Idle) {
                    self.work();
                }
                self.change(change);
            }
        }
        self.check();
    }

    fn change(&mut self, change: Event) {
        match change {
            Event::Enable(channel) => self.enable(channel),
            Event::Disable(channel) => {
                self.function.write(channel_register(channel, CH_CONTROL), 0);
                self.waits[channel as usize] = None;
            }
            Event::Pri(byte, value) => {
                if self.function.write_pri(byte, value) {
                    self.withdraw();
                }
            }
            Event::Allow(allowed) => self.function.allowed = allowed,
            Event::ResetRegisters => {
                self.function.write(CONTROL, CONTROL_RESET);
                self.waits = [None; CHANNELS];
            }
            _ => {
                self.function.reset_all();
                self.withdraw();
            }
        }
    }

    fn withdraw(&mut self) {
        self.known.clear();
        self.waits = [None; CHANNELS];
        self.full = false;
    }

    fn map(&self, page: u64, mapped: bool) {
        let at = SHARED + page * PAGE;
        let at = if page < PAGES { at } else { TARGET + (page - 16) * PAGE };
        if mapped { self.dma.map(at..=at, true) } else { self.dma.unmap(at..=at) }
    }

    /// One step of the worker; false if it has nothing to do.
    fn work(&mut self) -> bool {
        self.worker = match std::mem::replace(&mut self.worker, Worker::Idle) {
            Worker::Idle => match self.function.next_turn() {
                None => return false,
                Some(turn) => self.run(turn),
            },
            Worker::Ran(channel, outcome) => match self.function.finish(channel, Some(*outcome)) {
                None => Worker::Idle,
                Some(group) => {
                    self.waits[channel] = Some(group.index);
                    Worker::Asks(group, 0)
                }
            },
            Worker::Asks(group, made) => self.request(group, made),
        };
        true
    }

    fn run(&mut self, Turn { channel, requester, task }: Turn) -> Worker {
        assert_eq!(self.waits[channel], None, "a channel that waits for an answer has no turn");
        Worker::Ran(channel, Box::new(self.executor.turn(requester, task)))
    }

    /// The fault path refuses the first of a group only, and knows an answered one no more.
    fn request(&mut self, group: Group, made: usize) -> Worker {
        if made == 0 && self.known.len() >= MOST_GROUPS {
            self.full = true;
            self.waits[group.channel] = None;
            self.function.asked(&group, Some(Err(QueueFull)));
            return Worker::Idle;
        }
        let Some(request) = group.requests().nth(made) else {
            self.function.asked(&group, Some(Ok(())));
            return Worker::Idle;
        };
        if made == 0 {
            let known = Known { channel: group.channel, requests: Vec::new() };
            assert!(self.known.insert(group.index, known).is_none(), "a index is unique");
        }
        if let Some(known) = self.known.get_mut(&group.index) {
            known.requests.push(request);
        }
        Worker::Asks(group, made + 1)
    }

    fn answer(&mut self, index: PrgIndex, response: Response) {
        let Some(known) = self.known.remove(&index) else { return };
        if self.waits[known.channel] == Some(index) {
            self.waits[known.channel] = None;
        }
        if response == Response::Failure {
            self.waits = [None; CHANNELS];
        }
        self.function.answer(known.requests[0].pasid, index, response);
        if std::mem::take(&mut self.full) {
            self.function.resume();
        }
    }

    fn resume(&mut self) {
        self.full = false;
        self.function.resume();
    }

    fn check(&self) {
        let pri = self.function.read_pri();
        let allocation = u32::from_le_bytes(pri[8..].try_into().unwrap());
        let outstanding: usize = self.known.values().map(|known| known.requests.len()).sum();
        if pri[0] == 1 {
            assert!(outstanding as u32 <= allocation.min(PRI_CAPACITY), "more than allocated");
        }
        assert_eq!(pri[2] & 2, 0, "every answer was expected");
    }

    /// The guest does what it should: every channel comes to its end.
    fn drain(&mut self) {
        self.function.allowed = Allowed { bus_master: true, pasids: true, ats: true };
        (0..PAGES).chain(16..16 + USED as u64 + 1).for_each(|page| self.map(page, true));
        let mut steps = 0;
        while self.work() || !self.known.is_empty() {
            if let Some((&index, _)) = self.known.first_key_value() {
                self.answer(index, Response::Success);
            }
            self.check();
            steps += 1;
            assert!(steps < 1000, "work without end");
        }
        for channel in 0..USED {
            assert!(!self.is_busy(channel), "channel {channel} waits for ever");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn no_channel_waits_for_ever(events in prop::collection::vec(event(), 1..120)) {
        let mut model = Model::new();
        for event in events {
            model.apply(event);
        }
        model.drain();
    }
}
