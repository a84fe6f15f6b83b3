//! `touch`: the device is the first to touch memory that the kernel populates on demand.

use std::sync::atomic::AtomicU64;

use anyhow::{Result, bail};

use super::procfs::expect_untouched;
use super::region::Region;
use super::verified;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::{place, ring};

const BYTES: usize = 1 << 20;
const PATTERN: u64 = 0x0123_4567_89ab_cdef;

pub fn run(channel: &mut Channel) -> Result<String> {
    device_writes_first(channel)?;
    device_reads_first(channel)?;
    let heap = if copy_heap(channel)? { "heap, " } else { "" };
    let stack = if copy_stack(channel)? { "stack, " } else { "" };
    copy_unaligned(channel)?;
    Ok(format!("touch: {heap}{stack}mappings, records of the ring: first touched by the device"))
}

fn device_writes_first(channel: &mut Channel) -> Result<()> {
    let region = Region::anonymous(BYTES)?;
    expect_untouched(region.words())?;
    verified::fill(channel, region.words(), PATTERN)
}

/// Copies untouched memory, which reads as zero, then the same memory after the processor has
/// written to it.
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

/// Copies memory from the allocator. Returns whether the device can address it.
fn copy_heap(channel: &mut Channel) -> Result<bool> {
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

/// Allocates zeroed memory like `calloc`, which does not touch the pages of a large block.
fn zeroed(bytes: usize) -> Box<[AtomicU64]> {
    let words: Box<[u64]> = vec![0; bytes / 8].into_boxed_slice();
    super::region::into_atomic(words)
}

/// Copies local variables. Returns whether the device can address them.
fn copy_stack(channel: &mut Channel) -> Result<bool> {
    let from = [const { AtomicU64::new(0) }; 4 * PAGE / 8];
    let to = [const { AtomicU64::new(0) }; 4 * PAGE / 8];
    copy_if_reached(channel, &from, &to, 3)
}

/// Copies between unaligned buffers, and checks that the adjacent bytes do not change.
fn copy_unaligned(channel: &mut Channel) -> Result<()> {
    let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
    from.words().scramble(4);
    let (source, destination) = (PAGE - 3, 3 * PAGE - 5);
    let length = BYTES - 4 * PAGE + 1;
    let copy = ring::copy(
        from.address() + source as u64,
        to.address() + destination as u64,
        length as u64,
    );
    channel.run(copy)?.expect_success("COPY at unaligned addresses", length as u64)?;
    for index in 0..BYTES {
        let expected = match index.checked_sub(destination) {
            Some(offset) if offset < length => from.words().byte(source + offset),
            _ => 0,
        };
        let found = to.words().byte(index);
        if found != expected {
            bail!(
                "COPY at unaligned addresses: byte {index:#x} is {found:#04x}, not {expected:#04x}"
            );
        }
    }
    Ok(())
}
