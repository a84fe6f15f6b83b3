//! `demo`: a device in the address space of a process, told to somebody who watches.

use super::region::{Region, Rights, Sharing};
use super::{Options, Shared, latency, pages};
use crate::Result;
use crate::accel::Channel;
use crate::memory::Content;
use crate::ring;

const STEPS: usize = 8;
const FAULTS: usize = 500;

pub fn run(options: &Options, total: usize) -> Result<String> {
    let shared = Shared::open(options.function)?;
    let mut channel = shared.channel(options)?;
    let (function, pasid) = (options.function, shared.pasid);
    println!("{function} has the address space of this process, as PASID {pasid}.");
    println!("Nothing is mapped or pinned for it: it is handed pointers.");
    copy_from_a_file(&mut channel, total)?;
    refuse(&mut channel)?;
    println!("{}", latency::run(&mut channel, FAULTS)?);
    Ok("demo: shared address space verified".into())
}

/// From a file mapping to memory that nobody has touched, with a report now and then.
fn copy_from_a_file(channel: &mut Channel, total: usize) -> Result<()> {
    let file = super::file::in_memory(total)?;
    let from = Region::file(&file, total, Sharing::Shared)?;
    let to = Region::anonymous(total)?;
    from.words().scramble(1);
    let mebibytes = total >> 20;
    println!("It copies {mebibytes} MiB from a file mapping to memory that nobody has touched:");
    let (piece, bytes) = (total / STEPS, (total / STEPS) as u64);
    for step in 0..STEPS {
        let offset = (step * piece) as u64;
        let work = ring::copy(from.address() + offset, to.address() + offset, bytes);
        channel.run(work)?.expect_success("COPY", bytes)?;
        let resident = pages::smaps(&to, "Rss")? >> 20;
        let (pinned, locked) = (pages::status("VmPin")?, pages::status("VmLck")?);
        println!(
            "  {resident:3} of {mebibytes} MiB resident, {pinned} bytes pinned, {locked} locked"
        );
        if pinned + locked > 0 {
            return Err("memory is pinned".into());
        }
    }
    println!("Checksum of the copy: {:#010x} says the processor,", to.words().crc());
    let completion = channel.run(ring::crc32c(to.address(), total as u64))?;
    completion.expect_success("CRC32C", total as u64)?;
    println!("                      {:#010x} says the accelerator.", completion.result);
    let expected = from.words().crc();
    if to.words().crc() != expected || completion.result != u64::from(expected) {
        return Err("the copy is not what was sent".into());
    }
    println!("VERIFIED: shared memory, and the copy is right.");
    Ok(())
}

/// What the process must not do, the device must not do for it.
fn refuse(channel: &mut Channel) -> Result<()> {
    let mut page = Region::anonymous(crate::memory::PAGE)?;
    page.protect(Rights::Read)?;
    let completion = channel.run(ring::fill(page.address(), 8, !0))?;
    println!("Told to write to read-only memory, it says: {completion}.");
    completion.expect_invalid("a write to read-only memory", page.address(), true, 0)?;
    super::verified::expect_filled("read-only memory", page.words(), 0)?;
    println!("REFUSED: shared memory is protected, and is as it was.");
    Ok(())
}
