//! A driver that handles page requests.

use crate::accel::{AccessError, regs};
use crate::counters::{self, Counters};
use crate::event::{Fault, LONG_EVENT_LEN};
use crate::front_end::feature;
use crate::memory::PAGE;
use crate::request::{RW, Request, attach, attach_pasid, detach, detach_pasid, map, page_resp};
use crate::vm::{DATA, ENDPOINTS, EVENT_QUEUE_SIZE, Vm};
use crate::wait;

/// PAGE_RESP code: the pages are mapped.
pub const SUCCESS: u16 = 0;
/// PAGE_RESP code: the access is not allowed.
pub const INVALID: u16 = 1;
/// PAGE_RESP code: the endpoint must make no further page requests.
pub const FAILURE: u16 = 2;

/// A channel of the accelerator of endpoint `index`, and its address space.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Channel {
    /// Index into [`ENDPOINTS`].
    pub index: usize,
    /// Number of the channel.
    pub number: u32,
    /// PASID of its accesses.
    pub pasid: Option<u32>,
}

impl Channel {
    /// Creates the description of a channel.
    pub const fn new(index: usize, number: u32, pasid: Option<u32>) -> Self {
        Self { index, number, pasid }
    }

    /// Returns the domain that [`Vm::open`] attaches.
    pub fn domain(self) -> u32 {
        1 + self.index as u32 + 0x10 * self.pasid.unwrap_or(0)
    }

    /// Returns the endpoint ID.
    pub fn endpoint(self) -> u32 {
        ENDPOINTS[self.index].1
    }

    /// Returns the request that attaches the address space to `domain`.
    pub fn attach(self, domain: u32) -> Request {
        match self.pasid {
            Some(pasid) => attach_pasid(domain, self.endpoint(), pasid),
            None => attach(domain, self.endpoint()),
        }
    }

    /// Returns the request that detaches the address space from [`domain`](Self::domain).
    pub fn detach(self) -> Request {
        self.detach_from(self.domain())
    }

    /// Returns the request that detaches the address space from `domain`.
    pub fn detach_from(self, domain: u32) -> Request {
        match self.pasid {
            Some(pasid) => detach_pasid(domain, self.endpoint(), pasid),
            None => detach(domain, self.endpoint()),
        }
    }
}

/// A page request group that the driver has received.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    /// The endpoint that made the page requests.
    pub endpoint: u32,
    /// Their PASID.
    pub pasid: Option<u32>,
    /// The identifier for the page response.
    pub id: u16,
    /// The requested addresses.
    pub pages: Vec<u64>,
}

impl Group {
    /// Assembles a group from events, which must be all of one group.
    #[track_caller]
    pub fn new(events: &[Fault]) -> Self {
        events.iter().for_each(assert_page_request);
        let first = events[0];
        let same_group = |event: &Fault| {
            event.endpoint == first.endpoint
                && event.flags & Fault::PASID == first.flags & Fault::PASID
                && event.pasid == first.pasid
                && event.group == first.group
                && event.reason == first.reason
        };
        assert!(events.iter().all(same_group), "mixed: {events:x?}");
        let last = events.iter().position(|event| event.has(Fault::LAST));
        assert_eq!(last, Some(events.len() - 1), "the last one: {events:x?}");
        Self {
            endpoint: first.endpoint,
            pasid: first.has(Fault::PASID).then_some(first.pasid),
            id: first.group,
            pages: events.iter().map(|event| event.address).collect(),
        }
    }

    /// Returns the page response with `code`.
    pub fn response(&self, code: u16) -> Request {
        page_resp(self.endpoint, self.pasid, self.id, code)
    }

    /// Returns channel 0 of the group's endpoint, with the group's address space.
    pub fn channel(&self) -> Channel {
        let index = ENDPOINTS.iter().position(|(_, id)| *id == self.endpoint).unwrap();
        Channel::new(index, 0, self.pasid)
    }
}

/// Methods for a driver that handles page requests.
///
/// ```no_run
/// use testing::paging::Channel;
/// use testing::vm::Vm;
///
/// let channel = Channel::new(0, 0, Some(5));
/// let mut vm = Vm::open_on("", channel);
/// let group = vm.fault(channel, 0x7000_0000);
/// vm.resolve(&group);
/// assert_eq!(vm.outcome(channel), Ok(()));
/// vm.assert_groups(0, &[("success", 1)]);
/// ```
impl Vm {
    /// Starts a driver that handles page requests. No endpoint is attached or in bypass mode.
    #[track_caller]
    pub fn paging(args: &str) -> Self {
        Self::paging_with(args, EVENT_QUEUE_SIZE)
    }

    /// As [`paging`](Self::paging), with this number of event buffers.
    #[track_caller]
    pub fn paging_with(args: &str, buffers: u16) -> Self {
        let mut vm = Self::realized(&format!("--boot-bypass off {args}"));
        vm.features |= feature::PASID | feature::PAGE_REQUEST;
        vm.event_buffers = (buffers, LONG_EVENT_LEN);
        vm.boot();
        vm
    }

    /// As [`paging`](Self::paging), with an address space for `channel`.
    #[track_caller]
    pub fn open_on(args: &str, channel: Channel) -> Self {
        let mut vm = Self::paging(args);
        vm.open(channel);
        vm
    }

    /// Attaches a domain for the channel that maps only the accelerator's rings and buffers, and
    /// enables page requests of the channel.
    #[track_caller]
    pub fn open(&mut self, channel: Channel) {
        self.ok(channel.attach(channel.domain()));
        self.map_home(channel.domain(), channel.index);
        self.accel(channel.index).enable_page_requests();
    }

