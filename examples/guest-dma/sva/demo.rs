//! `demo`: shows a device in the address space of a process, with an explanation of each step.

use anyhow::{Result, bail};

use super::region::{Region, Rights, Sharing};
use super::{BoundAccelerator, Options, file, latency, procfs, verified};
use crate::accel::Channel;
use crate::memory::{Content, PAGE};
use crate::ring;

const STEPS: usize = 8;
const FAULTS: usize = 500;

pub fn run(options: &Options, total: usize) -> Result<String> {
    let bound = BoundAccelerator::open(&options.function)?;
    let mut channel = bound.channel(options)?;
    let (function, pasid) = (&options.function, bound.pasid);
    println!(
        "The accelerator {function} shares the address space of this process, as PASID {pasid}."
    );
    println!("No memory is mapped or pinned for it: it uses the pointers of the process.");
    copy_from_file(&mut channel, total)?;
    write_to_read_only_memory(&mut channel)?;
    println!("{}", latency::run(&mut channel, FAULTS)?);
    Ok("demo: shared address space verified".into())
}

/// Copies a file mapping to untouched memory, and prints the progress.
fn copy_from_file(channel: &mut Channel, total: usize) -> Result<()> {
    let file = file::in_memory(total)?;
    let from = Region::file(&file, total, Sharing::Shared)?;
    let to = Region::anonymous(total)?;
    from.words().scramble(1);
    let mebibytes = total >> 20;
    println!("The accelerator copies {mebibytes} MiB from a file mapping to untouched memory:");
    let (piece, bytes) = (total / STEPS, (total / STEPS) as u64);
    for step in 0..STEPS {
        let offset = (step * piece) as u64;
        let work = ring::copy(from.address() + offset, to.address() + offset, bytes);
        channel.run(work)?.expect_success("COPY", bytes)?;
        let resident = procfs::smaps(&to, "Rss")? >> 20;
        let (pinned, locked) = (procfs::status("VmPin")?, procfs::status("VmLck")?);
        println!(
            "  {resident:3} of {mebibytes} MiB resident, {pinned} bytes pinned, {locked} locked"
        );
        if pinned + locked > 0 {
            bail!("{pinned} bytes are pinned and {locked} locked, expected none");
        }
    }
    println!("Checksum of the copy: {:#010x} computed by the processor", to.words().crc());
    let completion = channel.run(ring::crc32c(to.address(), total as u64))?;
    completion.expect_success("CRC32C", total as u64)?;
    println!("                      {:#010x} computed by the accelerator", completion.result);
    let expected = from.words().crc();
    if to.words().crc() != expected || completion.result != u64::from(expected) {
        bail!("the copy does not have the source's checksum {expected:#010x}");
    }
    println!("VERIFIED: shared memory, the copy is correct.");
    Ok(())
}

/// Shows that the protection of the process's memory also applies to the device.
fn write_to_read_only_memory(channel: &mut Channel) -> Result<()> {
    let mut page = Region::anonymous(PAGE)?;
    page.protect(Rights::Read)?;
    let completion = channel.run(ring::fill(page.address(), 8, !0))?;
    println!("A write of the accelerator to read-only memory completes with: {completion}.");
    completion.expect_invalid("a write to read-only memory", page.address(), true, 0)?;
    verified::expect_filled("read-only memory", page.words(), 0)?;
    println!("REJECTED: shared memory is protected, its content is unchanged.");
    Ok(())
}
