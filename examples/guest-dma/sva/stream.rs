//! `stream`: the device touches a large region once, of which a small part is resident at a time.

use anyhow::{Result, bail};

use super::region::{Advice, Region, advise};
use super::{procfs, verified};
use crate::accel::Channel;

pub fn run(channel: &mut Channel, total: usize, window: usize) -> Result<String> {
    let region = Region::anonymous(total)?;
    // The other half of the window is for pages whose release is still in progress.
    let piece = window / 2;
    let mut peak = 0;
    for (index, words) in region.words().chunks(piece / 8).enumerate() {
        procfs::expect_untouched(words)?;
        verified::fill(channel, words, !(index as u64))?;
        peak = peak.max(procfs::smaps(&region, "Rss")?);
        advise(words, Advice::DontNeed)?;
    }
    if peak > window {
        bail!("{peak} bytes were resident, more than the window of {window}");
    }
    let (total, peak) = (total >> 20, peak >> 20);
    Ok(format!("stream: {total} MiB touched by the device, at most {peak} MiB resident"))
}
