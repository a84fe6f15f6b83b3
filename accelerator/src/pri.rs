//! The page request interface of the function: its registers in the configuration space, the
//! outstanding groups, and the order of the channels that wait for allocation. Submits no request.

use super::work::MissingPages;
use crate::dma::Pasid;
use crate::faults::{PageRequest, PrgIndex, Response};
use crate::regs::{PRI_CAPACITY, REQUEST_PAGE_SIZE};
use std::collections::{BTreeMap, VecDeque};

/// Size of the registers in bytes: the capability (PCI Express base specification, 10.5.2)
/// without its header.
pub const REGISTERS: usize = 12;

// Offsets of the registers, from the end of the header.
const CONTROL: usize = 0;
const STATUS: usize = 2;
const CAPACITY: usize = 4;
const ALLOCATION: usize = 8;

const CONTROL_ENABLE: u8 = 1 << 0;
/// Reads as 0.
const CONTROL_RESET: u8 = 1 << 1;

const STATUS_RESPONSE_FAILURE: u16 = 1 << 0;
const STATUS_UNEXPECTED_INDEX: u16 = 1 << 1;
const STATUS_STOPPED: u16 = 1 << 8;
const STATUS_PASID_REQUIRED: u16 = 1 << 15;

/// A page request group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Channel that waits for the response.
    pub channel: usize,
    /// Index of the group.
    pub index: PrgIndex,
    /// PASID of the requests.
    pub pasid: Option<Pasid>,
    /// The requested pages.
    pub missing: MissingPages,
}

impl Group {
    /// Returns the page requests of the group, in order.
    pub fn requests(&self) -> impl Iterator<Item = PageRequest> {
        let Self { index, pasid, missing: MissingPages { access, first, pages }, .. } = *self;
        (0..pages).map(move |page| PageRequest {
            pasid,
            group: index,
            address: first + page as u64 * REQUEST_PAGE_SIZE,
            access,
            last: page + 1 == pages,
        })
    }
}

/// A group without response.
#[derive(Debug)]
struct Outstanding {
    channel: usize,
    pasid: Option<Pasid>,
    pages: u32,
}

/// The page request interface. It is stopped if it is disabled and no response is outstanding.
#[derive(Debug, Default)]
pub struct Pri {
    enabled: bool,
    /// A response was FAILURE: no request is made until the interface is disabled or reset.
    failed: bool,
    /// Response Failure and Unexpected Page Request Group Index; the other bits are computed.
    status: u16,
    allocation: u32,
    /// Index of the last group.
    last: u32,
    outstanding: BTreeMap<PrgIndex, Outstanding>,
    /// The fault handler's queue is full, or the result of the last submission is not known yet:
    /// see [`Pri::submitted`].
    full: bool,
    /// Channels that wait until they can request pages, in order. A channel that retries keeps
    /// its position until it has requested pages or no longer misses any.
    queue: VecDeque<usize>,
}

impl Pri {
    /// Returns the registers.
    pub fn read(&self) -> [u8; REGISTERS] {
        let mut bytes = [0; REGISTERS];
        bytes[CONTROL] = self.enabled as u8 * CONTROL_ENABLE;
        bytes[STATUS..][..2].copy_from_slice(&self.status().to_le_bytes());
        bytes[CAPACITY..][..4].copy_from_slice(&PRI_CAPACITY.to_le_bytes());
        bytes[ALLOCATION..][..4].copy_from_slice(&self.allocation.to_le_bytes());
        bytes
    }

    /// Writes one byte of the registers. Returns whether all outstanding requests are withdrawn.
    pub fn write(&mut self, byte: usize, value: u8) -> bool {
        match byte {
            CONTROL => return self.control(value),
            STATUS => self.status &= !(value as u16),
            ALLOCATION..REGISTERS if !self.enabled => {
                let shift = 8 * (byte - ALLOCATION);
                self.allocation = self.allocation & !(0xff << shift) | (value as u32) << shift;
            }
            _ => {}
        }
        false
    }

