//! What the benchmarks share: the daemon, and a front end that does what Linux does (event index,
//! kick only when asked for).

pub mod daemon;
mod requests;

use std::fs::File;
use std::path::Path;
use std::time::{Duration, Instant};

use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

pub use daemon::Daemon;
pub use requests::Requests;

const PROTOCOL_FEATURES: u64 = 1 << 30;
/// VERSION_1, EVENT_IDX, MAP_UNMAP, DOMAIN_RANGE, INPUT_RANGE.
pub const FEATURES: u64 = 1 << 32 | 1 << 29 | 1 << 2 | 1 << 1 | 1;

/// Guest memory: one region from address 0.
pub fn memory(len: usize) -> GuestMemoryMmap {
    let file = rustix::fs::memfd_create("guest", rustix::fs::MemfdFlags::CLOEXEC).expect("memfd");
    let file = File::from(file);
    file.set_len(len as u64).expect("memfd of the guest's size");
    let region = (GuestAddress(0), len, Some(FileOffset::new(file, 0)));
    GuestMemoryMmap::from_ranges_with_files([region]).expect("memory")
}

/// Connects as the front end of a guest with `memory`, whose driver accepts `features`.
pub fn connect(daemon: &Daemon, memory: &GuestMemoryMmap, features: u64) -> Frontend {
    let mut front_end = connect_to(&daemon.socket());
    negotiate(&mut front_end, memory, features).expect("the back end takes the set-up");
    front_end
}

fn connect_to(path: &Path) -> Frontend {
    let deadline = Instant::now() + Duration::from_secs(10);
    loop {
        match Frontend::connect(path, 2) {
            Ok(front_end) => return front_end,
            Err(error) => assert!(Instant::now() < deadline, "{}: {error}", path.display()),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// All but the queues.
fn negotiate(
    front_end: &mut Frontend,
    memory: &GuestMemoryMmap,
    features: u64,
) -> Result<(), vhost::Error> {
    front_end.set_owner()?;
    let offered = front_end.get_features()?;
    front_end.get_protocol_features().expect("protocol features");
    front_end.set_protocol_features(VhostUserProtocolFeatures::MQ).expect("protocol features");
    assert_eq!(offered & features, features, "the device offers what the benchmark needs");
    front_end.set_features(features | PROTOCOL_FEATURES)?;
    front_end.set_mem_table(&[region(memory)]).map(drop)
}

/// The only region, as front ends and VMMs tell of it.
pub fn region(memory: &GuestMemoryMmap) -> VhostUserMemoryRegionInfo {
    let region = memory.iter().next().expect("one region");
    VhostUserMemoryRegionInfo::from_guest_region(region).expect("a memfd")
}

/// A virtqueue with event index, from the driver's side: where its parts lie, and its descriptors
/// for signals.
pub struct Ring {
    pub size: u16,
    pub desc: u64,
    pub avail: u64,
    pub used: u64,
    pub kick: EventFd,
    pub call: EventFd,
}

/// Bytes that a ring of 512 entries takes.
pub const RING_SPAN: u64 = 0x3_0000;

impl Ring {
    /// A ring of `size` entries, at most 512, at `base`.
    pub fn new(size: u16, base: u64) -> Self {
        let event = || EventFd::new(libc::EFD_NONBLOCK).expect("eventfd");
        let (desc, avail, used) = (base, base + 0x1_0000, base + 0x2_0000);
        Self { size, desc, avail, used, kick: event(), call: event() }
    }

    /// Gives the ring to the device, as its queue number `index`.
    pub fn start(
        &self,
        front_end: &mut Frontend,
        index: usize,
        memory: &GuestMemoryMmap,
    ) -> Result<(), vhost::Error> {
        let base = memory.get_host_address(GuestAddress(0)).expect("mapped") as u64;
        let addresses = VringConfigData {
            queue_max_size: self.size,
            queue_size: self.size,
            flags: 0,
            desc_table_addr: base + self.desc,
            used_ring_addr: base + self.used,
            avail_ring_addr: base + self.avail,
            log_addr: None,
        };
        front_end.set_vring_num(index, self.size)?;
        front_end.set_vring_base(index, 0)?;
        front_end.set_vring_addr(index, &addresses)?;
        front_end.set_vring_call(index, &self.call)?;
        front_end.set_vring_kick(index, &self.kick)?;
        VhostUserFrontend::set_vring_enable(front_end, index, true)
    }

    /// Writes the descriptor at `index` of the table.
    pub fn describe(&self, memory: &GuestMemoryMmap, index: u16, descriptor: &Descriptor) {
        let at = GuestAddress(self.desc + u64::from(index) * 16);
        memory.write_slice(&descriptor.bytes(), at).expect("descriptor");
    }

    /// Kicks if the device wants to hear that the available index has gone from `old` to `new`.
    pub fn kick_if_wanted(&self, memory: &GuestMemoryMmap, old: u16, new: u16) {
        let event = load(memory, self.used + 4 + 8 * u64::from(self.size));
        if new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old) {
            self.kick.write(1).expect("kick");
        }
    }
}

/// A descriptor of a virtqueue.
pub struct Descriptor {
    pub address: u64,
    pub len: u32,
    pub flags: u16,
    pub next: u16,
}

impl Descriptor {
    fn bytes(&self) -> Vec<u8> {
        let Self { address, len, flags, next } = self;
        [&address.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &next.to_le_bytes()]
            .concat()
    }
}

/// Reads an index that the device writes.
pub fn load(memory: &GuestMemoryMmap, address: u64) -> u16 {
    memory.load(GuestAddress(address), std::sync::atomic::Ordering::Acquire).expect("ring")
}
