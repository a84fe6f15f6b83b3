//! `stack`: the device writes to the stack, also where the process has not been yet. Below the
//! stack's mapping it is refused: Linux lets a stack grow for the processor only, not for faults of
//! devices (`iommu_sva_handle_mm`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use super::{pages, verified};
use crate::accel::Channel;
use crate::memory::PAGE;
use crate::{Result, place, ring};

const PATTERN: u64 = 0x4242_4242_4242_4242;
/// More than the kernel maps for a stack at first.
const LOCAL: usize = 512 << 10;

pub fn run(channel: &mut Channel) -> Result<String> {
    let (first, end) = pages::stack()?;
    if !place::is_reached(first, (end - first) as usize) {
        return Err(format!("the stack ends at {end:#x}, and not where --below wants it"));
    }
    lowest_page(channel, first)?;

    let below = first - PAGE as u64;
    let completion = channel.run(ring::fill(below, 8, PATTERN))?;
    completion.expect_invalid("a write below the stack", below, true, 0)?;
    expect_first(first)?;

    let grown = deeper(channel)?;
    if grown > first - LOCAL as u64 / 2 {
        return Err(format!("the stack began at {first:#x}, and begins at {grown:#x} now"));
    }
    Ok(format!("stack: written to its lowest page, and {} KiB deeper", (first - grown) >> 10))
}

fn expect_first(expected: u64) -> Result<()> {
    match pages::stack()? {
        (first, _) if first == expected => Ok(()),
        (first, _) => Err(format!("the stack begins at {first:#x}, not at {expected:#x}")),
    }
}

/// Mapped, but far below what this program uses.
fn lowest_page(channel: &mut Channel, address: u64) -> Result<()> {
    let bytes = PAGE as u64;
    let completion = channel.run(ring::fill(address, bytes, PATTERN))?;
    completion.expect_success("FILL of the stack's lowest page", bytes)?;
    if read(address)?.iter().any(|byte| *byte != PATTERN as u8) {
        return Err("what the device has written to the stack is not there".into());
    }
    Ok(())
}

/// A page of memory that belongs to no variable.
fn read(address: u64) -> Result<[u8; PAGE]> {
    let mut page = [0; PAGE];
    File::open("/proc/self/mem")
        .and_then(|memory| memory.read_exact_at(&mut page, address))
        .map_err(|error| format!("cannot read the stack at {address:#x}: {error}"))?;
    Ok(page)
}

/// Grows the stack, and lets the device write there. Returns where the stack begins then.
#[inline(never)]
fn deeper(channel: &mut Channel) -> Result<u64> {
    let local = [const { AtomicU64::new(0) }; LOCAL / 8];
    verified::fill(channel, &local, PATTERN)?;
    pages::stack().map(|(first, _)| first)
}
