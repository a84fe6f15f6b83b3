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
#[path = "common/driver.rs"]
mod driver;

use common::Daemon;
use driver::Driver;

const BATCHES: [usize; 3] = [1, 16, 256];
const LIVE: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Neighbouring mappings that requests stay among.
const NEAR: usize = 512;
/// Requests timed for each pair of the above.
const REQUESTS: usize = 32_768;

fn main() {
    let daemon = Daemon::start(1, |_| Vec::new());
    let mut driver = Driver::connect(&daemon);
    println!("memory: {:.0} bytes per mapping", bytes_per_mapping(&mut driver, &daemon));
    println!("nanoseconds for a request; in brackets: times that with {} live mappings", LIVE[0]);
    println!("batch    live place         map       unmap  requests/s");
    for batch in BATCHES {
        let mut base = [None; 2];
        for live in LIVE {
            driver.populate(live);
            for (place, base) in [Place::Near, Place::Far].into_iter().zip(&mut base) {
                let times = churn(&mut driver, batch, live, place);
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

/// Unmaps and maps again. Nanoseconds for a MAP and an UNMAP: medians over all batches.
fn churn(driver: &mut Driver, batch: usize, live: usize, place: Place) -> [f64; 2] {
    let mut times = [vec![], vec![]];
    let among = match place {
        Place::Near => live / 2 - NEAR / 2..live / 2 + NEAR / 2,
        Place::Far => 0..live,
    };
    for _ in 0..REQUESTS / batch / 2 {
        let chosen = driver.choose(batch, among.clone());
        times[1].push(driver.unmap(&chosen));
        times[0].push(driver.map(&chosen));
    }
    times.map(|mut times| {
        times.sort_unstable();
        times[times.len() / 2].as_nanos() as f64 / batch as f64
    })
}

/// Of a daemon that has held no mapping before.
fn bytes_per_mapping(driver: &mut Driver, daemon: &Daemon) -> f64 {
    let before = resident(daemon.child.id());
    driver.populate(LIVE[2]);
    let grown = resident(daemon.child.id()) - before;
    driver.clear();
    grown as f64 / LIVE[2] as f64
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("statm");
    pages * rustix::param::page_size() as u64
}
