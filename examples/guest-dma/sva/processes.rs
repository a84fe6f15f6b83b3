//! `processes`: many processes share one accelerator. Each has its own channel, PASID and memory, at
//! the same addresses.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::{Child, Stdio};

use anyhow::{Result, anyhow, bail};

use super::kill::{next_line, program};
use super::region::{Advice, Region, advise};
use super::{BoundAccelerator, Options, verified};
use crate::memory::Content;

/// Addresses of the memory of each process.
const SOURCE: usize = 0x10_0000_0000;
const DESTINATION: usize = 0x20_0000_0000;
const BYTES: usize = 64 << 10;
const ROUNDS: u64 = 4;

pub fn run(options: &Options, count: u32) -> Result<String> {
    let mut workers = Vec::new();
    for channel in 0..count {
        workers.push(spawn(options, channel)?);
    }
    // Every process has enabled its channel before the first one starts to work.
    let pasids = workers.iter_mut().map(next_line).collect::<Result<BTreeSet<_>>>()?;
    if pasids.len() != workers.len() {
        bail!("{} processes have {} PASIDs", workers.len(), pasids.len());
    }
    workers.iter_mut().try_for_each(start_work)?;
    workers.into_iter().try_for_each(wait)?;
    Ok(format!("processes: {count} on one accelerator, with the same addresses in each"))
}

fn spawn(options: &Options, channel: u32) -> Result<Child> {
    program(options, channel, "worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| anyhow!("cannot start a process: {error}"))
}

fn start_work(worker: &mut Child) -> Result<()> {
    let stdin = worker
        .stdin
        .as_mut()
        .ok_or_else(|| anyhow!("the standard input of a process is not a pipe"))?;
    stdin.write_all(b"\n").map_err(|error| anyhow!("a process exited too early: {error}"))
}

fn wait(mut worker: Child) -> Result<()> {
    match worker.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(anyhow!("a process failed: {status}")),
        Err(error) => Err(anyhow!("cannot wait for a process: {error}")),
    }
}

/// `worker`: prints its PASID, waits for a line on standard input, then copies data and releases
/// the pages repeatedly.
pub fn worker(options: &Options) -> Result<String> {
    let bound = BoundAccelerator::open(&options.function)?;
    let mut channel = bound.channel(options)?;
    println!("{}", bound.pasid);
    io::stdin()
        .read_line(&mut String::new())
        .map_err(|error| anyhow!("cannot read standard input: {error}"))?;
    let (from, to) = (Region::at(SOURCE, BYTES)?, Region::at(DESTINATION, BYTES)?);
    for round in 0..ROUNDS {
        from.words().scramble(u64::from(options.channel) << 8 | round);
        verified::copy(&mut channel, from.words(), to.words())?;
        for region in [&from, &to] {
            advise(region.words(), Advice::DontNeed)?;
        }
        verified::fill(&mut channel, to.words(), bound.pasid.into())?;
    }
    Ok(format!("worker {}: {ROUNDS} rounds", options.channel))
}
