//! `processes`: many processes share one accelerator, each with its channel, PASID and memory, all
//! at the same addresses.

use std::collections::BTreeSet;
use std::io::{self, Write};
use std::process::{Child, Stdio};

use super::kill::{next_line, program};
use super::region::{Advice, Region, advise};
use super::{Options, Shared, verified};
use crate::Result;
use crate::memory::Content;

/// Where each of the processes has its memory.
const SOURCE: usize = 0x10_0000_0000;
const DESTINATION: usize = 0x20_0000_0000;
const BYTES: usize = 64 << 10;
const ROUNDS: u64 = 4;

pub fn run(options: &Options, count: u32) -> Result<String> {
    let mut workers = Vec::new();
    for channel in 0..count {
        workers.push(start(options, channel)?);
    }
    // All have their channel before the first begins.
    let pasids = workers.iter_mut().map(next_line).collect::<Result<BTreeSet<_>>>()?;
    if pasids.len() != workers.len() {
        return Err(format!("{} processes have {} PASIDs", workers.len(), pasids.len()));
    }
    workers.iter_mut().try_for_each(let_go)?;
    workers.into_iter().try_for_each(wait)?;
    Ok(format!("processes: {count} on one accelerator, the same addresses in each"))
}

fn start(options: &Options, channel: u32) -> Result<Child> {
    program(options, channel, "worker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a process: {error}"))
}

fn let_go(worker: &mut Child) -> Result<()> {
    let stdin = worker.stdin.as_mut().ok_or("a process without standard input")?;
    stdin.write_all(b"\n").map_err(|error| format!("a process has ended too early: {error}"))
}

fn wait(mut worker: Child) -> Result<()> {
    match worker.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("a process ended with {status}")),
        Err(error) => Err(format!("cannot wait for a process: {error}")),
    }
}

/// `worker`: says its PASID, waits for a line, then moves data and lets go of memory.
pub fn worker(options: &Options) -> Result<String> {
    let shared = Shared::open(options.function)?;
    let mut channel = shared.channel(options)?;
    println!("{}", shared.pasid);
    io::stdin().read_line(&mut String::new()).map_err(|error| error.to_string())?;
    let (from, to) = (Region::at(SOURCE, BYTES)?, Region::at(DESTINATION, BYTES)?);
    for round in 0..ROUNDS {
        from.words().scramble(u64::from(options.channel) << 8 | round);
        verified::copy(&mut channel, from.words(), to.words())?;
        for region in [&from, &to] {
            advise(region.words(), Advice::DontNeed)?;
        }
        verified::fill(&mut channel, to.words(), shared.pasid.into())?;
    }
    Ok(format!("worker {}: {ROUNDS} rounds", options.channel))
}