    /// Sets the interface to its state after reset. Group indexes continue, so that a late
    /// response does not match a new group.
    pub fn reset(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    /// Returns whether faults can become page requests, possibly after waiting for allocation.
    pub fn is_enabled(&self) -> bool {
        self.enabled && !self.failed && self.limit() > 0
    }

    /// Returns whether a response was FAILURE.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Returns whether `channel` can request pages now: there is allocation left, and no other
    /// channel has waited longer.
    pub fn may_request(&self, channel: usize) -> bool {
        self.is_enabled()
            && self.available() > 0
            && self.queue.front().is_none_or(|&first| first == channel)
    }

    /// Begins a group for the missing pages of `channel`, or for as many as the allocation
    /// permits. If `channel` cannot request pages now, it joins the queue.
    pub fn begin(
        &mut self,
        channel: usize,
        pasid: Option<Pasid>,
        missing: MissingPages,
    ) -> Option<Group> {
        if !self.may_request(channel) {
            self.join_queue(channel);
            return None;
        }
        self.leave_queue(channel);
        let index = self.next_index();
        let pages = missing.pages.min(self.available());
        self.outstanding.insert(index, Outstanding { channel, pasid, pages });
        self.full = true;
        Some(Group { channel, index, pasid, missing: MissingPages { pages, ..missing } })
    }

    /// The fault handler has queued the last group. Until this call, the handler's queue counts
    /// as full, so that a [`capacity_available`](Self::capacity_available) that precedes
    /// [`rejected`](Self::rejected) is not lost.
    pub fn submitted(&mut self) {
        self.full = false;
    }

    /// The fault handler could not queue the last group: its channel becomes the first of the
    /// queue.
    pub fn rejected(&mut self, group: &Group) {
        self.outstanding.remove(&group.index);
        self.queue.push_front(group.channel);
    }

    /// The fault handler can queue groups again.
    pub fn capacity_available(&mut self) {
        self.full = false;
    }

    /// Completes a group. Returns the channel that waits for the response, except after FAILURE.
    pub fn respond(
        &mut self,
        pasid: Option<Pasid>,
        index: PrgIndex,
        response: Response,
    ) -> Option<usize> {
        if self.outstanding.get(&index).is_none_or(|group| group.pasid != pasid) {
            // A stopped interface has withdrawn groups whose responses may still arrive.
            if !self.is_stopped() {
                self.status |= STATUS_UNEXPECTED_INDEX;
            }
            return None;
        }
        let group = self.outstanding.remove(&index)?;
        if response == Response::Failure {
            self.failed = true;
            self.status |= STATUS_RESPONSE_FAILURE;
            return None;
        }
        Some(group.channel)
    }

    /// Removes a channel that no longer misses pages from the queue.
    pub fn leave_queue(&mut self, channel: usize) {
        self.queue.retain(|&waiting| waiting != channel);
    }

    fn join_queue(&mut self, channel: usize) {
        if !self.queue.contains(&channel) {
            self.queue.push_back(channel);
        }
    }

    /// Writes the control register. Reset takes effect if Enable is written as 0, Enable only if
    /// the interface is stopped. After Response Failure no more responses are expected (10.4.2),
    /// so disabling the interface withdraws all requests.
    fn control(&mut self, value: u8) -> bool {
        let enable = value & CONTROL_ENABLE != 0;
        let reset = value & CONTROL_RESET != 0 && !enable;
        let withdraw = reset || self.failed && !enable;
        self.enabled &= enable;
        if withdraw {
            self.outstanding.clear();
            (self.failed, self.full) = (false, false);
        }
        if reset {
            self.status = 0;
        }
        if enable && self.is_stopped() {
            (self.enabled, self.full) = (true, false);
            self.status = 0;
        }
        withdraw
    }

    fn is_stopped(&self) -> bool {
        !self.enabled && !self.failed && self.outstanding.is_empty()
    }

    fn status(&self) -> u16 {
        let stopped = if self.is_stopped() { STATUS_STOPPED } else { 0 };
        self.status | stopped | STATUS_PASID_REQUIRED
    }

    fn limit(&self) -> u32 {
        self.allocation.min(PRI_CAPACITY)
    }

    /// Returns how many more page requests can be outstanding.
    fn available(&self) -> u32 {
        let used: u32 = self.outstanding.values().map(|group| group.pages).sum();
        if self.full { 0 } else { self.limit().saturating_sub(used) }
    }

    /// Returns the next index that is not outstanding. Indexes count up, so that a late response
    /// does not match a new group.
    fn next_index(&mut self) -> PrgIndex {
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.outstanding.contains_key(&PrgIndex(self.last)) {
                return PrgIndex(self.last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Access;

    const RESET: u8 = CONTROL_RESET;
    const ENABLE: u8 = CONTROL_ENABLE;
    const STOPPED: u16 = STATUS_STOPPED | STATUS_PASID_REQUIRED;
    const ACTIVE: u16 = STATUS_PASID_REQUIRED;

    fn allocate(pri: &mut Pri, pages: u32) {
        for (byte, value) in (ALLOCATION..).zip(pages.to_le_bytes()) {
            assert!(!pri.write(byte, value));
        }
    }

    /// Returns an interface that is enabled with an allocation of `pages`.
    fn enabled(pages: u32) -> Pri {
        let mut pri = Pri::default();
        allocate(&mut pri, pages);
        assert!(!pri.write(CONTROL, ENABLE));
        pri
    }

    fn control(pri: &Pri) -> u8 {
        pri.read()[CONTROL]
    }

    fn status(pri: &Pri) -> u16 {
        u16::from_le_bytes([pri.read()[STATUS], pri.read()[STATUS + 1]])
    }

    fn allocation(pri: &Pri) -> u32 {
        u32::from_le_bytes(pri.read()[ALLOCATION..].try_into().unwrap())
    }

    fn missing(pages: u32) -> MissingPages {
        MissingPages { access: Access::Read, first: 0x4000, pages }
    }

    fn begin(pri: &mut Pri, channel: usize, pages: u32) -> Option<Group> {
        pri.begin(channel, None, missing(pages))
    }

    /// Begins and submits a group.
    fn submit(pri: &mut Pri, channel: usize, pages: u32) -> Option<Group> {
        let group = begin(pri, channel, pages)?;
        pri.submitted();
        Some(group)
    }

    fn respond(pri: &mut Pri, group: Option<Group>, response: Response) -> Option<usize> {
        let group = group.expect("a group");
        pri.respond(group.pasid, group.index, response)
    }

    // Registers.

    #[test]
    fn reset_values_are_stopped_without_allocation() {
        let pri = Pri::default();
        assert_eq!(pri.read(), [0, 0, 0, 0x81, 64, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!pri.is_enabled());
    }

    #[test]
    fn stopped_is_clear_while_enabled() {
        let mut pri = enabled(8);
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
        pri.write(CONTROL, 0);
        assert_eq!((control(&pri), status(&pri)), (0, STOPPED));
    }

    #[test]
    fn disabled_interface_stops_after_last_response() {
        let mut pri = enabled(8);
        let groups = [submit(&mut pri, 0, 2), submit(&mut pri, 1, 3)];
        pri.write(CONTROL, 0);
        for group in groups {
            assert_eq!(status(&pri), ACTIVE);
            assert_eq!(begin(&mut pri, 5, 1), None);
            respond(&mut pri, group, Response::Success);
        }
        assert_eq!(status(&pri), STOPPED);
    }

    #[test]
    fn enable_requires_stopped_interface() {
        let mut pri = enabled(8);
        let group = submit(&mut pri, 0, 1);
        pri.write(CONTROL, 0);
        pri.write(CONTROL, ENABLE);
        assert_eq!((control(&pri), status(&pri)), (0, ACTIVE));
        respond(&mut pri, group, Response::Invalid);
        pri.write(CONTROL, ENABLE);
        assert_eq!(control(&pri), ENABLE);
    }

    #[test]
    fn reset_requires_disabled_interface_and_withdraws_groups() {
        let mut pri = enabled(8);
        let group = submit(&mut pri, 0, 1);
        assert!(!pri.write(CONTROL, ENABLE | RESET));
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
        pri.write(CONTROL, 0);
        assert!(pri.write(CONTROL, RESET));
        assert_eq!((control(&pri), status(&pri), allocation(&pri)), (0, STOPPED, 8));
        assert_eq!(respond(&mut pri, group, Response::Failure), None);
        assert_eq!(status(&pri), STOPPED, "the late response is ignored");
    }

    #[test]
    fn reset_is_accepted_with_disable_but_not_with_enable() {
        let mut pri = enabled(8);
        submit(&mut pri, 0, 8);
        assert!(pri.write(CONTROL, RESET));
        assert_eq!((control(&pri), status(&pri)), (0, STOPPED));
        assert!(!pri.write(CONTROL, RESET | ENABLE));
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
    }

    #[test]
    fn allocation_is_read_only_while_enabled() {
        let mut pri = Pri::default();
        allocate(&mut pri, 0x0403_0201);
        assert_eq!(allocation(&pri), 0x0403_0201);
        pri.write(ALLOCATION + 1, 9);
        assert_eq!(allocation(&pri), 0x0403_0901);
        pri.write(CONTROL, ENABLE);
        allocate(&mut pri, 7);
        assert_eq!(allocation(&pri), 0x0403_0901);
    }

    #[test]
    fn read_only_bytes_ignore_writes() {
        let mut pri = Pri::default();
        let before = pri.read();
        for byte in [1, 2, 3, 4, 5, 6, 7, REGISTERS, usize::MAX] {
            assert!(!pri.write(byte, 0xff));
        }
        assert_eq!(pri.read(), before);
    }

    // Responses.

    #[test]
    fn response_returns_requesting_channel() {
        let mut pri = enabled(8);
        let (a, b) = (submit(&mut pri, 3, 1), submit(&mut pri, 9, 1));
        assert_eq!(respond(&mut pri, b, Response::Success), Some(9));
        assert_eq!(respond(&mut pri, a, Response::Invalid), Some(3));
    }

    #[test]
    fn unexpected_response_sets_status_until_cleared() {
        let mut pri = enabled(8);
        let group = pri.begin(0, Some(Pasid(5)), missing(1)).unwrap();
        let unexpected = [
            (Some(Pasid(5)), PrgIndex(group.index.0 + 1)),
            (Some(Pasid(6)), group.index),
            (None, group.index),
        ];
        for (pasid, index) in unexpected {
            assert_eq!(pri.respond(pasid, index, Response::Failure), None);
            assert_eq!(status(&pri), ACTIVE | STATUS_UNEXPECTED_INDEX);
            pri.write(STATUS, STATUS_UNEXPECTED_INDEX as u8);
            assert_eq!(status(&pri), ACTIVE);
        }
        assert_eq!(respond(&mut pri, Some(group), Response::Success), Some(0));
        assert_eq!(respond(&mut pri, Some(group), Response::Success), None, "second response");
    }

    /// Returns an interface with two groups, one of which was completed with FAILURE.
    fn failed() -> Pri {
        let mut pri = enabled(8);
        let group = submit(&mut pri, 0, 1);
        submit(&mut pri, 1, 1);
        assert_eq!(respond(&mut pri, group, Response::Failure), None);
        assert_eq!(status(&pri), ACTIVE | STATUS_RESPONSE_FAILURE);
        pri
    }

    #[test]
    fn failure_stops_requests_even_with_status_cleared() {
        let mut pri = failed();
        pri.write(STATUS, STATUS_RESPONSE_FAILURE as u8);
        assert_eq!(status(&pri), ACTIVE);
        pri.write(CONTROL, ENABLE);
        assert!(pri.has_failed() && !pri.is_enabled());
        assert_eq!(begin(&mut pri, 2, 1), None);
    }

    #[test]
    fn disable_after_failure_withdraws_groups() {
        let mut pri = failed();
        assert!(pri.write(CONTROL, 0));
        assert!(!pri.has_failed());
        assert_eq!(status(&pri), STOPPED | STATUS_RESPONSE_FAILURE);
        pri.write(CONTROL, ENABLE);
        assert_eq!(status(&pri), ACTIVE);
        assert_eq!(submit(&mut pri, 0, 8).unwrap().missing.pages, 8);
    }

    #[test]
    fn reset_clears_failure_and_status() {
        let mut pri = failed();
        assert!(pri.write(CONTROL, RESET));
        assert!(!pri.has_failed());
        assert_eq!(status(&pri), STOPPED);
    }

    #[test]
    fn failure_while_disabled_prevents_stop_until_reset() {
        let mut pri = enabled(8);
        let group = submit(&mut pri, 0, 1);
        pri.write(CONTROL, 0);
        respond(&mut pri, group, Response::Failure);
        pri.write(CONTROL, ENABLE);
        assert_eq!((control(&pri), status(&pri)), (0, ACTIVE | STATUS_RESPONSE_FAILURE));
        assert!(pri.write(CONTROL, RESET));
        pri.write(CONTROL, ENABLE);
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
    }

    // Allocation.

    #[test]
    fn group_is_limited_to_available_allocation() {
        for (allocation, capacity) in [(10, 10), (PRI_CAPACITY, PRI_CAPACITY), (u32::MAX, 64)] {
            let mut pri = enabled(allocation);
            assert_eq!(submit(&mut pri, 0, capacity - 3).unwrap().missing.pages, capacity - 3);
            let second = submit(&mut pri, 1, 7);
            assert_eq!(second.unwrap().missing.pages, 3);
            assert_eq!(submit(&mut pri, 2, 1), None);
            respond(&mut pri, second, Response::Success);
            assert_eq!(submit(&mut pri, 2, 2).unwrap().missing.pages, 2);
        }
    }

    #[test]
    fn no_requests_without_allocation() {
        let pri = enabled(0);
        assert!(!pri.is_enabled() && !pri.may_request(0));
    }

    #[test]
    fn waiting_channels_request_in_queue_order() {
        let mut pri = enabled(1);
        let mut group = submit(&mut pri, 0, 1);
        for channel in [7, 2, 5] {
            assert_eq!(begin(&mut pri, channel, 1), None);
        }
        for channel in [7, 2, 5] {
            respond(&mut pri, group, Response::Success);
            assert!((0..8).all(|other| pri.may_request(other) == (other == channel)));
            assert_eq!(begin(&mut pri, 0, 1), None, "channel 0 joins the end of the queue");
            group = submit(&mut pri, channel, 1);
            assert!(group.is_some());
        }
    }

    #[test]
    fn leaving_the_queue_unblocks_next_channel() {
        let mut pri = enabled(1);
        let group = submit(&mut pri, 0, 1);
        begin(&mut pri, 1, 1);
        begin(&mut pri, 2, 1);
        respond(&mut pri, group, Response::Success);
        assert!(!pri.may_request(2));
        pri.leave_queue(1);
        assert!(pri.may_request(2));
    }

    #[test]
    fn rejected_group_is_first_when_capacity_is_available() {
        let mut pri = enabled(8);
        submit(&mut pri, 0, 1);
        let group = begin(&mut pri, 1, 7).unwrap();
        assert_eq!(begin(&mut pri, 2, 1), None);
        pri.rejected(&group);
        assert!((0..8).all(|channel| !pri.may_request(channel)));
        pri.capacity_available();
        assert!(pri.may_request(1) && !pri.may_request(2));
        assert_eq!(
            submit(&mut pri, 1, 7).unwrap().missing.pages,
            7,
            "the rejected group released its allocation"
        );
    }

    #[test]
    fn capacity_available_before_rejection_is_not_lost() {
        let mut pri = enabled(8);
        let group = begin(&mut pri, 1, 1).unwrap();
        pri.capacity_available();
        pri.rejected(&group);
        assert!(pri.may_request(1));
    }

    #[test]
    fn enable_clears_queue_full_state() {
        let mut pri = enabled(8);
        let group = begin(&mut pri, 1, 1).unwrap();
        pri.rejected(&group);
        pri.write(CONTROL, 0);
        pri.write(CONTROL, ENABLE);
        assert!(pri.may_request(1));
    }

    #[test]
    fn indexes_count_up_and_skip_outstanding_groups() {
        let mut pri = enabled(8);
        let first = submit(&mut pri, 0, 1).unwrap();
        let second = submit(&mut pri, 1, 1);
        respond(&mut pri, second, Response::Success);
        assert_eq!(submit(&mut pri, 1, 1).unwrap().index.0, first.index.0 + 2);
        pri.last = first.index.0.wrapping_sub(1);
        let after = submit(&mut pri, 2, 1).unwrap();
        assert_eq!(after.index.0, first.index.0 + 1, "indexes of completed groups are reused");
        pri.last = u32::MAX;
        assert_eq!(submit(&mut pri, 3, 1).unwrap().index, PrgIndex(0));
    }

    #[test]
    fn indexes_continue_after_function_reset() {
        let mut pri = enabled(8);
        let before = submit(&mut pri, 0, 1).unwrap();
        pri.reset();
        assert_eq!(pri.read(), Pri::default().read());
        pri.write(ALLOCATION, 1);
        pri.write(CONTROL, ENABLE);
        assert_ne!(submit(&mut pri, 0, 1).unwrap().index, before.index);
    }

    // Groups.

    #[test]
    fn requests_of_group_differ_in_address_and_last() {
        let mut pri = enabled(8);
        let pages = MissingPages { access: Access::Write, first: u64::MAX - 0x1fff, pages: 2 };
        let group = pri.begin(0, Some(Pasid(7)), pages).unwrap();
        let first = PageRequest {
            pasid: Some(Pasid(7)),
            group: group.index,
            address: u64::MAX - 0x1fff,
            access: Access::Write,
            last: false,
        };
        let second = PageRequest { address: u64::MAX - 0xfff, last: true, ..first };
        assert!(group.requests().eq([first, second]));
    }
}
