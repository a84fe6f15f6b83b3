//! Cost of a request: MAP and UNMAP over a socket, from a driver that behaves like Linux (event
//! index, kick only when requested, then spin on the used ring).
//!
//! `cargo bench --bench ring`, or `./scripts/bench ring`. Prints time per request and requests per
//! second at several batch sizes and numbers of live mappings, each as a ratio to the fewest
//! mappings of the same run, and the daemon's memory per mapping.
//!
//! The location of the mappings affects the processor's caches: `near`, requests stay among a few
//! hundred neighbors, as those of Linux do, which reuses freed addresses; `far`, they go to random
//! places among all live mappings, the worst case.

use testing::bench::{Driver, start_daemon};

const BATCHES: [usize; 3] = [1, 16, 256];
const LIVE: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Number of adjacent mappings that `near` requests stay among.
const NEAR: usize = 512;
/// Number of timed requests for each batch size, number of mappings and place.
const REQUESTS: usize = 32_768;

fn main() {
    let mut daemon = start_daemon(1, "");
    let mut driver = Driver::connect(&mut daemon);
    println!("memory: {:.0} bytes per mapping", bytes_per_mapping(&mut driver, daemon.pid()));
    println!("nanoseconds per request; in brackets: ratio to {} live mappings", LIVE[0]);
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

/// The mappings that requests are for.
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

/// Unmaps and maps again. Returns nanoseconds per MAP and per UNMAP: medians over all batches.
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

/// Measures the memory of a daemon that has had no mapping yet.
fn bytes_per_mapping(driver: &mut Driver, daemon: u32) -> f64 {
    let before = resident(daemon);
    driver.populate(LIVE[2]);
    let grown = resident(daemon) - before;
    driver.clear();
    grown as f64 / LIVE[2] as f64
}

/// Returns the resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("statm");
    pages * rustix::param::page_size() as u64
}
