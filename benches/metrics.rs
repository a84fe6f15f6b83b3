//! Cost of serving metrics: MAP and UNMAP on a daemon whose metrics are scraped each second, and on
//! one that serves none. A third one, like the second, shows the difference between two equals.
//!
//! `cargo bench --bench metrics`, or `./scripts/bench metrics`. The daemons are measured round robin
//! for a fraction of a millisecond each, so that other load of the machine affects all of them
//! equally. The ones that are not measured are stopped, so that their polling occupies no core;
//! they poll for longer than the others are measured.
//!
//! Prints for each batch size the median time of a request on the second daemon, and the medians of
//! the ratios of the others to it in the same round. Fails if the ratio of the first, over all, is
//! 1.02 or more.

use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use testing::bench::{Driver, start_daemon};
use testing::daemon::Daemon;
use testing::metrics::{METRICS, text};

const BATCHES: [usize; 3] = [1, 16, 256];
const LIVE: usize = 1_000;
/// Timed requests of one measurement: half of them MAP, half UNMAP.
const TIMED: usize = 512;
/// Requests before them that are not timed.
const WARM_UP: usize = 512;
/// Longer than a round, in microseconds.
const POLL: &str = "--poll-us 100000";
/// Time for each batch size.
const TIME: Duration = Duration::from_secs(20);
/// The ratio at which the benchmark fails.
const LIMIT: f64 = 1.02;

fn main() {
    let mut scraped = start_daemon(1, &format!("{POLL} {METRICS}"));
    let mut alone = start_daemon(1, POLL);
    let mut same = start_daemon(1, POLL);
    let mut sides = [&mut alone, &mut scraped, &mut same]
        .map(|daemon| Side { pid: daemon.pid(), driver: Driver::connect(daemon) });
    println!("batch  alone, ns   scraped / alone   alone / alone");
    let (stop, stopped) = channel();
    let (ratios, scrapes) = thread::scope(|scope| {
        let scraper = scope.spawn(|| scrape(&scraped, stopped));
        let measured = BATCHES.into_iter().flat_map(|batch| measure(&mut sides, batch));
        let ratios: Vec<[f64; 2]> = measured.collect();
        drop(stop);
        (ratios, scraper.join().expect("scrapes"))
    });
    println!("scrapes: {scrapes}");
    let ratio = median(ratios.iter().map(|ratios| ratios[0]));
    println!("  all {ratio:27.4} {:15.4}", median(ratios.iter().map(|ratios| ratios[1])));
    assert!(ratio < LIMIT, "serving metrics costs too much: {ratio:.4}");
}

/// Scrapes each second until `stopped` is disconnected. Returns the number of scrapes.
fn scrape(daemon: &Daemon, stopped: Receiver<()>) -> usize {
    let mut count = 0;
    while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(Duration::from_secs(1)) {
        let metrics = text(daemon);
        assert!(metrics.ends_with("# EOF\n"), "{metrics}");
        count += 1;
    }
    count
}

/// A daemon and its driver.
struct Side {
    pid: u32,
    driver: Driver,
}

/// Measures all sides, prints a line, and returns the ratios of each round.
fn measure(sides: &mut [Side; 3], batch: usize) -> Vec<[f64; 2]> {
    sides.iter_mut().for_each(|side| side.driver.populate(LIVE));
    sides.iter().for_each(|side| side.signal(libc::SIGSTOP));
    let start = Instant::now();
    let mut rounds = Vec::new();
    while start.elapsed() < TIME {
        rounds.push(round(sides, batch, rounds.len()));
    }
    sides.iter().for_each(|side| side.signal(libc::SIGCONT));
    sides.iter_mut().for_each(|side| side.driver.clear());
    let ratios: Vec<[f64; 2]> =
        rounds.iter().map(|[alone, scraped, same]| [scraped / alone, same / alone]).collect();
    println!(
        "{batch:5} {:10.1} {:17.4} {:15.4}",
        median(rounds.iter().map(|times| times[0])),
        median(ratios.iter().map(|ratios| ratios[0])),
        median(ratios.iter().map(|ratios| ratios[1])),
    );
    ratios
}

/// Measures each side once; rounds start with different ones.
fn round(sides: &mut [Side; 3], batch: usize, number: usize) -> [f64; 3] {
    let mut times = [0.0; 3];
    for index in (0..3).map(|position| (position + number) % 3) {
        let side = &mut sides[index];
        side.signal(libc::SIGCONT);
        side.run(batch, WARM_UP);
        times[index] = side.run(batch, TIMED);
        side.signal(libc::SIGSTOP);
    }
    times
}

impl Side {
    /// Returns nanoseconds per request.
    fn run(&mut self, batch: usize, requests: usize) -> f64 {
        let mut time = Duration::ZERO;
        for _ in 0..requests / 2 / batch {
            let chosen = self.driver.choose(batch, 0..LIVE);
            time += self.driver.unmap(&chosen);
            time += self.driver.map(&chosen);
        }
        time.as_nanos() as f64 / requests as f64
    }

    fn signal(&self, signal: i32) {
        // SAFETY: the daemon has not been waited for, so its ID is not reused.
        let sent = unsafe { libc::kill(self.pid as i32, signal) };
        assert_eq!(sent, 0, "the daemon runs");
    }
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
