//! What it costs to be watched: MAP and UNMAP on a daemon that serves figures, to a scraper that
//! asks each second, and on one that does not. A third one, like the second, shows what a
//! difference between two that are the same looks like.
//!
//! `cargo bench --bench metrics`, or `./scripts/bench metrics`. They take turns of a fraction of a
//! millisecond, so that whatever else the machine does is shared by both. Whose turn it is not is
//! stopped, so that its polling takes no core from the other; both poll long enough to see the
//! next turn begin.
//! Prints for each batch size the median time for a request on the second, and the medians of what
//! the others took in the same round, as ratios to it. Fails if that of the first, over all, is
//! 1.02 or more.

mod common;
#[path = "common/driver.rs"]
mod driver;

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use common::Daemon;
use driver::Driver;

const BATCHES: [usize; 3] = [1, 16, 256];
const LIVE: usize = 1_000;
/// Requests of one turn that are timed: half of them MAP, half UNMAP.
const TURN: usize = 512;
/// The same that are not, before them.
const WARM_UP: usize = 512;
/// How long both poll, in microseconds.
const POLL: &str = "100000";
/// How long each batch size is measured.
const TIME: Duration = Duration::from_secs(20);
/// What is too much.
const LIMIT: f64 = 1.02;

fn main() {
    let watched = Daemon::start(1, |dir| {
        let socket = metrics(dir).display().to_string();
        ["--poll-us", POLL, "--metrics-socket", &socket].map(String::from).into()
    });
    let alone = || Daemon::start(1, |_| ["--poll-us", POLL].map(String::from).into());
    let (alone, same) = (alone(), alone());
    let mut sides = [&alone, &watched, &same].map(|daemon| (daemon, Driver::connect(daemon)));
    let socket = metrics(watched.dir.path());
    let (stop, stopped) = channel();
    let scraper = thread::spawn(move || scrape(&socket, &stopped));
    println!("batch  alone, ns   watched / alone   alone / alone");
    let all: Vec<[f64; 2]> =
        BATCHES.into_iter().flat_map(|batch| measure(&mut sides, batch)).collect();
    drop(stop);
    println!("scrapes: {}", scraper.join().expect("scrapes"));
    let ratio = median(all.iter().map(|ratios| ratios[0]));
    println!("  all {ratio:27.4} {:15.4}", median(all.iter().map(|ratios| ratios[1])));
    assert!(ratio < LIMIT, "being watched costs more than it may: {ratio:.4}");
}

fn metrics(dir: &Path) -> PathBuf {
    dir.join("metrics.sock")
}

/// Asks each second until told to stop; returns how often.
fn scrape(socket: &Path, stopped: &Receiver<()>) -> usize {
    for count in 0.. {
        match stopped.recv_timeout(Duration::from_secs(1)) {
            Err(RecvTimeoutError::Timeout) => {}
            _ => return count,
        }
        let mut stream = UnixStream::connect(socket).expect("the socket of the figures");
        stream.write_all(b"GET /metrics HTTP/1.1\r\n\r\n").expect("a request");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.ends_with("# EOF\n"), "{answer}");
    }
    0
}

/// Measures all in turns, prints a line, and returns the ratios of each round.
fn measure(sides: &mut [(&Daemon, Driver); 3], batch: usize) -> Vec<[f64; 2]> {
    sides.iter_mut().for_each(|(_, driver)| driver.populate(LIVE));
    sides.iter().for_each(|(daemon, _)| signal(daemon, libc::SIGSTOP));
    let start = Instant::now();
    let mut rounds = Vec::new();
    while start.elapsed() < TIME {
        rounds.push(round(sides, batch, rounds.len()));
    }
    sides.iter().for_each(|(daemon, _)| signal(daemon, libc::SIGCONT));
    sides.iter_mut().for_each(|(_, driver)| driver.clear());
    let ratios: Vec<[f64; 2]> =
        rounds.iter().map(|[alone, watched, same]| [watched / alone, same / alone]).collect();
    println!(
        "{batch:5} {:10.1} {:17.4} {:15.4}",
        median(rounds.iter().map(|times| times[0])),
        median(ratios.iter().map(|ratios| ratios[0])),
        median(ratios.iter().map(|ratios| ratios[1])),
    );
    ratios
}

/// One turn each; none is always the first.
fn round(sides: &mut [(&Daemon, Driver); 3], batch: usize, number: usize) -> [f64; 3] {
    let mut times = [0.0; 3];
    for index in (0..3).map(|turn| (turn + number) % 3) {
        let (daemon, driver) = &mut sides[index];
        signal(daemon, libc::SIGCONT);
        work(driver, batch, WARM_UP);
        times[index] = work(driver, batch, TURN);
        signal(daemon, libc::SIGSTOP);
    }
    times
}

/// Nanoseconds for a request.
fn work(driver: &mut Driver, batch: usize, requests: usize) -> f64 {
    let mut time = Duration::ZERO;
    for _ in 0..requests / 2 / batch {
        let chosen = driver.choose(batch, 0..LIVE);
        time += driver.unmap(&chosen);
        time += driver.map(&chosen);
    }
    time.as_nanos() as f64 / requests as f64
}

fn signal(daemon: &Daemon, signal: i32) {
    // SAFETY: the child has not been waited for, so its id is still its own.
    let sent = unsafe { libc::kill(daemon.child.id() as i32, signal) };
    assert_eq!(sent, 0, "the daemon runs");
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.collect();
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}
