//! `stream`: the device touches a lot of memory once, of which little is resident at a time.

use super::region::{Advice, Region, advise};
use super::{pages, verified};
use crate::Result;
use crate::accel::Channel;

pub fn run(channel: &mut Channel, total: usize, window: usize) -> Result<String> {
    let region = Region::anonymous(total)?;
    // The device's part, and as much for what has not yet been given back.
    let piece = window / 2;
    let mut most = 0;
    for (index, words) in region.words().chunks(piece / 8).enumerate() {
        pages::expect_untouched(words)?;
        verified::fill(channel, words, !(index as u64))?;
        most = most.max(pages::smaps(&region, "Rss")?);
        advise(words, Advice::DontNeed)?;
    }
    if most > window {
        return Err(format!("{most} bytes were resident at a time, more than {window}"));
    }
    let (total, most) = (total >> 20, most >> 20);
    Ok(format!("stream: {total} MiB touched by the device, {most} MiB resident at most"))
}
