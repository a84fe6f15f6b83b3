//! `fork`: parent, child and device see each what they must, while pages are copied on write.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use super::fork::fork;
use super::region::Region;
use super::verified;
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const PATTERN: u64 = 0x1010_1010_1010_1010;
const BYTES: usize = 1 << 20;
/// Pieces of work that the device has when the parent forks.
const PIECES: u64 = 15;
const ROUNDS: u64 = 4;

pub fn run(channel: &mut Channel) -> Result<String> {
    let gate = Gate::new()?;
    each_its_own(channel, &gate)?;
    for round in 0..ROUNDS {
        snapshot_in_mid_dma(channel, &gate, round)?;
    }
    Ok(format!("fork: children with snapshots of {} MiB, the device in the parent", BYTES >> 20))
}

/// Lets a child go on.
struct Gate(Region);

impl Gate {
    fn new() -> Result<Self> {
        Region::shared(PAGE).map(Self)
    }

    fn word(&self) -> &AtomicU64 {
        &self.0.words()[0]
    }

    fn set(&self, open: bool) {
        self.word().store(open.into(), Ordering::SeqCst);
    }

    /// A child whose parent is gone is let go as well.
    fn wait(&self) {
        let parent = std::os::unix::process::parent_id();
        while self.word().load(Ordering::SeqCst) == 0
            && std::os::unix::process::parent_id() == parent
        {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The device has written to all pages before, and could again if nobody told it otherwise.
fn each_its_own(channel: &mut Channel, gate: &Gate) -> Result<()> {
    let region = Region::anonymous(64 * PAGE)?;
    verified::fill(channel, region.words(), PATTERN)?;
    gate.set(false);
    let child = fork(|| {
        gate.wait();
        verified::expect_filled("the child's memory", region.words(), PATTERN)?;
        region.words().scramble(1);
        Ok(())
    })?;
    verified::fill(channel, region.words(), 2 * PATTERN)?;
    gate.set(true);
    child.wait()?;
    verified::expect_filled("the parent's memory", region.words(), 2 * PATTERN)?;
    verified::checksum(channel, region.words(), region.words().crc())
}

/// Forks while the device is filling: the child's snapshot is of some moment, and then stays.
fn snapshot_in_mid_dma(channel: &mut Channel, gate: &Gate, round: u64) -> Result<()> {
    let region = Region::anonymous(BYTES)?;
    let pattern = |piece: u64| (round << 32) + piece;
    let fill = |piece| ring::fill(region.address(), BYTES as u64, pattern(piece));
    let work: Vec<_> = (1..=PIECES).map(fill).collect();
    gate.set(false);
    channel.start(&work);
    channel.wait_for_first()?;
    let child = fork(|| {
        let snapshot = region.words().crc();
        gate.wait();
        verified::expect_crc("the child's snapshot", region.words(), snapshot)?;
        let word = |word: &AtomicU64| word.load(Ordering::Relaxed);
        let known = |word: u64| (pattern(1)..=pattern(PIECES)).contains(&word);
        if !region.words().iter().map(word).all(known) {
            return Err("the child's snapshot has what nobody wrote".into());
        }
        Ok(())
    })?;
    verified::expect_all("FILL around a fork", &channel.finish()?, BYTES)?;
    verified::expect_filled("the parent's memory", region.words(), pattern(PIECES))?;
    verified::fill(channel, region.words(), !pattern(0))?;
    gate.set(true);
    child.wait()
}
