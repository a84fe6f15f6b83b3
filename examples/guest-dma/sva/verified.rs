//! Work whose result the processor checks.

use std::sync::atomic::AtomicU64;
use std::thread;

use anyhow::{Result, anyhow, bail};

use crate::accel::Channel;
use crate::memory::Content;
use crate::ring::{self, Completion};

/// Copies memory with the device, and compares the checksums of both buffers.
pub fn copy(channel: &mut Channel, from: &[AtomicU64], to: &[AtomicU64]) -> Result<()> {
    let bytes = from.bytes() as u64;
    channel.run(ring::copy(from.address(), to.address(), bytes))?.expect_success("COPY", bytes)?;
    expect_crc("the copy", to, from.crc())
}

/// Fills memory with the device, and checks each word.
pub fn fill(channel: &mut Channel, memory: &[AtomicU64], pattern: u64) -> Result<()> {
    let bytes = memory.bytes() as u64;
    let completion = channel.run(ring::fill(memory.address(), bytes, pattern))?;
    completion.expect_success("FILL", bytes)?;
    expect_filled("memory after FILL", memory, pattern)
}

/// Computes a checksum with the device, and compares it with `expected`.
pub fn checksum(channel: &mut Channel, memory: &[AtomicU64], expected: u32) -> Result<()> {
    let bytes = memory.bytes() as u64;
    let completion = channel.run(ring::crc32c(memory.address(), bytes))?;
    completion.expect_success("CRC32C", bytes)?;
    if completion.result != u64::from(expected) {
        let result = completion.result;
        bail!("the device's checksum is {result:#010x}, not {expected:#010x}");
    }
    Ok(())
}

/// Checks that each descriptor was completed with success after `bytes` bytes.
pub fn expect_all(name: &str, completions: &[Completion], bytes: usize) -> Result<()> {
    completions.iter().try_for_each(|completion| completion.expect_success(name, bytes as u64))
}

/// Checks the checksum of `memory`, which errors call `name`.
pub fn expect_crc(name: &str, memory: &[AtomicU64], expected: u32) -> Result<()> {
    match memory.crc() {
        crc if crc == expected => Ok(()),
        crc => Err(anyhow!("{name} has the checksum {crc:#010x}, not {expected:#010x}")),
    }
}

/// Checks each word of `memory`, which errors call `name`.
pub fn expect_filled(name: &str, memory: &[AtomicU64], pattern: u64) -> Result<()> {
    if memory.is_filled(pattern) {
        return Ok(());
    }
    Err(anyhow!("{name} is not filled with {pattern:#018x}"))
}

/// Repeats `round` while `disturb` runs in another thread, at least once before it starts and once
/// after it has finished. Returns the result of `disturb` and the number of rounds.
pub fn repeat_during<T: Send>(
    disturb: impl FnOnce() -> Result<T> + Send,
    mut round: impl FnMut() -> Result<()>,
) -> Result<(T, usize)> {
    round()?;
    thread::scope(|scope| {
        let disturber = scope.spawn(disturb);
        let mut rounds = 1;
        let mut last = false;
        while !last {
            last = disturber.is_finished();
            round()?;
            rounds += 1;
        }
        let result = disturber
            .join()
            .map_err(|_| anyhow!("the thread that disturbs the device panicked"))?;
        Ok((result?, rounds))
    })
}
