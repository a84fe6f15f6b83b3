//! A driver that takes page requests.

use crate::accel::{Refused, regs};
use crate::counters::{self, Counters};
use crate::driver::request::{RW, attach, attach_pasid, detach, detach_pasid, map, page_resp};
use crate::driver::{Fault, LONG_EVENT_LEN, PAGE, Request};
use crate::frontend::feature;
use crate::vm::{DATA, ENDPOINTS, EVENT_RING_SIZE, Vm};
use crate::wait;

/// Codes of PAGE_RESP.
pub const SUCCESS: u16 = 0;
pub const INVALID: u16 = 1;
pub const FAILURE: u16 = 2;

/// A channel of the accelerator behind endpoint `index`, and the address space it works in.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Channel {
    pub index: usize,
    pub number: u32,
    pub pasid: Option<u32>,
}

impl Channel {
    pub const fn new(index: usize, number: u32, pasid: Option<u32>) -> Self {
        Self { index, number, pasid }
    }

    /// The domain that `Vm::open` attaches.
    pub fn domain(self) -> u32 {
        1 + self.index as u32 + 0x10 * self.pasid.unwrap_or(0)
    }

    pub fn endpoint(self) -> u32 {
        ENDPOINTS[self.index].1
    }

    pub fn attach(self, domain: u32) -> Request {
        match self.pasid {
            Some(pasid) => attach_pasid(domain, self.endpoint(), pasid),
            None => attach(domain, self.endpoint()),
        }
    }

    pub fn detach(self) -> Request {
        self.detach_from(self.domain())
    }

    pub fn detach_from(self, domain: u32) -> Request {
        match self.pasid {
            Some(pasid) => detach_pasid(domain, self.endpoint(), pasid),
            None => detach(domain, self.endpoint()),
        }
    }
}

/// A page request group as the driver has seen it.
#[derive(Clone, Debug, PartialEq)]
pub struct Group {
    pub endpoint: u32,
    pub pasid: Option<u32>,
    pub id: u16,
    /// The addresses asked for.
    pub pages: Vec<u64>,
}

impl Group {
    /// Puts together what must be the events of one group, all of it.
    #[track_caller]
    pub fn new(events: &[Fault]) -> Self {
        events.iter().for_each(assert_page_request);
        let first = events[0];
        let group = |event: &Fault| {
            (event.endpoint, event.flags & Fault::PASID, event.pasid, event.group, event.reason)
        };
        assert!(events.iter().all(|event| group(event) == group(&first)), "mixed: {events:x?}");
        let last = events.iter().position(|event| event.has(Fault::LAST));
        assert_eq!(last, Some(events.len() - 1), "the last one: {events:x?}");
        Self {
            endpoint: first.endpoint,
            pasid: first.has(Fault::PASID).then_some(first.pasid),
            id: first.group,
            pages: events.iter().map(|event| event.address).collect(),
        }
    }

    pub fn response(&self, code: u16) -> Request {
        page_resp(self.endpoint, self.pasid, self.id, code)
    }

    /// A channel of the group's address space.
    pub fn channel(&self) -> Channel {
        let index = ENDPOINTS.iter().position(|(_, id)| *id == self.endpoint).unwrap();
        Channel::new(index, 0, self.pasid)
    }
}

impl Vm {
    /// A machine whose driver takes page requests; nothing is attached and nothing bypasses.
    pub fn paging(args: &str) -> Self {
        Self::paging_with(args, EVENT_RING_SIZE)
    }

    /// The same with so few event buffers.
    pub fn paging_with(args: &str, buffers: u16) -> Self {
        let mut vm = Self::realized(&format!("--boot-bypass off {args}"));
        vm.features |= feature::PASID | feature::PAGE_REQUEST;
        vm.event_buffers = (buffers, LONG_EVENT_LEN);
        vm.boot();
        vm
    }

    /// The same with an address space for the channel.
    pub fn open_on(args: &str, channel: Channel) -> Self {
        let mut vm = Self::paging(args);
        vm.open(channel);
        vm
    }

    /// Gives the channel its address space, with no more in it than the accelerator needs, and
    /// lets it ask for the rest.
    #[track_caller]
    pub fn open(&mut self, channel: Channel) {
        self.ok(channel.attach(channel.domain()));
        self.map_home(channel.domain(), channel.index);
        self.accel(channel.index).ask_for_pages();
    }

    /// The channel begins to write whole pages.
    pub fn write_pages(&mut self, channel: Channel, destination: u64, pages: u64) {
        let accel = self.accel(channel.index);
        accel.use_pasid(channel.pasid);
        let (opcode, length, operand) = (regs::OP_FILL, pages * PAGE, destination);
        let work = regs::Descriptor { opcode, destination, length, operand, ..Default::default() };
        accel.begin(channel.number, work);
    }

