//! `kill`: processes that are killed in mid-DMA leave the channel to the next.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use super::region::{Advice, Region, advise};
use super::{Options, Shared, verified};
use crate::Result;
use crate::accel::Channel;
use crate::memory::Content;
use crate::ring;

const VICTIMS: u64 = 8;
const BYTES: usize = 1 << 20;

pub fn run(options: &Options) -> Result<String> {
    for victim in 0..VICTIMS {
        kill_in_mid_dma(options)?;
        let shared = Shared::open(options.function)?;
        let mut channel = shared.channel(options)?;
        let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
        from.words().scramble(victim);
        verified::copy(&mut channel, from.words(), to.words())?;
    }
    Ok(format!("kill: {VICTIMS} processes killed in mid-DMA, the accelerator works for the next"))
}

fn kill_in_mid_dma(options: &Options) -> Result<()> {
    let mut child = program(options, options.channel, "endless")
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| format!("cannot start a process: {error}"))?;
    let running = next_line(&mut child)?;
    let killed = child.kill().and_then(|()| child.wait());
    match killed {
        Err(error) => Err(format!("cannot kill a process: {error}")),
        Ok(_) if running != "running" => Err(format!("a process says '{running}'")),
        Ok(_) => Ok(()),
    }
}

/// This program again, in a process of its own.
pub fn program(options: &Options, channel: u32, scenario: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["sva", &options.function.to_string(), "--channel", &channel.to_string()]);
    command.args(["--group-pages", &options.group_pages.to_string()]);
    command.args(options.poll.then_some("--poll"));
    command.args(options.below.map(|end| format!("--below={end}")));
    command.arg(scenario);
    command
}

/// What a process prints next.
pub fn next_line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    // Not more than a line is there to be read, so that nothing is lost with the buffer.
    let read = child.stdout.as_mut().map(|stdout| BufReader::new(stdout).read_line(&mut line));
    match read {
        Some(Ok(1..)) => Ok(line.trim_end().into()),
        _ => Err("a process has ended too early".into()),
    }
}

/// `endless`: faults and accesses, until killed.
pub fn endless(channel: &mut Channel) -> Result<String> {
    let region = Region::anonymous(BYTES)?;
    let work = [ring::fill(region.address(), BYTES as u64, 1); 4];
    for round in 0u64.. {
        channel.start(&work);
        channel.wait_for_first()?;
        if round == 1 {
            println!("running");
        }
        advise(region.words(), Advice::DontNeed)?;
        verified::expect_all("FILL", &channel.finish()?, BYTES)?;
    }
    Ok("endless: at an end".into())
}
