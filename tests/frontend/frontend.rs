//! The VMM's side of the vhost-user socket, in the order in which QEMU sends things.

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures};
use vhost::{Result, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::daemon::Daemon;
use crate::driver::Ring;
use crate::wait;

pub const CONFIG_LEN: u32 = 40;
pub const REQUEST_QUEUE: usize = 0;
pub const EVENT_QUEUE: usize = 1;

/// Feature bits.
pub mod feature {
    pub const INPUT_RANGE: u64 = 1 << 0;
    pub const DOMAIN_RANGE: u64 = 1 << 1;
    pub const MAP_UNMAP: u64 = 1 << 2;
    pub const BYPASS: u64 = 1 << 3;
    pub const PROBE: u64 = 1 << 4;
    pub const MMIO: u64 = 1 << 5;
    pub const BYPASS_CONFIG: u64 = 1 << 6;
    pub const PASID: u64 = 1 << 20;
    pub const PAGE_REQUEST: u64 = 1 << 21;
    pub const INDIRECT_DESC: u64 = 1 << 28;
    pub const EVENT_IDX: u64 = 1 << 29;
    pub const PROTOCOL_FEATURES: u64 = 1 << 30;
    pub const VERSION_1: u64 = 1 << 32;
    /// What a driver of the specification's device uses.
    pub const DRIVER: u64 = INPUT_RANGE
        | DOMAIN_RANGE
        | MAP_UNMAP
        | PROBE
        | BYPASS_CONFIG
        | INDIRECT_DESC
        | EVENT_IDX
        | VERSION_1;
}

#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub page_size_mask: u64,
    pub input_range: (u64, u64),
    pub domain_range: (u32, u32),
    pub probe_size: u32,
    pub bypass: u8,
    pub reserved: [u8; 3],
}

/// What a driver start shows to the daemon.
pub struct Start<'a> {
    pub features: u64,
    pub memory: Vec<VhostUserMemoryRegionInfo>,
    pub rings: [&'a Ring; 2],
    /// `SET_VRING_BASE` of each ring: 0 after a reset, what was saved after a stop.
    pub bases: [u16; 2],
}

/// One message, with a name for the failure report.
pub struct Step(pub String, Box<Send>);

type Send = dyn Fn(&mut Session, &Start) -> Result<()>;

fn step(
    name: impl Into<String>,
    send: impl Fn(&mut Session, &Start) -> Result<()> + 'static,
) -> Step {
    Step(name.into(), Box::new(send))
}

pub struct Session {
    vu: Frontend,
    pub features: u64,
    pub protocol: VhostUserProtocolFeatures,
    /// Whether each message asks for a reply. QEMU asks for few; with replies an error is seen
    /// where it happens.
    pub ask_for_replies: bool,
}

impl Session {
    /// Connects, and sends nothing yet.
    pub fn connect(daemon: &mut Daemon) -> Self {
        let stream = daemon.connect();
        stream.set_read_timeout(Some(wait::patience())).unwrap();
        let protocol = VhostUserProtocolFeatures::empty();
        Self { vu: Frontend::from_stream(stream, 2), features: 0, protocol, ask_for_replies: true }
    }

    /// All that QEMU says before a driver runs.
    pub fn realize_steps() -> Vec<Step> {
        let mut steps = vec![
            step("GET_FEATURES", |s, _| {
                s.features = s.vu.get_features()?;
                Ok(())
            }),
            step("GET_PROTOCOL_FEATURES", |s, _| {
                s.protocol = s.vu.get_protocol_features()?;
                Ok(())
            }),
            step("SET_PROTOCOL_FEATURES", |s, _| {
                use VhostUserProtocolFeatures as P;
                let wanted =
                    P::MQ | P::REPLY_ACK | P::CONFIG | P::CONFIGURE_MEM_SLOTS | P::RESET_DEVICE;
                s.vu.set_protocol_features(s.protocol & wanted)?;
                if s.ask_for_replies {
                    s.vu.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
                }
                Ok(())
            }),
            step("GET_QUEUE_NUM", |s, _| {
                assert_eq!(s.vu.get_queue_num()?, 2);
                Ok(())
            }),
            step("SET_OWNER", |s, _| s.vu.set_owner()),
        ];
        for queue in 0..2 {
            steps.push(step(format!("SET_VRING_CALL {queue}, masked"), move |s, _| {
                s.vu.set_vring_call(queue, &EventFd::new(EFD_NONBLOCK).unwrap())
            }));
        }
        steps.push(step("GET_CONFIG", |s, _| s.read_config_raw(0, CONFIG_LEN).map(drop)));
        steps
    }

