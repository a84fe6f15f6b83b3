//! Random interleavings of the worker, the client and the fault handler, without threads. Each
//! step is one critical section under the lock of the registers.

use super::*;
use crate::faults::{PageRequest, PrgIndex, QueueFull, Response};
use crate::function::{Function, Slice};
use crate::pri::Group;
use crate::work::Outcome;
use proptest::prelude::*;
use std::collections::BTreeMap;

const USED: u32 = 4;
/// Every channel copies these pages to a separate page; all of them are mapped and unmapped.
const SHARED: u64 = SOURCE;
const PAGES: u64 = 3;
/// Capacity of the fault handler's queue, in groups.
const MAX_GROUPS: usize = 2;

/// One event.
#[derive(Clone, Debug)]
enum Event {
    /// The worker makes its next step: selects and executes a slice, applies the outcome, or submits
    /// one page request.
    Work,
    /// The fault handler completes one of its groups, even if not all requests have arrived.
    Respond(usize, Response),
    /// The fault handler reports capacity, even if its queue was not full.
    CapacityAvailable,
    /// A page is mapped or unmapped.
    Map(u64, bool),
    Enable(u32),
    Disable(u32),
    /// A write to a byte of the page request interface.
    Pri(usize, u8),
    SetEnables(Enables),
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
    let enables = (prop::bool::weighted(0.9), prop::bool::weighted(0.9), prop::bool::weighted(0.9))
        .prop_map(|(bus_master, pasid, ats)| Enables { bus_master, pasid, ats });
    let pri = prop_oneof![
        4 => Just((0, 1)),
        1 => Just((0, 0)),
        1 => Just((0, 2)),
        1 => Just((2, 3)),
        2 => (Just(8), 0..8u8),
    ];
    prop_oneof![
        60 => Just(Event::Work),
        15 => (0..8usize, response).prop_map(|(which, response)| Event::Respond(which, response)),
        5 => Just(Event::CapacityAvailable),
        10 => (page, any::<bool>()).prop_map(|(page, mapped)| Event::Map(page, mapped)),
        10 => (0..USED).prop_map(Event::Enable),
        3 => (0..USED).prop_map(Event::Disable),
        6 => pri.prop_map(|(byte, value)| Event::Pri(byte, value)),
        2 => enables.prop_map(Event::SetEnables),
        1 => Just(Event::ResetRegisters),
        1 => Just(Event::ResetFunction),
    ]
}

/// State of the worker between two steps.
enum Worker {
    Idle,
    /// Has executed a slice of the channel; the outcome is not applied yet.
    Executed(usize, Box<Outcome>),
    /// Submits the requests of a group; the number of those submitted.
    Submits(Group, usize),
}

