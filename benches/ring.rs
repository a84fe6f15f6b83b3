//! What a request costs: MAP and UNMAP over a socket, from a front end that does what Linux does
//! (event index, kick only when asked for, then spin on the used ring).
//!
//! `cargo bench --bench ring`, or `./scripts/bench ring`. Prints time per request and requests
//! per second at several batch sizes and numbers of live mappings, each as a ratio to the fewest
//! mappings of the same run, and the daemon's memory per mapping.
//!
//! Where the mappings lie matters to the processor's caches: `near`, requests stay among a few
//! hundred neighbours, as those of Linux do, which uses again what it has freed; `far`, they go
//! to random places among all live mappings, the worst that a guest can do.

mod common;

use std::ops::Range;
use std::time::{Duration, Instant};

use common::{Daemon, FEATURES, Requests};
use vhost::vhost_user::Frontend;

const PAGE: u64 = 4096;
const BATCHES: [usize; 3] = [1, 16, 256];
const LIVE: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Neighbouring mappings that requests stay among.
const NEAR: usize = 512;
/// Requests timed for each pair of the above.
const REQUESTS: usize = 32_768;

/// Requests in flight at most.
const SLOTS: usize = 256;
const MEMORY: usize = 1 << 20;

fn main() {
    let daemon = Daemon::start(1);
    let mut driver = Driver::connect(&daemon);
    println!("memory: {:.0} bytes per mapping", driver.bytes_per_mapping());
    println!("nanoseconds for a request; in brackets: times that with {} live mappings", LIVE[0]);
    println!("batch    live place         map       unmap  requests/s");
    for batch in BATCHES {
        let mut base = [None; 2];
        for live in LIVE {
            driver.populate(live);
            for (place, base) in [Place::Near, Place::Far].into_iter().zip(&mut base) {
                let times = driver.churn(batch, live, place);
                print_row(batch, live, place, times, *base.get_or_insert(times));
            }
        }
        driver.clear();
    }
}

/// Which mappings requests are for.
#[derive(Clone, Copy, Debug)]
enum Place {
    Near,
    Far,
}

fn print_row(batch: usize, live: usize, place: Place, times: [f64; 2], base: [f64; 2]) {
    let [map, unmap] = times;
    println!(
        "{batch:5} {live:7} {:5} {map:5.0} ({:4.2}) {unmap:4.0} ({:4.2}) {:11.0}",
        format!("{place:?}").to_lowercase(),
        map / base[0],
        unmap / base[1],
        2e9 / (map + unmap),
    );
}

/// A driver's side of the request queue.
struct Driver {
    requests: Requests,
    live: usize,
    daemon: u32,
    random: u64,
    _front_end: Frontend,
}

impl Driver {
    fn connect(daemon: &Daemon) -> Self {
        let memory = common::memory(MEMORY);
        let mut front_end = common::connect(daemon, &memory, FEATURES);
        let requests = Requests::start(&mut front_end, &memory, 0);
        requests.write(0, &[&[1, 0, 0, 0], &1u32.to_le_bytes(), &16u32.to_le_bytes(), &[0; 8]]);
        let daemon = daemon.child.id();
        let mut driver = Self { requests, live: 0, daemon, random: 1, _front_end: front_end };
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

    fn map(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_map(ahead, n));
        self.submit(mappings.len())
    }

    fn unmap(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_unmap(ahead, n));
        self.submit(mappings.len())
    }

    fn populate(&mut self, live: usize) {
        let new: Vec<usize> = (self.live..live).collect();
        for mappings in new.chunks(SLOTS) {
            self.map(mappings);
        }
        self.live = live;
    }

    fn clear(&mut self) {
        self.requests
            .write(0, &[&[4, 0, 0, 0, 1, 0, 0, 0], &[0; 8], &u64::MAX.to_le_bytes(), &[0; 4]]);
        self.submit(1);
        self.live = 0;
    }

    /// Unmaps and maps again. Nanoseconds for a MAP and an UNMAP: medians over all batches.
    fn churn(&mut self, batch: usize, live: usize, place: Place) -> [f64; 2] {
        let mut times = [vec![], vec![]];
        let among = match place {
            Place::Near => live / 2 - NEAR / 2..live / 2 + NEAR / 2,
            Place::Far => 0..live,
        };
        for _ in 0..REQUESTS / batch / 2 {
            let chosen = self.choose(batch, among.clone());
            times[1].push(self.unmap(&chosen));
            times[0].push(self.map(&chosen));
        }
        times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_nanos() as f64 / batch as f64
        })
    }

    fn choose(&mut self, count: usize, among: Range<usize>) -> Vec<usize> {
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

    /// Of a daemon that has held no mapping before.
    fn bytes_per_mapping(&mut self) -> f64 {
        let before = resident(self.daemon);
        self.populate(LIVE[2]);
        let grown = resident(self.daemon) - before;
        self.clear();
        grown as f64 / LIVE[2] as f64
    }
}

fn range(n: usize) -> (u64, u64) {
    let first = 0x1_0000_0000 + 2 * PAGE * n as u64;
    (first, first + PAGE - 1)
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("statm");
    pages * rustix::param::page_size() as u64
}
