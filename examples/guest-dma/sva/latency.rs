//! `latency`: one fault at a time, from the doorbell to the record as the process sees it.

use std::time::{Duration, Instant};

use super::pages;
use super::region::Region;
use crate::Result;
use crate::accel::Channel;
use crate::memory::PAGE;
use crate::ring;

const PATTERN: u64 = 0x1111_2222_3333_4444;

pub fn run(channel: &mut Channel, faults: usize) -> Result<String> {
    let region = Region::anonymous(faults * PAGE)?;
    pages::expect_untouched(region.words())?;
    let first = times(channel, &region)?;
    if pages::resident(region.words())? != region.bytes() {
        return Err("not every page was touched".into());
    }
    let again = times(channel, &region)?;
    Ok(format!("latency: {faults} faults: {first}; the same pages again: {again}"))
}

/// Writes a word to each page, and looks for it.
fn times(channel: &mut Channel, region: &Region) -> Result<Percentiles> {
    let mut times = Vec::new();
    for page in region.words().chunks(PAGE / 8) {
        let address = page.as_ptr().addr() as u64;
        let start = Instant::now();
        let completion = channel.run(ring::fill(address, 8, PATTERN))?;
        times.push(start.elapsed());
        completion.expect_success("FILL of a word", 8)?;
        super::verified::expect_filled("the word", &page[..1], PATTERN)?;
    }
    Ok(Percentiles::of(times))
}

/// The times that half, and 99 of 100, of the accesses stay below.
struct Percentiles {
    p50: Duration,
    p99: Duration,
}

impl Percentiles {
    fn of(mut times: Vec<Duration>) -> Self {
        times.sort_unstable();
        let at = |percent: usize| {
            times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied()
        };
        Self { p50: at(50).unwrap_or_default(), p99: at(99).unwrap_or_default() }
    }
}

impl std::fmt::Display for Percentiles {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "p50 {} us, p99 {} us", self.p50.as_micros(), self.p99.as_micros())
    }
}
