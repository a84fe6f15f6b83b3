//! `touch`: memory that is there only once somebody touches it, and the device is the first.

use std::sync::atomic::AtomicU64;

use super::pages::expect_untouched;
use super::region::Region;
use super::verified;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::{Result, place, ring};

const BYTES: usize = 1 << 20;
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

pub fn run(channel: &mut Channel) -> Result<String> {
    device_writes_first(channel)?;
    device_reads_first(channel)?;
    let heap = if heap(channel)? { "heap, " } else { "" };
    let stack = if stack(channel)? { "stack, " } else { "" };
    odd_addresses(channel)?;
    Ok(format!("touch: {heap}{stack}mappings, records of the ring: the device came first"))
}

fn device_writes_first(channel: &mut Channel) -> Result<()> {
    let region = Region::anonymous(BYTES)?;
    expect_untouched(region.words())?;
    verified::fill(channel, region.words(), PATTERN)
}

/// Reads zeros, and copies them; then what the processor writes there afterwards.
fn device_reads_first(channel: &mut Channel) -> Result<()> {
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    expect_untouched(from.words())?;
    let bytes = BYTES as u64;
    let copy = ring::copy(from.address(), to.address(), bytes);
    channel.run(copy)?.expect_success("COPY of untouched memory", bytes)?;
    verified::expect_filled("a copy of untouched memory", to.words(), 0)?;
    from.words().scramble(1);
    verified::copy(channel, from.words(), to.words())
}

/// What the allocator gives, straight to the device. Returns whether it reaches that.
fn heap(channel: &mut Channel) -> Result<bool> {
    let (from, to) = (zeroed(BYTES), zeroed(BYTES));
    copy_if_reached(channel, &from, &to, 2)
}

fn copy_if_reached(
    channel: &mut Channel,
    from: &[AtomicU64],
    to: &[AtomicU64],
    seed: u64,
) -> Result<bool> {
    if [from, to].iter().any(|memory| !place::is_reached(memory.address(), memory.bytes())) {
        return Ok(false);
    }
    from.scramble(seed);
    verified::copy(channel, from, to)?;
    Ok(true)
}

/// From the allocator's own untouched memory, as `calloc` would.
fn zeroed(bytes: usize) -> Box<[AtomicU64]> {
    let words: Box<[u64]> = vec![0; bytes / 8].into_boxed_slice();
    super::region::atomic(words)
}

fn stack(channel: &mut Channel) -> Result<bool> {
    let from = [const { AtomicU64::new(0) }; 4 * PAGE / 8];
    let to = [const { AtomicU64::new(0) }; 4 * PAGE / 8];
    copy_if_reached(channel, &from, &to, 3)
}

/// Buffers that begin and end anywhere: the bytes beside them stay.
fn odd_addresses(channel: &mut Channel) -> Result<()> {
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    from.words().scramble(4);
    let (source, destination) = (PAGE - 3, 3 * PAGE - 5);
    let length = BYTES - 4 * PAGE + 1;
    let copy = ring::copy(
        from.address() + source as u64,
        to.address() + destination as u64,
        length as u64,
    );
    channel.run(copy)?.expect_success("COPY at odd addresses", length as u64)?;
    for index in 0..BYTES {
        let expected = match index.checked_sub(destination) {
            Some(offset) if offset < length => from.words().byte(source + offset),
            _ => 0,
        };
        if to.words().byte(index) != expected {
            return Err(format!("COPY at odd addresses: byte {index:#x} is not {expected:#04x}"));
        }
    }
    Ok(())
}
