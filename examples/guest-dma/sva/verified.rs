//! Work that the processor checks.

use std::sync::atomic::AtomicU64;
use std::thread;

use crate::Result;
use crate::accel::Channel;
use crate::memory::Content;
use crate::ring::{self, Completion};

/// Has memory copied, and compares checksums.
pub fn copy(channel: &mut Channel, from: &[AtomicU64], to: &[AtomicU64]) -> Result<()> {
    let bytes = from.bytes() as u64;
    channel.run(ring::copy(from.address(), to.address(), bytes))?.expect_success("COPY", bytes)?;
    expect_crc("the copy", to, from.crc())
}

/// Has memory filled, and looks at all of it.
pub fn fill(channel: &mut Channel, memory: &[AtomicU64], pattern: u64) -> Result<()> {
    let bytes = memory.bytes() as u64;
    let completion = channel.run(ring::fill(memory.address(), bytes, pattern))?;
    completion.expect_success("FILL", bytes)?;
    expect_filled("memory after FILL", memory, pattern)
}

/// Has a checksum made, which must be the one given.
pub fn checksum(channel: &mut Channel, memory: &[AtomicU64], expected: u32) -> Result<()> {
    let bytes = memory.bytes() as u64;
    let completion = channel.run(ring::crc32c(memory.address(), bytes))?;
    completion.expect_success("CRC32C", bytes)?;
    if completion.result != u64::from(expected) {
        let result = completion.result;
        return Err(format!("the device's checksum is {result:#010x}, not {expected:#010x}"));
    }
    Ok(())
}

/// Each of the completions must be a success over `bytes` bytes.
pub fn expect_all(what: &str, completions: &[Completion], bytes: usize) -> Result<()> {
    completions.iter().try_for_each(|completion| completion.expect_success(what, bytes as u64))
}

pub fn expect_crc(what: &str, memory: &[AtomicU64], expected: u32) -> Result<()> {
    match memory.crc() {
        crc if crc == expected => Ok(()),
        crc => Err(format!("{what} has the checksum {crc:#010x}, not {expected:#010x}")),
    }
}

pub fn expect_filled(what: &str, memory: &[AtomicU64], pattern: u64) -> Result<()> {
    if memory.is_filled(pattern) {
        return Ok(());
    }
    Err(format!("{what} is not filled with {pattern:#018x}"))
}

/// Does `round` again and again for as long as `disturb` takes, and once more. Returns what that
/// returns, and the number of rounds.
pub fn during<T: Send>(
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
        let result = disturber.join().map_err(|_| "the disturbing thread has panicked")?;
        Ok((result?, rounds))
    })
}