    /// All that QEMU says when the driver sets DRIVER_OK, or when a stopped VM goes on.
    pub fn start_steps() -> Vec<Step> {
        let mut steps = vec![
            step("SET_FEATURES", |s, start| {
                s.vu.set_features(start.features | feature::PROTOCOL_FEATURES)
            }),
            step("SET_MEM_TABLE", |s, start| s.set_memory(&start.memory)),
        ];
        for queue in 0..2 {
            let name = |what: &str| format!("SET_VRING_{what} {queue}");
            steps.extend([
                step(name("NUM"), move |s, start| {
                    s.vu.set_vring_num(queue, start.rings[queue].size)
                }),
                step(name("BASE"), move |s, start| s.vu.set_vring_base(queue, start.bases[queue])),
                step(name("ADDR"), move |s, start| {
                    let ring = start.rings[queue];
                    let host = |gpa| ring.ram.host_address(gpa);
                    s.set_addresses(
                        queue,
                        [host(ring.descriptors), host(ring.avail), host(ring.used)],
                    )
                }),
                step(name("KICK"), move |s, start| {
                    s.vu.set_vring_kick(queue, &start.rings[queue].kick)
                }),
                step(name("CALL"), move |s, start| {
                    s.vu.set_vring_call(queue, &start.rings[queue].call)
                }),
            ]);
        }
        for queue in 0..2 {
            steps.push(step(format!("SET_VRING_ENABLE {queue}, 1"), move |s, _| {
                s.vu.set_vring_enable(queue, true)
            }));
        }
        steps
    }

    pub fn run(&mut self, steps: &[Step], start: &Start) {
        for Step(name, send) in steps {
            send(self, start).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
    }

    /// Stops both rings, as for a device reset and for a stopped VM. Returns the indices at
    /// which they stopped.
    pub fn stop(&mut self) -> [u16; 2] {
        for queue in 0..2 {
            self.vu.set_vring_enable(queue, false).unwrap();
        }
        [0, 1].map(|queue| self.vu.get_vring_base(queue).unwrap() as u16)
    }

    pub fn enable(&mut self, queue: usize, enable: bool) {
        self.vu.set_vring_enable(queue, enable).unwrap();
    }

    pub fn set_call(&self, queue: usize, call: &EventFd) {
        self.vu.set_vring_call(queue, call).unwrap();
    }

    pub fn set_memory(&self, regions: &[VhostUserMemoryRegionInfo]) -> Result<()> {
        self.vu.set_mem_table(regions).map(drop)
    }

    /// Descriptor table, avail and used ring, as addresses in the front end.
    pub fn set_addresses(&self, queue: usize, [desc, avail, used]: [u64; 3]) -> Result<()> {
        let config = VringConfigData {
            desc_table_addr: desc,
            avail_ring_addr: avail,
            used_ring_addr: used,
            ..Default::default()
        };
        self.vu.set_vring_addr(queue, &config)
    }

    pub fn add_region(&mut self, region: &VhostUserMemoryRegionInfo) {
        self.vu.add_mem_region(region).unwrap();
    }

    pub fn remove_region(&mut self, region: &VhostUserMemoryRegionInfo) {
        self.vu.remove_mem_region(region).unwrap();
    }

    pub fn reset_device(&mut self) {
        self.vu.reset_device().unwrap();
    }

    fn read_config_raw(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let blank = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        self.vu.get_config(offset, len, flags, &blank).map(|(_, data)| data)
    }

    pub fn read_config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        self.read_config_raw(offset, len).unwrap()
    }

    pub fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.vu.set_config(offset, VhostUserConfigFlags::empty(), data).unwrap();
    }

    pub fn config(&mut self) -> Config {
        let bytes = self.read_config(0, CONFIG_LEN);
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let le64 = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Config {
            page_size_mask: le64(0),
            input_range: (le64(8), le64(16)),
            domain_range: (le32(24), le32(28)),
            probe_size: le32(32),
            bypass: bytes[36],
            reserved: bytes[37..].try_into().unwrap(),
        }
    }

    /// Writes `bypass` as QEMU does: the whole space, with what was read before.
    pub fn write_bypass(&mut self, value: u8) {
        let mut space = self.read_config(0, CONFIG_LEN);
        space[36] = value;
        self.write_config(0, &space);
    }
}