    /// The channel begins to read a byte.
    pub fn read_byte(&mut self, channel: Channel, source: u64) {
        let accel = self.accel(channel.index);
        accel.use_pasid(channel.pasid);
        let (opcode, length) = (regs::OP_CRC32C, 1);
        accel.begin(
            channel.number,
            regs::Descriptor { opcode, source, length, ..Default::default() },
        );
    }

    /// The channel begins to write a page that it has to ask for, and the driver sees that.
    #[track_caller]
    pub fn fault(&mut self, channel: Channel, address: u64) -> Group {
        self.write_pages(channel, address, 1);
        let group = self.group();
        assert_eq!((group.endpoint, group.pasid), (channel.endpoint(), channel.pasid));
        assert_eq!(group.pages, [address]);
        group
    }

    /// How the channel's work has ended, once it has.
    pub fn outcome(&mut self, channel: Channel) -> Result<(), Refused> {
        self.accel(channel.index).wait(channel.number)
    }

    pub fn is_waiting(&mut self, channel: Channel) -> bool {
        self.accel(channel.index).outcome(channel.number).is_none()
    }

    /// The next group. Its events must follow each other.
    #[track_caller]
    pub fn group(&mut self) -> Group {
        let first = self.events.next();
        self.rest_of(first)
    }

    /// The next group, if it is there already.
    pub fn try_group(&mut self) -> Option<Group> {
        let first = self.events.try_next()?;
        Some(self.rest_of(first))
    }

    /// The group that `first` begins.
    #[track_caller]
    pub fn rest_of(&mut self, first: Fault) -> Group {
        let mut events = vec![first];
        while !events[events.len() - 1].has(Fault::LAST) {
            events.push(self.events.next());
        }
        Group::new(&events)
    }

    /// Maps what the group asks for, and says so.
    #[track_caller]
    pub fn resolve(&mut self, group: &Group) {
        for &page in &group.pages {
            let domain = group.channel().domain();
            self.ok(map(domain, page, page + PAGE - 1, backing(page), RW));
        }
        self.ok(group.response(SUCCESS));
    }

    /// Checks that events of no group but those of `witness` come, a channel whose endpoint has
    /// no group waiting.
    #[track_caller]
    pub fn assert_no_event(&mut self, witness: Channel) {
        const ADDRESS: u64 = 0x5555_0000;
        // Endpoints take turns: what waits would come before the second.
        for _ in 0..2 {
            let group = self.fault(witness, ADDRESS);
            self.ok(group.response(INVALID));
            self.outcome(witness).unwrap_err();
        }
        assert_eq!(self.events.try_next(), None);
    }

    /// What has become of the groups of endpoint `index` until now.
    pub fn page_requests(&mut self, index: usize) -> Counters {
        self.count(index, counters::page_requests)
    }

    /// What has become of its faults that are only reported.
    pub fn faults(&mut self, index: usize) -> Counters {
        self.count(index, counters::faults)
    }

    fn count(&mut self, index: usize, read: fn(&str, &str) -> Vec<Counters>) -> Counters {
        let said = |vm: &Self| read(&vm.daemon.log(), ENDPOINTS[index].0);
        let before = said(self).len();
        self.daemon.signal(libc::SIGUSR1);
        wait::until("counters", || said(self).into_iter().nth(before))
    }

    /// Waits until groups of endpoint `index` have ended like this, or wait, and no others.
    /// Unless expected, refused ones do not count: a channel whose space has gone may try to
    /// write its record.
    #[track_caller]
    pub fn assert_groups(&mut self, index: usize, expected: &[(&str, u64)]) {
        let expected: Counters = expected.iter().map(|(name, n)| (name.to_string(), *n)).collect();
        let mut seen = Counters::new();
        let seen_expected = || {
            seen = self.page_requests(index);
            let is_told = |name: &str| name != "groups" && name != "requests" && name != "refused";
            seen.retain(|name, number| expected.contains_key(name) || *number > 0 && is_told(name));
            (seen == expected).then_some(())
        };
        if wait::patiently(seen_expected).is_none() {
            assert_eq!(seen, expected, "groups of endpoint {index}");
        }
    }

    /// How many requests endpoint `index` has made.
    pub fn assert_requests(&mut self, index: usize, requests: u64) {
        assert_eq!(self.page_requests(index)["requests"], requests);
    }
}

fn assert_page_request(event: &Fault) {
    let every = Fault::PAGE_REQ | Fault::ADDRESS | Fault::GROUP_ID;
    let some = Fault::READ | Fault::WRITE | Fault::LAST | Fault::PASID;
    assert_eq!(event.flags & every, every, "no page request: {event:x?}");
    assert_eq!(event.flags & !(every | some), 0, "unknown flags: {event:x?}");
    assert_eq!(event.reason, Fault::R_MAPPING, "{event:x?}");
}

/// Where in guest memory `Vm::resolve` puts a page.
pub fn backing(page: u64) -> u64 {
    DATA + page % (8 << 20)
}
