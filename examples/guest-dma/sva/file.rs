//! `file`: the device reads the file's content, and its writes to a shared mapping reach the file.

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::Ordering;

use anyhow::{Result, anyhow};

use super::region::{Region, Sharing};
use super::{procfs, verified};
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const BYTES: usize = 1 << 20;
const PATTERN: u64 = 0x6666_6666_6666_6666;

pub fn run(channel: &mut Channel, dir: &Path) -> Result<String> {
    let file = create(dir, BYTES)?;
    read(channel, &file)?;
    write_private(channel, &file)?;
    write_shared(channel, &file)?;
    write_past_end(channel, &file)?;
    Ok(format!("file: private and shared mappings of a file in {}", dir.display()))
}

/// Creates an unlinked file, which exists until it is closed.
fn create(dir: &Path, bytes: usize) -> Result<File> {
    let path = dir.join("guest-dma.file");
    File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&path)
        .and_then(|file| {
            fs::remove_file(&path)?;
            file.set_len(bytes as u64)?;
            Ok(file)
        })
        .map_err(|error| anyhow!("cannot create {}: {error}", path.display()))
}

/// Creates a file on a tmpfs.
pub fn in_memory(bytes: usize) -> Result<File> {
    create(Path::new("/dev/shm"), bytes)
}

/// Writes new content with a system call, not through a mapping. Returns its checksum.
fn refill(file: &File, seed: u64) -> Result<u32> {
    let content = Region::anonymous(BYTES)?;
    content.words().scramble(seed);
    let bytes: Vec<u8> = content
        .words()
        .iter()
        .flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes())
        .collect();
    file.write_all_at(&bytes, 0).map_err(|error| anyhow!("cannot write the file: {error}"))?;
    Ok(content.words().crc())
}

/// Reads the content with a system call, not through a mapping.
fn content(file: &File) -> Result<Vec<u8>> {
    let mut bytes = vec![0; BYTES];
    file.read_exact_at(&mut bytes, 0).map_err(|error| anyhow!("cannot read the file: {error}"))?;
    Ok(bytes)
}

fn expect_content(context: &str, file: &File, expected: &[u8]) -> Result<()> {
    let found = content(file)?;
    match (0..BYTES).find(|index| found[*index] != expected[*index]) {
        None => Ok(()),
        Some(index) => Err(anyhow!(
            "{context}: byte {index:#x} of the file is {:#04x}, not {:#04x}",
            found[index],
            expected[index]
        )),
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

/// Writes to a private mapping, which must not change the file.
fn write_private(channel: &mut Channel, file: &File) -> Result<()> {
    refill(file, 3)?;
    let before = content(file)?;
    let mapping = Region::file(file, BYTES, Sharing::Private)?;
    verified::fill(channel, mapping.words(), PATTERN)?;
    expect_content("after a private write", file, &before)
}

/// Writes to a shared mapping twice: after the first sync the pages are clean, and the kernel must
/// see that the second write makes them dirty again.
fn write_shared(channel: &mut Channel, file: &File) -> Result<()> {
    let mapping = Region::file(file, BYTES, Sharing::Shared)?;
    for pattern in [PATTERN, !PATTERN] {
        verified::fill(channel, mapping.words(), pattern)?;
        file.sync_all().map_err(|error| anyhow!("cannot sync the file: {error}"))?;
    }
    drop(mapping);
    procfs::write("/proc/sys/vm/drop_caches", "1")?;
    expect_content("after shared writes", file, &vec![!PATTERN as u8; BYTES])
}

/// Writes past the end of the file, before and after it is truncated.
fn write_past_end(channel: &mut Channel, file: &File) -> Result<()> {
    let mapping = Region::file(file, BYTES + PAGE, Sharing::Shared)?;
    for end in [BYTES, BYTES / 2] {
        file.set_len(end as u64).map_err(|error| anyhow!("cannot truncate the file: {error}"))?;
        let (length, end) = (mapping.bytes() as u64, end as u64);
        let completion = channel.run(ring::fill(mapping.address(), length, PATTERN))?;
        let address = mapping.address() + end;
        completion.expect_invalid("a write past the end of the file", address, true, end)?;
    }
    Ok(())
}