/// A group in the fault handler's queue.
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
    /// The fault handler has rejected a group.
    full: bool,
    /// Group that each channel waits for.
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
        model.function.enables = Enables { bus_master: true, pasid: true, ats: true };
        model.function.write_pri(8, 6);
        model.function.write_pri(0, 1);
        (0..USED).for_each(|channel| model.enable(channel));
        model
    }

    /// The channels have different group sizes, and two of them use a PASID.
    fn enable(&mut self, channel: u32) {
        let base = RING + channel as u64 * PAGE;
        let copy = Descriptor {
            source: SHARED + 8,
            destination: TARGET + channel as u64 * PAGE,
            ..descriptor(OP_COPY, (PAGES - 1) * PAGE, channel as u64)
        };
        self.dma.write_memory(base, &copy.to_bytes());
        let mut set = |register, value| {
            self.function.write(channel_register(channel, register), value);
        };
        set(CH_RING_BASE, base as u32);
        set(CH_RING_SIZE, ENTRIES);
        set(CH_GROUP_PAGES, channel);
        set(CH_PASID, (channel % 2) * (CH_PASID_VALID | channel));
        set(CH_CONTROL, CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
        set(CH_DOORBELL, 1);
    }

    fn is_busy(&self, channel: u32) -> bool {
        self.function.read(channel_register(channel, CH_STATUS)) & CH_STATUS_BUSY != 0
    }

    fn apply(&mut self, event: Event) {
        match event {
            Event::Work => drop(self.work()),
            Event::Respond(which, response) => {
                if let Some(&index) = self.known.keys().nth(which) {
                    self.respond(index, response);
                }
            }
            Event::CapacityAvailable => self.capacity_available(),
            Event::Map(page, mapped) => self.map(page, mapped),
            change => {
                // Such a change waits for the end of the slice and of its page requests.
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
            Event::SetEnables(enables) => self.function.enables = enables,
            Event::ResetRegisters => {
                self.function.write(CONTROL, CONTROL_RESET);
                self.waits = [None; CHANNELS];
            }
            _ => {
                self.function.reset();
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

    /// Makes one step of the worker. Returns false if there is none.
    fn work(&mut self) -> bool {
        self.worker = match std::mem::replace(&mut self.worker, Worker::Idle) {
            Worker::Idle => match self.function.next_slice() {
                None => return false,
                Some(slice) => self.execute(slice),
            },
            Worker::Executed(channel, outcome) => {
                match self.function.finish(channel, Some(*outcome)) {
                    None => Worker::Idle,
                    Some(group) => {
                        self.waits[channel] = Some(group.index);
                        Worker::Submits(group, 0)
                    }
                }
            }
            Worker::Submits(group, made) => self.request(group, made),
        };
        true
    }

    fn execute(&mut self, Slice { channel, requester, task }: Slice) -> Worker {
        assert_eq!(self.waits[channel], None, "a channel that waits for a response gets no slice");
        Worker::Executed(channel, Box::new(self.executor.execute(requester, task)))
    }

    /// The fault handler rejects only the first request of a group, and ignores requests of a
    /// completed one.
    fn request(&mut self, group: Group, made: usize) -> Worker {
        if made == 0 && self.known.len() >= MAX_GROUPS {
            self.full = true;
            self.waits[group.channel] = None;
            self.function.submitted(&group, Some(Err(QueueFull)));
            return Worker::Idle;
        }
        let Some(request) = group.requests().nth(made) else {
            self.function.submitted(&group, Some(Ok(())));
            return Worker::Idle;
        };
        if made == 0 {
            let known = Known { channel: group.channel, requests: Vec::new() };
            assert!(self.known.insert(group.index, known).is_none(), "indexes are unique");
        }
        if let Some(known) = self.known.get_mut(&group.index) {
            known.requests.push(request);
        }
        Worker::Submits(group, made + 1)
    }

    fn respond(&mut self, index: PrgIndex, response: Response) {
        let Some(known) = self.known.remove(&index) else { return };
        if self.waits[known.channel] == Some(index) {
            self.waits[known.channel] = None;
        }
        if response == Response::Failure {
            self.waits = [None; CHANNELS];
        }
        self.function.respond(known.requests[0].pasid, index, response);
        if std::mem::take(&mut self.full) {
            self.function.capacity_available();
        }
    }

    fn capacity_available(&mut self) {
        self.full = false;
        self.function.capacity_available();
    }

    fn check(&self) {
        let pri = self.function.read_pri();
        let allocation = u32::from_le_bytes(pri[8..].try_into().unwrap());
        let outstanding: usize = self.known.values().map(|known| known.requests.len()).sum();
        if pri[0] == 1 {
            assert!(outstanding as u32 <= allocation.min(PRI_CAPACITY), "allocation exceeded");
        }
        assert_eq!(pri[2] & 2, 0, "no response was unexpected");
    }

    /// Maps all pages and completes all groups; every channel must become idle.
    fn drain(&mut self) {
        self.function.enables = Enables { bus_master: true, pasid: true, ats: true };
        (0..PAGES).chain(16..16 + USED as u64 + 1).for_each(|page| self.map(page, true));
        let mut steps = 0;
        while self.work() || !self.known.is_empty() {
            if let Some((&index, _)) = self.known.first_key_value() {
                self.respond(index, Response::Success);
            }
            self.check();
            steps += 1;
            assert!(steps < 1000, "work does not end");
        }
        for channel in 0..USED {
            assert!(!self.is_busy(channel), "channel {channel} never becomes idle");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn every_channel_becomes_idle(events in prop::collection::vec(event(), 1..120)) {
        let mut model = Model::new();
        for event in events {
            model.apply(event);
        }
        model.drain();
    }
}
