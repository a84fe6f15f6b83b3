//! The front end: a VMM's side of the vhost-user socket, with messages in QEMU's order.

use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Protocol};
use vhost::{Result, VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::daemon::Daemon;
use crate::virtqueue::Virtqueue;
use crate::wait;

/// Size of `struct virtio_iommu_config`, in bytes.
pub const CONFIG_LEN: u32 = 40;
/// Offset of `bypass` in the configuration space, in bytes.
const BYPASS: usize = 36;
/// Index of the request queue.
pub const REQUEST_QUEUE: usize = 0;
/// Index of the event queue.
pub const EVENT_QUEUE: usize = 1;

/// Feature bits, as masks.
#[expect(missing_docs, reason = "the specification's names")]
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
    /// Features that a driver of the specification's device negotiates.
    pub const DRIVER: u64 = INPUT_RANGE
        | DOMAIN_RANGE
        | MAP_UNMAP
        | PROBE
        | BYPASS_CONFIG
        | INDIRECT_DESC
        | EVENT_IDX
        | VERSION_1;
}

/// `struct virtio_iommu_config`. Ranges are inclusive.
#[derive(Clone, Debug, PartialEq)]
#[expect(missing_docs, reason = "the specification's names")]
pub struct Config {
    pub page_size_mask: u64,
    pub input_range: (u64, u64),
    pub domain_range: (u32, u32),
    pub probe_size: u32,
    pub bypass: u8,
    pub reserved: [u8; 3],
}

/// State of the driver that the messages of a start describe.
pub struct Start<'a> {
    /// The features that the driver acknowledges.
    pub features: u64,
    /// The memory table.
    pub memory: Vec<VhostUserMemoryRegionInfo>,
    /// Request queue and event queue.
    pub queues: [&'a Virtqueue; 2],
    /// `SET_VRING_BASE` of each queue: 0 after a reset, the saved index after a stop.
    pub bases: [u16; 2],
}

/// A vhost-user message of the sequences [`REALIZE`] and [`START`]. Numbers are virtqueues.
#[derive(Clone, Copy, Debug, PartialEq)]
#[expect(missing_docs, reason = "the protocol's names")]
pub enum Message {
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures,
    GetQueueNum,
    SetOwner,
    /// `SET_VRING_CALL` with an eventfd that no interrupt is routed to.
    SetVringCallMasked(usize),
    GetConfig,
    SetFeatures,
    SetMemTable,
    SetVringNum(usize),
    SetVringBase(usize),
    SetVringAddr(usize),
    SetVringKick(usize),
    SetVringCall(usize),
    SetVringEnable(usize),
}

use Message::*;

/// The messages that QEMU sends when it realizes the device, before a driver runs.
pub const REALIZE: [Message; 8] = [
    GetFeatures,
    GetProtocolFeatures,
    SetProtocolFeatures,
    GetQueueNum,
    SetOwner,
    SetVringCallMasked(REQUEST_QUEUE),
    SetVringCallMasked(EVENT_QUEUE),
    GetConfig,
];

/// The messages that QEMU sends when the driver sets DRIVER_OK, or when a stopped VM continues.
pub const START: [Message; 14] = [
    SetFeatures,
    SetMemTable,
    SetVringNum(REQUEST_QUEUE),
    SetVringBase(REQUEST_QUEUE),
    SetVringAddr(REQUEST_QUEUE),
    SetVringKick(REQUEST_QUEUE),
    SetVringCall(REQUEST_QUEUE),
    SetVringNum(EVENT_QUEUE),
    SetVringBase(EVENT_QUEUE),
    SetVringAddr(EVENT_QUEUE),
    SetVringKick(EVENT_QUEUE),
    SetVringCall(EVENT_QUEUE),
    SetVringEnable(REQUEST_QUEUE),
    SetVringEnable(EVENT_QUEUE),
];

/// A front end that is connected to the daemon.
///
/// ```no_run
/// use testing::daemon::Daemon;
/// use testing::front_end::{FrontEnd, feature};
/// use testing::vm::Vm;
///
/// let mut vm = Vm::realized("--boot-bypass off");
/// assert_ne!(vm.front_end.features & feature::PAGE_REQUEST, 0);
/// assert_eq!(vm.front_end.config().bypass, 0);
/// ```
pub struct FrontEnd {
    connection: Frontend,
    /// The features that the device offers.
    pub features: u64,
    /// The protocol features that the back end offers.
    pub protocol: Protocol,
    /// Whether each message requests a reply. QEMU requests few; with replies, the message that
    /// causes an error fails.
    pub request_replies: bool,
}

impl FrontEnd {
    /// Connects, without sending a message.
    pub fn connect(daemon: &mut Daemon) -> Self {
        let stream = daemon.connect();
        stream.set_read_timeout(Some(wait::limit())).unwrap();
        Self {
            connection: Frontend::from_stream(stream, 2),
            features: 0,
            protocol: Protocol::empty(),
            request_replies: true,
        }
    }

    /// Sends `messages`, which must all succeed.
    #[track_caller]
    pub fn send_all(&mut self, messages: &[Message], start: &Start) {
        for &message in messages {
            self.send(message, start).unwrap_or_else(|error| panic!("{message:?}: {error}"));
        }
    }

