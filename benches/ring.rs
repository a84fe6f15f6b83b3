//! What a request costs: MAP and UNMAP over a socket, from a front end that does what Linux does
//! (event index, kick only when asked for, then spin on the used ring).
//!
//! `cargo bench --bench ring`, or `./scripts/bench ring`. Prints time per request and requests
//! per second at several batch sizes and numbers of live mappings, each as a ratio to the fewest
//! mappings of the same run, and the daemon's memory per mapping.
//!
//! Where the mappings lie matters to the processor's caches: `near`, requests stay among a few
//! hundred neighbours, as those of Linux do, which uses again what it has freed; `far`, they go
//! to random places among all live mappings, the worst that a guest can do.

use std::fs::File;
use std::ops::Range;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{Ordering, fence};
use std::time::{Duration, Instant};

use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

const PAGE: u64 = 4096;
const BATCHES: [usize; 3] = [1, 16, 256];
const LIVE: [usize; 3] = [1_000, 100_000, 1_000_000];
/// Neighbouring mappings that requests stay among.
const NEAR: usize = 512;
/// Requests timed for each pair of the above.
const REQUESTS: usize = 32_768;

const QUEUE: u16 = 512;
const DESC: u64 = 0x1_0000;
const AVAIL: u64 = 0x2_0000;
const USED: u64 = 0x3_0000;
/// One slot a request: what the driver writes, then what the device writes.
const SLOTS: u64 = 0x4_0000;
const SLOT: u64 = 64;
const TAIL: u64 = 48;
const MEMORY: usize = 1 << 20;

const PROTOCOL_FEATURES: u64 = 1 << 30;
const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 2 | 1 << 1 | 1;

fn main() {
    let dir = tempfile::tempdir().expect("temporary directory");
    let daemon = Daemon::start(dir.path());
    let mut driver = Driver::connect(dir.path(), daemon.child.id());
    println!("memory: {:.0} bytes per mapping", driver.bytes_per_mapping());
    println!("nanoseconds for a request; in brackets: times that with {} live mappings", LIVE[0]);
    println!("batch    live place         map       unmap  requests/s");
    for batch in BATCHES {
        let mut base = [None; 2];
        for live in LIVE {
            driver.populate(live);
            for (place, base) in [Place::Near, Place::Far].into_iter().zip(&mut base) {
                let times = driver.churn(batch, live, place);
                print_row(batch, live, place, times, *base.get_or_insert(times));
            }
        }
        driver.clear();
    }
}

/// Which mappings requests are for.
#[derive(Clone, Copy, Debug)]
enum Place {
    Near,
    Far,
}

fn print_row(batch: usize, live: usize, place: Place, times: [f64; 2], base: [f64; 2]) {
    let [map, unmap] = times;
    println!(
        "{batch:5} {live:7} {:5} {map:5.0} ({:4.2}) {unmap:4.0} ({:4.2}) {:11.0}",
        format!("{place:?}").to_lowercase(),
        map / base[0],
        unmap / base[1],
        2e9 / (map + unmap),
    );
}

struct Daemon {
    child: Child,
}

