//! A driver that maps and unmaps pages, and takes the time.

use std::ops::Range;
use std::time::{Duration, Instant};

use vhost::vhost_user::Frontend;

use crate::common::{self, Daemon, FEATURES, Requests};

const PAGE: u64 = 4096;
/// Requests in flight at most.
const SLOTS: usize = 256;
const MEMORY: usize = 1 << 20;

/// A driver's side of the request queue.
pub struct Driver {
    requests: Requests,
    live: usize,
    random: u64,
    _front_end: Frontend,
}

impl Driver {
    /// Connects, and attaches an endpoint.
    pub fn connect(daemon: &Daemon) -> Self {
        let memory = common::memory(MEMORY);
        let mut front_end = common::connect(daemon, &memory, FEATURES);
        let requests = Requests::start(&mut front_end, &memory, 0);
        requests.write(0, &[&[1, 0, 0, 0], &1u32.to_le_bytes(), &16u32.to_le_bytes(), &[0; 8]]);
        let mut driver = Self { requests, live: 0, random: 1, _front_end: front_end };
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

    /// The `n`-th mapping: every other page, so that none touches the next.
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

    /// Maps these, all at once.
    pub fn map(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_map(ahead, n));
        self.submit(mappings.len())
    }

    /// Unmaps these.
    pub fn unmap(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_unmap(ahead, n));
        self.submit(mappings.len())
    }

    /// Maps the first so many.
    pub fn populate(&mut self, live: usize) {
        let new: Vec<usize> = (self.live..live).collect();
        for mappings in new.chunks(SLOTS) {
            self.map(mappings);
        }
        self.live = live;
    }

    /// Unmaps all.
    pub fn clear(&mut self) {
        self.requests
            .write(0, &[&[4, 0, 0, 0, 1, 0, 0, 0], &[0; 8], &u64::MAX.to_le_bytes(), &[0; 4]]);
        self.submit(1);
        self.live = 0;
    }

    /// So many different ones of these, at random.
    pub fn choose(&mut self, count: usize, among: Range<usize>) -> Vec<usize> {
        let mut chosen = std::collections::BTreeSet::new();
        while chosen.len() < count {
            // Xorshift: any sequence will do that no cache foresees.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            chosen.insert(among.start + self.random as usize % among.len());
        }
        chosen.into_iter().collect()
    }
}

fn range(n: usize) -> (u64, u64) {
    let first = 0x1_0000_0000 + 2 * PAGE * n as u64;
    (first, first + PAGE - 1)
}
