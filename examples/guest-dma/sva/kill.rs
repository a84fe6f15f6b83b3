//! `kill`: the channel of a process that is killed during DMA is available to the next process.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};

use anyhow::{Result, anyhow};

use super::region::{Advice, Region, advise};
use super::{BoundAccelerator, Options, verified};
use crate::accel::Channel;
use crate::memory::Content;
use crate::ring;

const VICTIMS: u64 = 8;
const BYTES: usize = 1 << 20;

pub fn run(options: &Options) -> Result<String> {
    for victim in 0..VICTIMS {
        kill_during_dma(options)?;
        let bound = BoundAccelerator::open(&options.function)?;
        let mut channel = bound.channel(options)?;
        let (from, to) = (Region::anonymous(BYTES)?, Region::anonymous(BYTES)?);
        from.words().scramble(victim);
        verified::copy(&mut channel, from.words(), to.words())?;
    }
    Ok(format!("kill: {VICTIMS} processes killed during DMA, the channel works after each"))
}

fn kill_during_dma(options: &Options) -> Result<()> {
    let mut child = program(options, options.channel, "endless")
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| anyhow!("cannot start a process: {error}"))?;
    let line = next_line(&mut child)?;
    let killed = child.kill().and_then(|()| child.wait());
    match killed {
        Err(error) => Err(anyhow!("cannot kill a process: {error}")),
        Ok(_) if line != "running" => {
            Err(anyhow!("a process printed '{line}', expected 'running'"))
        }
        Ok(_) => Ok(()),
    }
}

/// Returns a command that runs a scenario of this program in another process, with the same options
/// except the channel.
pub fn program(options: &Options, channel: u32, scenario: &str) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["sva", &options.function, "--channel", &channel.to_string()]);
    command.args(["--group-pages", &options.group_pages.to_string()]);
    command.args(options.poll.then_some("--poll"));
    command.args(options.below.map(|limit| format!("--below={limit}")));
    command.arg(scenario);
    command
}

/// Returns the next line that a process prints.
pub fn next_line(child: &mut Child) -> Result<String> {
    let mut line = String::new();
    // The process prints one line at a time, so dropping the buffer loses nothing.
    let read = child.stdout.as_mut().map(|stdout| BufReader::new(stdout).read_line(&mut line));
    match read {
        Some(Ok(1..)) => Ok(line.trim_end().into()),
        _ => Err(anyhow!("a process exited too early")),
    }
}

/// `endless`: makes the device fault until the process is killed.
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
    Ok("endless: all rounds done".into())
}