impl Daemon {
    fn start(dir: &Path) -> Self {
        let child = Command::new(env!("CARGO_BIN_EXE_vhost-user-iommu"))
            .arg("--socket-path")
            .arg(dir.join("viommu.sock"))
            .arg("--endpoint")
            .arg(format!("00:02.0,sim={}", dir.join("sim.sock").display()))
            .args(["--log-level", "error"])
            .stdin(Stdio::null())
            .spawn()
            .expect("the daemon starts");
        Self { child }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A driver's side of the request queue. Slot n owns descriptors 2n and 2n + 1 and the n-th
/// entry of the available ring, so that a request costs the driver next to nothing.
struct Driver {
    memory: GuestMemoryMmap,
    kick: EventFd,
    avail: u16,
    live: usize,
    daemon: u32,
    random: u64,
    _front_end: Frontend,
}

impl Driver {
    fn connect(dir: &Path, daemon: u32) -> Self {
        let file = memfd();
        let region = (GuestAddress(0), MEMORY, Some(FileOffset::new(file, 0)));
        let memory = GuestMemoryMmap::from_ranges_with_files([region]).expect("memory");
        let mut front_end = connect(&dir.join("viommu.sock"));
        let kick = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        set_up(&mut front_end, &memory, &kick).expect("the back end takes the set-up");
        let mut driver =
            Self { memory, kick, avail: 0, live: 0, daemon, random: 1, _front_end: front_end };
        for slot in 0..QUEUE / 2 {
            driver.lay_out(slot);
        }
        driver.write_slot(0, &[&[1, 0, 0, 0], &1u32.to_le_bytes(), &16u32.to_le_bytes(), &[0; 8]]);
        driver.submit(1);
        driver
    }

    fn lay_out(&mut self, slot: u16) {
        let address = SLOTS + u64::from(slot) * SLOT;
        let request = Descriptor { address, len: 36, flags: 1, next: 2 * slot + 1 };
        let tail = Descriptor { address: address + TAIL, len: 4, flags: 2, next: 0 };
        for (index, descriptor) in [(2 * slot, request), (2 * slot + 1, tail)] {
            let at = GuestAddress(DESC + u64::from(index) * 16);
            self.memory.write_slice(&descriptor.bytes(), at).expect("descriptor");
        }
        for entry in [slot, slot + QUEUE / 2] {
            let at = GuestAddress(AVAIL + 4 + u64::from(entry) * 2);
            self.memory.write_obj(2 * slot, at).expect("available ring");
        }
    }

    fn write_slot(&self, slot: u16, parts: &[&[u8]]) {
        let address = GuestAddress(SLOTS + u64::from(slot) * SLOT);
        self.memory.write_slice(&parts.concat(), address).expect("slot");
    }

    /// The slot whose turn it is `ahead` requests from now.
    fn slot(&self, ahead: usize) -> u16 {
        self.avail.wrapping_add(ahead as u16) % (QUEUE / 2)
    }

    /// Makes `count` requests available and spins until all are used.
    fn submit(&mut self, count: usize) -> Duration {
        let first = self.slot(0);
        let old = self.avail;
        self.avail = old.wrapping_add(count as u16);
        let start = Instant::now();
        self.memory.store(self.avail, GuestAddress(AVAIL + 2), Ordering::Release).expect("index");
        fence(Ordering::SeqCst);
        self.kick_if_wanted(old);
        while self.load(USED + 2) != self.avail {
            std::hint::spin_loop();
        }
        let taken = start.elapsed();
        self.check(first, count);
        taken
    }

    fn kick_if_wanted(&self, old: u16) {
        let event = self.load(USED + 4 + 8 * u64::from(QUEUE));
        let wanted = self.avail.wrapping_sub(event).wrapping_sub(1) < self.avail.wrapping_sub(old);
        if wanted {
            self.kick.write(1).expect("kick");
        }
    }

    fn check(&self, first: u16, count: usize) {
        for ahead in 0..count {
            let slot = (first + ahead as u16) % (QUEUE / 2);
            let at = GuestAddress(SLOTS + u64::from(slot) * SLOT + TAIL);
            let status: u8 = self.memory.read_obj(at).expect("tail");
            assert_eq!(status, 0, "request in slot {slot}");
        }
    }

    fn load(&self, address: u64) -> u16 {
        self.memory.load(GuestAddress(address), Ordering::Acquire).expect("ring")
    }

    /// The `n`-th mapping: every other page, so that none touches the next.
    fn write_map(&self, ahead: usize, n: usize) {
        let (first, last) = range(n);
        let range = [first.to_le_bytes(), last.to_le_bytes(), [0; 8]].concat();
        let head = [3, 0, 0, 0, 1, 0, 0, 0];
        self.write_slot(self.slot(ahead), &[&head, &range, &3u32.to_le_bytes()]);
    }

    fn write_unmap(&self, ahead: usize, n: usize) {
        let (first, last) = range(n);
        let range = [first.to_le_bytes(), last.to_le_bytes()].concat();
        self.write_slot(self.slot(ahead), &[&[4, 0, 0, 0, 1, 0, 0, 0], &range, &[0; 4]]);
    }

    fn map(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_map(ahead, n));
        self.submit(mappings.len())
    }

    fn unmap(&mut self, mappings: &[usize]) -> Duration {
        mappings.iter().enumerate().for_each(|(ahead, &n)| self.write_unmap(ahead, n));
        self.submit(mappings.len())
    }

    fn populate(&mut self, live: usize) {
        let new: Vec<usize> = (self.live..live).collect();
        for mappings in new.chunks(usize::from(QUEUE / 2)) {
            self.map(mappings);
        }
        self.live = live;
    }

    fn clear(&mut self) {
        self.write_slot(
            self.slot(0),
            &[&[4, 0, 0, 0, 1, 0, 0, 0], &[0; 8], &u64::MAX.to_le_bytes(), &[0; 4]],
        );
        self.submit(1);
        self.live = 0;
    }

    /// Unmaps and maps again. Nanoseconds for a MAP and an UNMAP: medians over all batches.
    fn churn(&mut self, batch: usize, live: usize, place: Place) -> [f64; 2] {
        let mut times = [vec![], vec![]];
        let among = match place {
            Place::Near => live / 2 - NEAR / 2..live / 2 + NEAR / 2,
            Place::Far => 0..live,
        };
        for _ in 0..REQUESTS / batch / 2 {
            let chosen = self.choose(batch, among.clone());
            times[1].push(self.unmap(&chosen));
            times[0].push(self.map(&chosen));
        }
        times.map(|mut times| {
            times.sort_unstable();
            times[times.len() / 2].as_nanos() as f64 / batch as f64
        })
    }

    fn choose(&mut self, count: usize, among: Range<usize>) -> Vec<usize> {
        let mut chosen = std::collections::BTreeSet::new();
        while chosen.len() < count {
            // Xorshift: any sequence will do that no cache foresees.
            self.random ^= self.random << 13;
            self.random ^= self.random >> 7;
            self.random ^= self.random << 17;
            chosen.insert(among.start + self.random as usize % among.len());
        }
        chosen.into_iter().collect()
    }

    /// Of a daemon that has held no mapping before.
    fn bytes_per_mapping(&mut self) -> f64 {
        let before = resident(self.daemon);
        self.populate(LIVE[2]);
        let grown = resident(self.daemon) - before;
        self.clear();
        grown as f64 / LIVE[2] as f64
    }
}

struct Descriptor {
    address: u64,
    len: u32,
    flags: u16,
    next: u16,
}

impl Descriptor {
    fn bytes(&self) -> Vec<u8> {
        let Self { address, len, flags, next } = self;
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()]
            .concat()
    }
}

