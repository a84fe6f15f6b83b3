//! A driver that maps and unmaps pages, and measures the time.

use std::collections::BTreeSet;
use std::ops::Range;
use std::time::{Duration, Instant};

use crate::daemon::Daemon;
use crate::front_end::FrontEnd;
use crate::memory::{GuestMemory, PAGE};
use crate::random::Random;
use crate::virtqueue::Virtqueue;

use super::{FEATURES, Requests, start_driver};

/// Maximum number of requests in flight.
const SLOTS: usize = 256;
const MEMORY: u64 = 1 << 20;
/// Address of the event queue, which stays empty.
const EVENTS: u64 = 0x8_0000;

/// A driver with an attached endpoint, for `MAP` and `UNMAP`.
///
/// ```no_run
/// use testing::bench::{Driver, start_daemon};
///
/// let mut daemon = start_daemon(1, "--poll-us 50");
/// let mut driver = Driver::connect(&mut daemon);
/// println!("{:?}", driver.map(&[0, 1, 2]));
/// ```
pub struct Driver {
    requests: Requests,
    live: usize,
    random: Random,
    _front_end: FrontEnd,
}

impl Driver {
    /// Connects, and attaches an endpoint.
    pub fn connect(daemon: &mut Daemon) -> Self {
        let ram = GuestMemory::new(&[(0, MEMORY)]);
        let requests = Requests::new(&ram, 0);
        let events = Virtqueue::new(&ram, 2, EVENTS, 0..0);
        let queues = [&requests.queue, &events];
        let front_end = start_driver(daemon, &ram, FEATURES, queues);
        requests.write(0, &[&[1, 0, 0, 0], &1u32.to_le_bytes(), &16u32.to_le_bytes(), &[0; 8]]);
        let mut driver = Self { requests, live: 0, random: Random(1), _front_end: front_end };
        driver.submit(1);
        driver
    }

    /// Makes `count` requests available and spins until all are used.
    fn submit(&mut self, count: usize) -> Duration {
        let start = Instant::now();
        self.requests.submit(count);
        self.requests.spin(0);
        let taken = start.elapsed();
        self.requests.check(count);
        taken
    }

    /// Writes the MAP of the `n`-th mapping: every other page, so that no two are adjacent.
    fn write_map(&self, ahead: usize, n: usize) {
        let (first, last) = range(n);
        let range = [first.to_le_bytes(), last.to_le_bytes(), [0; 8]].concat();
        let head = [3, 0, 0, 0, 1, 0, 0, 0];
        self.requests.write(ahead, &[&head, &range, &3u32.to_le_bytes()]);
    }

    fn write_unmap(&self, ahead: usize, n: usize) {
        let (first, last) = range(n);
        let range = [first.to_le_bytes(), last.to_le_bytes()].concat();
        self.requests.write(ahead, &[&[4, 0, 0, 0, 1, 0, 0, 0], &range, &[0; 4]]);
    }

    /// Creates these mappings in one batch.
    pub fn map(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_map(ahead, n));
        self.submit(mappings.len())
    }

    /// Removes these mappings in one batch.
    pub fn unmap(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_unmap(ahead, n));
        self.submit(mappings.len())
    }

    /// Creates the first `live` mappings.
    pub fn populate(&mut self, live: usize) {
        let new: Vec<usize> = (self.live..live).collect();
        for mappings in new.chunks(SLOTS) {
            self.map(mappings);
        }
        self.live = live;
    }

    /// Removes all mappings.
    pub fn clear(&mut self) {
        self.requests
            .write(0, &[&[4, 0, 0, 0, 1, 0, 0, 0], &[0; 8], &u64::MAX.to_le_bytes(), &[0; 4]]);
        self.submit(1);
        self.live = 0;
    }

    /// Chooses `count` different mappings at random.
    pub fn choose(&mut self, count: usize, among: Range<usize>) -> Vec<usize> {
        let mut chosen = BTreeSet::new();
        while chosen.len() < count {
            chosen.insert(among.start + self.random.below(among.len()));
        }
        chosen.into_iter().collect()
    }
}

fn range(n: usize) -> (u64, u64) {
    let first = 0x1_0000_0000 + 2 * PAGE * n as u64;
    (first, first + PAGE - 1)
}
