//! `latency`: measures one fault at a time in the process, from the doorbell to the completion
//! record.

use std::fmt;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::region::Region;
use super::{procfs, verified};
use crate::accel::Channel;
use crate::memory::PAGE;
use crate::ring;

const PATTERN: u64 = 0x1111_2222_3333_4444;

pub fn run(channel: &mut Channel, faults: usize) -> Result<String> {
    let region = Region::anonymous(faults * PAGE)?;
    procfs::expect_untouched(region.words())?;
    let first = measure(channel, &region)?;
    let resident = procfs::resident(region.words())?;
    if resident != region.bytes() {
        bail!("{resident} bytes are resident, not {}", region.bytes());
    }
    let again = measure(channel, &region)?;
    Ok(format!("latency: {faults} faults: {first}; the same pages again: {again}"))
}

/// Measures the write of a word to each page.
fn measure(channel: &mut Channel, region: &Region) -> Result<Percentiles> {
    let mut times = Vec::new();
    for page in region.words().chunks(PAGE / 8) {
        let address = page.as_ptr().addr() as u64;
        let start = Instant::now();
        let completion = channel.run(ring::fill(address, 8, PATTERN))?;
        times.push(start.elapsed());
        completion.expect_success("FILL of a word", 8)?;
        verified::expect_filled("the word", &page[..1], PATTERN)?;
    }
    times.sort_unstable();
    Ok(Percentiles { p50: percentile(&times, 50), p99: percentile(&times, 99) })
}

/// The median and the 99th percentile of the latencies.
struct Percentiles {
    p50: Duration,
    p99: Duration,
}

/// Returns a percentile of sorted times, or zero if there are none.
fn percentile(times: &[Duration], percent: usize) -> Duration {
    let rank = (times.len() * percent).div_ceil(100);
    times.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

impl fmt::Display for Percentiles {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "p50 {} us, p99 {} us", self.p50.as_micros(), self.p99.as_micros())
    }
}