    fn send(&mut self, message: Message, start: &Start) -> Result<()> {
        let connection = &mut self.connection;
        match message {
            GetFeatures => self.features = connection.get_features()?,
            GetProtocolFeatures => self.protocol = connection.get_protocol_features()?,
            SetProtocolFeatures => {
                let used = Protocol::MQ
                    | Protocol::REPLY_ACK
                    | Protocol::CONFIG
                    | Protocol::CONFIGURE_MEM_SLOTS
                    | Protocol::RESET_DEVICE;
                connection.set_protocol_features(self.protocol & used)?;
                if self.request_replies {
                    connection.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
                }
            }
            GetQueueNum => assert_eq!(connection.get_queue_num()?, 2),
            SetOwner => connection.set_owner()?,
            SetVringCallMasked(queue) => {
                connection.set_vring_call(queue, &EventFd::new(EFD_NONBLOCK).unwrap())?;
            }
            GetConfig => self.try_read_config(0, CONFIG_LEN).map(drop)?,
            SetFeatures => connection.set_features(start.features | feature::PROTOCOL_FEATURES)?,
            SetMemTable => connection.set_mem_table(&start.memory).map(drop)?,
            SetVringNum(queue) => connection.set_vring_num(queue, start.queues[queue].size)?,
            SetVringBase(queue) => connection.set_vring_base(queue, start.bases[queue])?,
            SetVringAddr(queue) => {
                let Virtqueue { ram, descriptors, avail, used, .. } = start.queues[queue];
                let addresses = [descriptors, avail, used].map(|&gpa| ram.host_address(gpa));
                self.set_addresses(queue, addresses)?;
            }
            SetVringKick(queue) => connection.set_vring_kick(queue, &start.queues[queue].kick)?,
            SetVringCall(queue) => connection.set_vring_call(queue, &start.queues[queue].call)?,
            SetVringEnable(queue) => connection.set_vring_enable(queue, true)?,
        }
        Ok(())
    }

    /// Stops both queues, as for a device reset and for a stopped VM. Returns the indices at
    /// which they stopped.
    pub fn stop(&mut self) -> [u16; 2] {
        for queue in 0..2 {
            self.connection.set_vring_enable(queue, false).unwrap();
        }
        [0, 1].map(|queue| self.connection.get_vring_base(queue).unwrap() as u16)
    }

    /// Enables or disables a queue.
    pub fn enable(&mut self, queue: usize, enable: bool) {
        self.connection.set_vring_enable(queue, enable).unwrap();
    }

    /// Replaces a queue's call eventfd.
    pub fn set_call(&self, queue: usize, call: &EventFd) {
        self.connection.set_vring_call(queue, call).unwrap();
    }

    /// Sets the memory table.
    pub fn set_memory(&self, regions: &[VhostUserMemoryRegionInfo]) -> Result<()> {
        self.connection.set_mem_table(regions).map(drop)
    }

    /// Sets descriptor table, available ring and used ring, as addresses in the front end.
    pub fn set_addresses(&self, queue: usize, [desc, avail, used]: [u64; 3]) -> Result<()> {
        let config = VringConfigData {
            desc_table_addr: desc,
            avail_ring_addr: avail,
            used_ring_addr: used,
            ..Default::default()
        };
        self.connection.set_vring_addr(queue, &config)
    }

    /// Adds a memory region.
    pub fn add_region(&mut self, region: &VhostUserMemoryRegionInfo) {
        self.connection.add_mem_region(region).unwrap();
    }

    /// Removes a memory region.
    pub fn remove_region(&mut self, region: &VhostUserMemoryRegionInfo) {
        self.connection.remove_mem_region(region).unwrap();
    }

    /// Sends `RESET_DEVICE`.
    pub fn reset_device(&mut self) {
        self.connection.reset_device().unwrap();
    }

    fn try_read_config(&mut self, offset: u32, len: u32) -> Result<Vec<u8>> {
        let blank = vec![0; len as usize];
        let flags = VhostUserConfigFlags::empty();
        self.connection.get_config(offset, len, flags, &blank).map(|(_, data)| data)
    }

    /// Reads bytes of the configuration space.
    pub fn read_config(&mut self, offset: u32, len: u32) -> Vec<u8> {
        self.try_read_config(offset, len).unwrap()
    }

    /// Writes bytes of the configuration space.
    pub fn write_config(&mut self, offset: u32, data: &[u8]) {
        self.connection.set_config(offset, VhostUserConfigFlags::empty(), data).unwrap();
    }

    /// Reads the configuration space. Also a barrier: the reply follows the effect of all messages
    /// before.
    pub fn config(&mut self) -> Config {
        let bytes = self.read_config(0, CONFIG_LEN);
        let le32 = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap());
        let le64 = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap());
        Config {
            page_size_mask: le64(0),
            input_range: (le64(8), le64(16)),
            domain_range: (le32(24), le32(28)),
            probe_size: le32(32),
            bypass: bytes[BYPASS],
            reserved: bytes[BYPASS + 1..].try_into().unwrap(),
        }
    }

    /// Writes `bypass` as QEMU does: the whole space, with the other values unchanged.
    pub fn write_bypass(&mut self, value: u8) {
        let mut space = self.read_config(0, CONFIG_LEN);
        space[BYPASS] = value;
        self.write_config(0, &space);
    }
}