    /// Starts a write of whole pages.
    #[track_caller]
    pub fn write_pages(&mut self, channel: Channel, destination: u64, pages: u64) {
        let accel = self.accel(channel.index);
        accel.use_pasid(channel.pasid);
        let (opcode, length, operand) = (regs::OP_FILL, pages * PAGE, destination);
        let work = regs::Descriptor { opcode, destination, length, operand, ..Default::default() };
        accel.begin(channel.number, work);
    }

    /// Starts a read of one byte.
    #[track_caller]
    pub fn read_byte(&mut self, channel: Channel, source: u64) {
        let accel = self.accel(channel.index);
        accel.use_pasid(channel.pasid);
        let (opcode, length) = (regs::OP_CRC32C, 1);
        let work = regs::Descriptor { opcode, source, length, ..Default::default() };
        accel.begin(channel.number, work);
    }

    /// Starts a write of one page that is not mapped, and receives the page request.
    #[track_caller]
    pub fn fault(&mut self, channel: Channel, address: u64) -> Group {
        self.write_pages(channel, address, 1);
        let group = self.group();
        assert_eq!((group.endpoint, group.pasid), (channel.endpoint(), channel.pasid));
        assert_eq!(group.pages, [address]);
        group
    }

    /// Waits for the outcome of the channel's work.
    #[track_caller]
    pub fn outcome(&mut self, channel: Channel) -> Result<(), AccessError> {
        self.accel(channel.index).wait(channel.number)
    }

    /// Returns whether the channel's work is not complete.
    pub fn is_pending(&mut self, channel: Channel) -> bool {
        self.accel(channel.index).outcome(channel.number).is_none()
    }

    /// Waits for the next group. Its events must be consecutive.
    #[track_caller]
    pub fn group(&mut self) -> Group {
        let first = self.events.receive();
        self.rest_of(first)
    }

    /// Returns the next group if its first event has been delivered.
    #[track_caller]
    pub fn try_group(&mut self) -> Option<Group> {
        let first = self.events.try_receive()?;
        Some(self.rest_of(first))
    }

    /// Receives the rest of the group that starts with `first`.
    #[track_caller]
    pub fn rest_of(&mut self, first: Fault) -> Group {
        let mut events = vec![first];
        while !events[events.len() - 1].has(Fault::LAST) {
            events.push(self.events.receive());
        }
        Group::new(&events)
    }

    /// Maps the pages of a group and responds with SUCCESS.
    #[track_caller]
    pub fn resolve(&mut self, group: &Group) {
        for &page in &group.pages {
            let domain = group.channel().domain();
            self.ok(map(domain, page, page + PAGE - 1, backing(page), RW));
        }
        self.ok(group.response(SUCCESS));
    }

    /// Checks that no event is delivered but those of `witness`, a channel whose endpoint has no
    /// pending group.
    #[track_caller]
    pub fn assert_no_event(&mut self, witness: Channel) {
        const ADDRESS: u64 = 0x5555_0000;
        // Endpoints are served round robin: a queued event would be delivered before the second.
        for _ in 0..2 {
            let group = self.fault(witness, ADDRESS);
            self.ok(group.response(INVALID));
            self.outcome(witness).unwrap_err();
        }
        assert_eq!(self.events.try_receive(), None);
    }

    /// Returns the counters of page request groups of endpoint `index`.
    pub fn page_requests(&mut self, index: usize) -> Counters {
        self.read_counters(index, counters::page_requests)
    }

    /// Returns the counters of unrecoverable faults of endpoint `index`.
    pub fn faults(&mut self, index: usize) -> Counters {
        self.read_counters(index, counters::faults)
    }

    /// Makes the daemon log its counters, and reads them.
    fn read_counters(&mut self, index: usize, read: fn(&str, &str) -> Vec<Counters>) -> Counters {
        let bdf = ENDPOINTS[index].0;
        let before = read(&self.daemon.log(), bdf).len();
        self.daemon.signal(libc::SIGUSR1);
        wait::until("counters", || read(&self.daemon.log(), bdf).into_iter().nth(before))
    }

    /// Waits until the groups of endpoint `index` have these outcomes or are `waiting`, and no
    /// other outcomes. `refused` is not compared unless expected: a channel whose address
    /// space is detached may still try to write its completion record.
    #[track_caller]
    pub fn assert_groups(&mut self, index: usize, expected: &[(&str, u64)]) {
        let expected: Counters = expected.iter().map(|(name, n)| (name.to_string(), *n)).collect();
        let mut seen = Counters::new();
        let matched = wait::try_until(|| {
            seen = self.page_requests(index);
            seen.retain(|name, count| {
                let ignored = ["groups", "requests", "refused"].contains(&name.as_str());
                expected.contains_key(name) || *count > 0 && !ignored
            });
            (seen == expected).then_some(())
        });
        if matched.is_none() {
            assert_eq!(seen, expected, "groups of endpoint {index}");
        }
    }

    /// Checks the number of page requests that endpoint `index` has made.
    #[track_caller]
    pub fn assert_requests(&mut self, index: usize, requests: u64) {
        assert_eq!(self.page_requests(index)["requests"], requests);
    }
}

#[track_caller]
fn assert_page_request(event: &Fault) {
    let required = Fault::PAGE_REQ | Fault::ADDRESS | Fault::GROUP_ID;
    let optional = Fault::READ | Fault::WRITE | Fault::LAST | Fault::PASID;
    assert_eq!(event.flags & required, required, "not a page request: {event:x?}");
    assert_eq!(event.flags & !(required | optional), 0, "unknown flags: {event:x?}");
    assert_eq!(event.reason, Fault::R_MAPPING, "{event:x?}");
}

/// Returns the guest-physical address that [`Vm::resolve`] maps a page to.
pub fn backing(page: u64) -> u64 {
    DATA + page % (8 << 20)
}
