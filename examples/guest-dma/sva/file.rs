//! `file`: what the device reads is in the file, and what it writes to a shared mapping gets there.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use super::region::{Region, Sharing};
use super::{pages, verified};
use crate::Result;
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const BYTES: usize = 1 << 20;
const PATTERN: u64 = 0x6666_6666_6666_6666;

pub fn run(channel: &mut Channel, dir: &Path) -> Result<String> {
    let file = create(dir, BYTES)?;
    read(channel, &file)?;
    private(channel, &file)?;
    shared(channel, &file)?;
    truncated(channel, &file)?;
    Ok(format!("file: private and shared mappings of a file in {}", dir.display()))
}

/// A file that ends with the last who has it open.
fn create(dir: &Path, bytes: usize) -> Result<File> {
    let path = dir.join("guest-dma.file");
    let create = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    create
        .and_then(|file| {
            fs::remove_file(&path)?;
            file.set_len(bytes as u64)?;
            Ok(file)
        })
        .map_err(|error| format!("cannot make {}: {error}", path.display()))
}

/// A file that is in memory alone.
pub fn in_memory(bytes: usize) -> Result<File> {
    create(Path::new("/dev/shm"), bytes)
}

/// Puts content into the file, past all mappings. Returns its checksum.
fn refill(file: &File, seed: u64) -> Result<u32> {
    let content = Region::anonymous(BYTES)?;
    content.words().scramble(seed);
    let bytes: Vec<u8> = content.words().iter().flat_map(bytes_of).collect();
    file.write_all_at(&bytes, 0).map_err(|error| format!("cannot write the file: {error}"))?;
    Ok(content.words().crc())
}

fn bytes_of(word: &AtomicU64) -> [u8; 8] {
    word.load(Ordering::Relaxed).to_le_bytes()
}

/// The file as a plain reader sees it.
fn content(file: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|error| format!("cannot read the file: {error}"))?;
    Ok(bytes)
}

fn expect_content(what: &str, file: &File, byte: impl Fn(usize) -> u8) -> Result<()> {
    match content(file)?.iter().enumerate().find(|(index, found)| **found != byte(*index)) {
        None => Ok(()),
        Some((index, found)) => Err(format!("{what}: byte {index:#x} of the file is {found:#x}")),
    }
}

fn read(channel: &mut Channel, file: &File) -> Result<()> {
    for (seed, sharing) in [(1, Sharing::Private), (2, Sharing::Shared)] {
        let crc = refill(file, seed)?;
        let mapping = Region::file(file, BYTES, sharing)?;
        verified::checksum(channel, mapping.words(), crc)?;
    }
    Ok(())
}

fn private(channel: &mut Channel, file: &File) -> Result<()> {
    refill(file, 3)?;
    let before = content(file)?;
    let mapping = Region::file(file, BYTES, Sharing::Private)?;
    verified::fill(channel, mapping.words(), PATTERN)?;
    expect_content("after a private write", file, |index| before[index])
}

/// Written twice: after the first time the kernel has the page clean and on its way to the disk,
/// and must learn that it is dirty again.
fn shared(channel: &mut Channel, file: &File) -> Result<()> {
    let mapping = Region::file(file, BYTES, Sharing::Shared)?;
    for pattern in [PATTERN, !PATTERN] {
        verified::fill(channel, mapping.words(), pattern)?;
        file.sync_all().map_err(|error| format!("cannot sync the file: {error}"))?;
    }
    drop(mapping);
    pages::write("/proc/sys/vm/drop_caches", "1")?;
    expect_content("after shared writes", file, |_| !PATTERN as u8)
}

/// Behind the file's end there is nothing, neither before nor after it has moved.
fn truncated(channel: &mut Channel, file: &File) -> Result<()> {
    let mapping = Region::file(file, BYTES + PAGE, Sharing::Shared)?;
    for end in [BYTES, BYTES / 2] {
        file.set_len(end as u64).map_err(|error| format!("cannot truncate: {error}"))?;
        let (length, end) = (mapping.bytes() as u64, end as u64);
        let completion = channel.run(ring::fill(mapping.address(), length, PATTERN))?;
        let behind = mapping.address() + end;
        completion.expect_invalid("a write behind the end of the file", behind, true, end)?;
    }
    Ok(())
}