fn range(n: usize) -> (u64, u64) {
    let first = 0x1_0000_0000 + 2 * PAGE * n as u64;
    (first, first + PAGE - 1)
}

fn memfd() -> File {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let file = File::from(file);
    file.set_len(MEMORY as u64).expect("memfd of the guest's size");
    file
}

fn connect(path: &Path) -> Frontend {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Frontend::connect(path, 2) {
            Ok(front_end) => return front_end,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn set_up(
    front_end: &mut Frontend,
    memory: &GuestMemoryMmap,
    kick: &EventFd,
) -> Result<(), vhost::Error> {
    front_end.set_owner()?;
    let offered = front_end.get_features()?;
    front_end.get_protocol_features().expect("protocol features");
    front_end.set_protocol_features(VhostUserProtocolFeatures::MQ).expect("protocol features");
    front_end.set_features(offered & (FEATURES | PROTOCOL_FEATURES))?;
    let region = memory.iter().next().expect("one region");
    front_end.set_mem_table(&[VhostUserMemoryRegionInfo::from_guest_region(region)?])?;
    let base = memory.get_host_address(GuestAddress(0)).expect("mapped") as u64;
    let call = EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
    front_end.set_vring_num(0, QUEUE)?;
    front_end.set_vring_base(0, 0)?;
    let addresses = VringConfigData {
        queue_max_size: QUEUE,
        queue_size: QUEUE,
        flags: 0,
        desc_table_addr: base + DESC,
        used_ring_addr: base + USED,
        avail_ring_addr: base + AVAIL,
        log_addr: None,
    };
    front_end.set_vring_addr(0, &addresses)?;
    front_end.set_vring_call(0, &call)?;
    front_end.set_vring_kick(0, kick)?;
    VhostUserFrontend::set_vring_enable(front_end, 0, true)
}

/// Resident memory of a process, in bytes.
fn resident(pid: u32) -> u64 {
    let statm = std::fs::read_to_string(format!("/proc/{pid}/statm")).expect("statm");
    let pages: u64 = statm.split(' ').nth(1).and_then(|field| field.parse().ok()).expect("statm");
    pages * rustix::param::page_size() as u64
}
