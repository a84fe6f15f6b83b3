//! `loop`: repeats a copy with the same mappings, also across a stop of the machine.

use std::fs;
use std::path::Path;

use anyhow::{Result, anyhow, bail};

use crate::accel::Wait;
use crate::memory::Scattered;
use crate::vfio::Api;
use crate::{open, ring};

const RING: u64 = 0x1_0000_0000;
const SOURCE: u64 = 0x40_0000_0000;
const DESTINATION: u64 = 0x50_0000_0000;
const PAGES: usize = 16;

pub fn run(api: Api, name: &str, until: &Path, progress: Option<&Path>) -> Result<()> {
    let (space, accelerator) = open(api, name)?;
    let mut channel = space.channel(&accelerator, 4, RING, Wait::Interrupt)?;
    let source = Scattered::map(&space, SOURCE, PAGES)?;
    let destination = Scattered::map(&space, DESTINATION, PAGES)?;
    let bytes = source.bytes() as u64;
    let mut rounds = 0;
    while !until.exists() {
        rounds += 1;
        source.scramble(rounds);
        let what = format!("COPY of round {rounds}");
        channel.run(ring::copy(SOURCE, DESTINATION, bytes))?.expect_success(&what, bytes)?;
        if destination.crc() != source.crc() {
            bail!("{what}: the destination differs from the source");
        }
        if let Some(path) = progress {
            replace(path, &format!("{rounds}\n"))?;
        }
    }
    println!("{rounds} rounds verified");
    Ok(())
}

/// Replaces a file atomically: readers see either the old or the new content.
fn replace(path: &Path, content: &str) -> Result<()> {
    let new = path.with_extension("new");
    fs::write(&new, content)
        .and_then(|()| fs::rename(&new, path))
        .map_err(|error| anyhow!("cannot write {}: {error}", path.display()))
}
