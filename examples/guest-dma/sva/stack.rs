//! `stack`: the device writes to the stack, including pages that the process has not touched.
//! Writes below the stack's mapping fail: Linux expands a stack for faults of the processor, but
//! not for faults of devices (`iommu_sva_handle_mm`).

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::AtomicU64;

use anyhow::{Result, anyhow, bail};

use super::{procfs, verified};
use crate::accel::Channel;
use crate::memory::PAGE;
use crate::{place, ring};

const PATTERN: u64 = 0x4242_4242_4242_4242;
/// Larger than the initial mapping of a stack.
const LOCAL: usize = 512 << 10;

pub fn run(channel: &mut Channel) -> Result<String> {
    let (first, end) = procfs::stack()?;
    if !place::is_reached(first, (end - first) as usize) {
        bail!("the stack ends at {end:#x}, above the limit of --below");
    }
    fill_lowest_page(channel, first)?;

    let below = first - PAGE as u64;
    let completion = channel.run(ring::fill(below, 8, PATTERN))?;
    completion.expect_invalid("a write below the stack", below, true, 0)?;
    expect_first_address(first)?;

    let grown = fill_local(channel)?;
    if grown > first - LOCAL as u64 / 2 {
        bail!("the stack grew only from {first:#x} to {grown:#x}");
    }
    Ok(format!("stack: lowest page written, then {} KiB below it", (first - grown) >> 10))
}

fn expect_first_address(expected: u64) -> Result<()> {
    match procfs::stack()? {
        (first, _) if first == expected => Ok(()),
        (first, _) => Err(anyhow!("the stack begins at {first:#x}, not at {expected:#x}")),
    }
}

/// Fills the lowest page of the stack's mapping, which is far below the pages in use.
fn fill_lowest_page(channel: &mut Channel, address: u64) -> Result<()> {
    let bytes = PAGE as u64;
    let completion = channel.run(ring::fill(address, bytes, PATTERN))?;
    completion.expect_success("FILL of the stack's lowest page", bytes)?;
    if read_page(address)?.iter().any(|byte| *byte != PATTERN as u8) {
        bail!("the stack's lowest page does not have the content that FILL wrote");
    }
    Ok(())
}

/// Reads a page of the process that no variable refers to.
fn read_page(address: u64) -> Result<[u8; PAGE]> {
    let mut page = [0; PAGE];
    File::open("/proc/self/mem")
        .and_then(|memory| memory.read_exact_at(&mut page, address))
        .map_err(|error| anyhow!("cannot read the stack at {address:#x}: {error}"))?;
    Ok(page)
}

/// Expands the stack by a large variable, and fills it with the device. Returns the stack's new
/// first address.
#[inline(never)]
fn fill_local(channel: &mut Channel) -> Result<u64> {
    let local = [const { AtomicU64::new(0) }; LOCAL / 8];
    verified::fill(channel, &local, PATTERN)?;
    procfs::stack().map(|(first, _)| first)
}
