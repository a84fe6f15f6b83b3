//! `fork`: parent, child and device each see the correct content while pages are copied on write.

use std::os::unix::process::parent_id;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

use anyhow::{Result, bail};

use super::child::fork;
use super::region::Region;
use super::verified;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const PATTERN: u64 = 0x1010_1010_1010_1010;
const BYTES: usize = 1 << 20;
/// Number of descriptors that the device has when the parent forks.
const PIECES: u64 = 15;
const ROUNDS: u64 = 4;

pub fn run(channel: &mut Channel) -> Result<String> {
    let flag = SharedFlag::new()?;
    write_after_fork(channel, &flag)?;
    for round in 0..ROUNDS {
        fork_during_dma(channel, &flag, round)?;
    }
    Ok(format!("fork: children with snapshots of {} MiB, the device in the parent", BYTES >> 20))
}

/// A flag in shared memory that a child waits for.
struct SharedFlag(Region);

impl SharedFlag {
    fn new() -> Result<Self> {
        Region::shared(PAGE).map(Self)
    }

    fn word(&self) -> &AtomicU64 {
        &self.0.words()[0]
    }

    fn set(&self, value: bool) {
        self.word().store(value.into(), Ordering::SeqCst);
    }

    /// Waits until the flag is set or the parent has exited.
    fn wait(&self) {
        let parent = parent_id();
        while self.word().load(Ordering::SeqCst) == 0 && parent_id() == parent {
            thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Fills pages before and after a fork. The device has writable translations of the pages, which the
/// fork must invalidate.
fn write_after_fork(channel: &mut Channel, flag: &SharedFlag) -> Result<()> {
    let region = Region::anonymous(64 * PAGE)?;
    verified::fill(channel, region.words(), PATTERN)?;
    flag.set(false);
    let child = fork(|| {
        flag.wait();
        verified::expect_filled("the child's memory", region.words(), PATTERN)?;
        region.words().scramble(1);
        Ok(())
    })?;
    verified::fill(channel, region.words(), 2 * PATTERN)?;
    flag.set(true);
    child.wait()?;
    verified::expect_filled("the parent's memory", region.words(), 2 * PATTERN)?;
    verified::checksum(channel, region.words(), region.words().crc())
}

/// Forks while the device fills memory. The child has a snapshot, which must not change.
fn fork_during_dma(channel: &mut Channel, flag: &SharedFlag, round: u64) -> Result<()> {
    let region = Region::anonymous(BYTES)?;
    // Each descriptor has its own pattern.
    let base = round << 32;
    let work: Vec<_> = (1..=PIECES)
        .map(|piece| ring::fill(region.address(), BYTES as u64, base + piece))
        .collect();
    flag.set(false);
    channel.start(&work);
    channel.wait_for_first()?;
    let child = fork(|| {
        let snapshot = region.words().crc();
        flag.wait();
        verified::expect_crc("the child's snapshot", region.words(), snapshot)?;
        let patterns = base + 1..=base + PIECES;
        if region.words().iter().any(|word| !patterns.contains(&word.load(Ordering::Relaxed))) {
            bail!("the child's snapshot has a word that the device did not write");
        }
        Ok(())
    })?;
    verified::expect_all("FILL during a fork", &channel.finish()?, BYTES)?;
    verified::expect_filled("the parent's memory", region.words(), base + PIECES)?;
    verified::fill(channel, region.words(), !base)?;
    flag.set(true);
    child.wait()
}
