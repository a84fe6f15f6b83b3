//! The cost of the iommufd back end: MAP and UNMAP compared with plain iommufd calls, and the
//! latency of a page request.
//!
//! `./scripts/bench host` runs it in a virtual machine: it requires `/dev/iommu` with the mock
//! device of its selftest, and 1.1 GiB of memory. The measurements that are compared alternate in one run.

mod copying;
mod faults;
mod plain;

use std::fs::File;
use std::time::Duration;

use copying::Copying;
use plain::Plain;
use testing::bench::Times;
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4 << 10;
const MIB: u64 = 1 << 20;
const GIB: u64 = 1 << 30;

/// Numbers of other mappings while one is measured.
const LIVE: [u64; 2] = [1, 10_000];
/// Name and size of a mapping in bytes, and the number of measurements.
const SIZES: [(&str, u64, usize); 3] =
    [("4 KiB", PAGE, 5000), ("2 MiB", 2 * MIB, 500), ("1 GiB", GIB, 15)];

/// Guest memory in bytes: for the measured mapping, then a page for each of the others.
const MEMORY: u64 = GIB + LIVE[1] * PAGE;
/// Measured mappings of one size rotate through this number of slots, or as many as exist.
const SLOTS: u64 = 64;
/// I/O virtual addresses of the measured mapping, and of the others.
const MEASURED_IOVA: u64 = 4 * GIB;
const OTHER_IOVA: u64 = 64 * GIB;

/// A mapping: its address in guest memory, its I/O virtual address, and its size in bytes.
#[derive(Clone, Copy)]
struct Slot {
    offset: u64,
    iova: u64,
    len: u64,
}

impl Slot {
    /// Returns the slot of the `n`th measured mapping.
    fn measured(len: u64, n: u64) -> Self {
        let offset = n % SLOTS.min(GIB / len) * len;
        Self { offset, iova: MEASURED_IOVA + offset, len }
    }

    /// Returns the slot of the `n`th other mapping. None is adjacent to the next.
    fn other(n: u64) -> Self {
        Self { offset: GIB + n * PAGE, iova: OTHER_IOVA + 2 * n * PAGE, len: PAGE }
    }
}

/// One of the two implementations that are compared.
trait Side {
    /// Maps, and returns the duration.
    fn map(&self, slot: Slot) -> Duration;
    /// Unmaps, and returns the duration.
    fn unmap(&self, slot: Slot) -> Duration;
}

fn main() {
    let memory = memory();
    let (copying, plain) = (Copying::new(&memory), Plain::new(&memory));
    let mapped = Slot::measured(PAGE, 1);
    copying.map(mapped);
    copying.assert_translates(mapped, &memory);
    copying.unmap(mapped);
    print_mappings(&[&copying, &plain]);
    faults::print(&copying);
}

/// Returns one region at address 0 whose pages are all allocated.
fn memory() -> GuestMemoryMmap {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let file = File::from(file);
    file.set_len(MEMORY).expect("memfd of the guest's size");
    let region = (GuestAddress(0), MEMORY as usize, Some(FileOffset::new(file, 0)));
    let memory = GuestMemoryMmap::from_ranges_with_files([region]).expect("memory");
    for page in (0..MEMORY).step_by(PAGE as usize) {
        memory.write_obj(page, GuestAddress(page)).expect("a page");
    }
    memory
}

fn print_mappings(sides: &[&dyn Side; 2]) {
    println!("map and unmap in microseconds (medians), with other mappings of 4 KiB");
    println!("{:14}{:>29}{:>29}", "", "map", "unmap");
    let columns = format!("{:>11} {:>9} {:>7}", "daemon", "plain", "ratio");
    println!("others  size  {columns}{columns}");
    let mut there = 0;
    for live in LIVE {
        for n in there..live {
            for side in sides {
                side.map(Slot::other(n));
            }
        }
        there = live;
        for (name, len, count) in SIZES {
            let [copying, plain] = measure(sides, len, count);
            print!("{live:6}  {name:6}");
            for (copying, plain) in [(copying.0, plain.0), (copying.1, plain.1)] {
                let (copying, plain) = (copying.p50(), plain.p50());
                print!("{copying:11.1} {plain:9.1} {:7.2}", copying / plain);
            }
            println!();
        }
    }
}

/// Measures the times of MAP and UNMAP for each side. Only one has the mapping at a time, and they
/// alternate in being the first.
fn measure(sides: &[&dyn Side; 2], len: u64, count: usize) -> [(Times, Times); 2] {
    let mut times: [(Times, Times); 2] = Default::default();
    let warm_up = SLOTS.min(GIB / len);
    for n in 0..warm_up + count as u64 {
        let slot = Slot::measured(len, n);
        for index in [n, n + 1] {
            let which = (index % 2) as usize;
            let (map, unmap) = (sides[which].map(slot), sides[which].unmap(slot));
            if n >= warm_up {
                times[which].0.add(map);
                times[which].1.add(unmap);
            }
        }
    }
    times
}
