//! The page request interface of the function: its registers in the configuration space, the
//! groups that wait for their answers, and who may ask next. Makes no request itself.

use crate::dma::{Access, Pasid};
use crate::faults::{PageRequest, PrgIndex, Response};
use crate::regs::{PRI_CAPACITY, REQUEST_PAGE_SIZE};
use std::collections::{BTreeMap, VecDeque};

/// Bytes of the registers: the capability (PCI Express base specification, 10.5.2) without its
/// header.
pub const REGISTERS: usize = 12;

// Where the registers lie, relative to the first of them.
const CONTROL: usize = 0;
const STATUS: usize = 2;
const CAPACITY: usize = 4;
const ALLOCATION: usize = 8;

const CONTROL_ENABLE: u8 = 1 << 0;
/// Reads 0.
const CONTROL_RESET: u8 = 1 << 1;

const STATUS_RESPONSE_FAILURE: u16 = 1 << 0;
const STATUS_UNEXPECTED_INDEX: u16 = 1 << 1;
const STATUS_STOPPED: u16 = 1 << 8;
const STATUS_PASID_REQUIRED: u16 = 1 << 15;

/// Pages that an access misses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wish {
    /// What the access wants to do.
    pub access: Access,
    /// First byte of the first page.
    pub first: u64,
    /// Number of pages, 1 or more; the last one ends at or below 2^64 - 1.
    pub pages: u32,
}

/// Page requests that are made together and answered as one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// Who waits for the answer.
    pub channel: usize,
    /// What the answer calls it.
    pub index: PrgIndex,
    /// The address space.
    pub pasid: Option<Pasid>,
    /// What is asked for.
    pub wish: Wish,
}

impl Group {
    /// Its page requests, in order.
    pub fn requests(&self) -> impl Iterator<Item = PageRequest> {
        let Self { index, pasid, wish: Wish { access, first, pages }, .. } = *self;
        (0..pages).map(move |page| PageRequest {
            pasid,
            group: index,
            address: first + page as u64 * REQUEST_PAGE_SIZE,
            access,
            last: page + 1 == pages,
        })
    }
}

/// A group without answer.
#[derive(Debug)]
struct Outstanding {
    channel: usize,
    pasid: Option<Pasid>,
    pages: u32,
}

/// The interface. It is stopped when it is not enabled and no answer is due any more.
#[derive(Debug, Default)]
pub struct Pri {
    enabled: bool,
    /// An answer was FAILURE: nothing goes on until the interface is disabled or reset.
    failed: bool,
    /// Response failure and unexpected index; the other bits follow from the rest.
    status: u16,
    allocation: u32,
    /// What the last group was called.
    last: u32,
    outstanding: BTreeMap<PrgIndex, Outstanding>,
    /// The fault path had no room, or has not yet told: see [`Pri::made`].
    full: bool,
    /// Channels that wait for room, the first of them longest. A channel that is trying again
    /// keeps its place until it has asked or needs to no more.
    queue: VecDeque<usize>,
}

impl Pri {
    /// The registers as the configuration space shows them.
    pub fn read(&self) -> [u8; REGISTERS] {
        let mut bytes = [0; REGISTERS];
        bytes[CONTROL] = self.enabled as u8 * CONTROL_ENABLE;
        bytes[STATUS..][..2].copy_from_slice(&self.status().to_le_bytes());
        bytes[CAPACITY..][..4].copy_from_slice(&PRI_CAPACITY.to_le_bytes());
        bytes[ALLOCATION..][..4].copy_from_slice(&self.allocation.to_le_bytes());
        bytes
    }

    /// Writes one byte of the registers; true when all outstanding requests were forgotten.
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

    /// Brings it to its state after reset. It goes on counting indexs.
    pub fn reset(&mut self) {
        *self = Self { last: self.last, ..Self::default() };
    }

    /// Whether a fault can become page requests, now or once there is room.
    pub fn is_on(&self) -> bool {
        self.enabled && !self.failed && self.limit() > 0
    }

    /// Whether an answer was FAILURE.
    pub fn has_failed(&self) -> bool {
        self.failed
    }

    /// Whether `channel` can ask now: there is room, and nobody waits longer for it.
    pub fn may_ask(&self, channel: usize) -> bool {
        self.is_on() && self.room() > 0 && self.queue.front().is_none_or(|&first| first == channel)
    }

    /// Begins a group for what `channel` misses, or for as much as there is room for. If there is
    /// none, the channel waits in the queue.
    pub fn begin(&mut self, channel: usize, pasid: Option<Pasid>, wish: Wish) -> Option<Group> {
        if !self.may_ask(channel) {
            self.wait(channel);
            return None;
        }
        self.leave(channel);
        let index = self.next_index();
        let pages = wish.pages.min(self.room());
        self.outstanding.insert(index, Outstanding { channel, pasid, pages });
        self.full = true;
        Some(Group { channel, index, pasid, wish: Wish { pages, ..wish } })
    }

    /// The fault path has taken the group that was begun last. Until this call there counts as
    /// being no room, so that a [`resume`](Self::resume) that comes too early is not lost.
    pub fn made(&mut self) {
        self.full = false;
    }

    /// The fault path had no room for the group that was begun last: its channel is the first to
    /// ask again.
    pub fn not_made(&mut self, group: &Group) {
        self.outstanding.remove(&group.index);
        self.queue.push_front(group.channel);
    }

    /// The fault path has room again.
    pub fn resume(&mut self) {
        self.full = false;
    }

    /// Takes a group's answer; returns the channel that asked, unless the answer ends everything.
    pub fn answer(
        &mut self,
        pasid: Option<Pasid>,
        index: PrgIndex,
        response: Response,
    ) -> Option<usize> {
        if self.outstanding.get(&index).is_none_or(|group| group.pasid != pasid) {
            // A stopped interface has forgotten groups whose answers are under way.
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

    /// The channel does not wait for room any more.
    pub fn leave(&mut self, channel: usize) {
        self.queue.retain(|&waiting| waiting != channel);
    }

    fn wait(&mut self, channel: usize) {
        if !self.queue.contains(&channel) {
            self.queue.push_back(channel);
        }
    }

    /// Reset takes effect if the interface is disabled or about to be, enable once it is stopped.
    /// After a failure no more answers are expected (10.4.2), so disabling it forgets, too.
    fn control(&mut self, value: u8) -> bool {
        let enable = value & CONTROL_ENABLE != 0;
        let reset = value & CONTROL_RESET != 0 && !enable;
        let forget = reset || self.failed && !enable;
        self.enabled &= enable;
        if forget {
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
        forget
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

    /// How many more page requests can be outstanding.
    fn room(&self) -> u32 {
        let used: u32 = self.outstanding.values().map(|group| group.pages).sum();
        if self.full { 0 } else { self.limit().saturating_sub(used) }
    }

    /// Counts, so that a late answer does not meet another group.
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

    const RESET: u8 = CONTROL_RESET;
    const ENABLE: u8 = CONTROL_ENABLE;
    const STOPPED: u16 = STATUS_STOPPED | STATUS_PASID_REQUIRED;
    const ACTIVE: u16 = STATUS_PASID_REQUIRED;

    fn allocate(pri: &mut Pri, pages: u32) {
        for (byte, value) in (ALLOCATION..).zip(pages.to_le_bytes()) {
            assert!(!pri.write(byte, value));
        }
    }

    /// An interface that is enabled for `pages` page requests.
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

    fn wish(pages: u32) -> Wish {
        Wish { access: Access::Read, first: 0x4000, pages }
    }

    fn begin(pri: &mut Pri, channel: usize, pages: u32) -> Option<Group> {
        pri.begin(channel, None, wish(pages))
    }

    /// Begins a group that the fault path takes.
    fn ask(pri: &mut Pri, channel: usize, pages: u32) -> Option<Group> {
        let group = begin(pri, channel, pages)?;
        pri.made();
        Some(group)
    }

    fn answer(pri: &mut Pri, group: Option<Group>, response: Response) -> Option<usize> {
        let group = group.expect("a group");
        pri.answer(group.pasid, group.index, response)
    }

    // Registers.

    #[test]
    fn after_reset_it_is_stopped_and_nothing_is_allocated() {
        let pri = Pri::default();
        assert_eq!(pri.read(), [0, 0, 0, 0x81, 64, 0, 0, 0, 0, 0, 0, 0]);
        assert!(!pri.is_on());
    }

    #[test]
    fn enable_ends_the_stop_and_disable_brings_it_back() {
        let mut pri = enabled(8);
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
        pri.write(CONTROL, 0);
        assert_eq!((control(&pri), status(&pri)), (0, STOPPED));
    }

    #[test]
    fn disabled_it_stops_once_everything_is_answered() {
        let mut pri = enabled(8);
        let groups = [ask(&mut pri, 0, 2), ask(&mut pri, 1, 3)];
        pri.write(CONTROL, 0);
        for group in groups {
            assert_eq!(status(&pri), ACTIVE);
            assert_eq!(begin(&mut pri, 5, 1), None);
            answer(&mut pri, group, Response::Success);
        }
        assert_eq!(status(&pri), STOPPED);
    }

    #[test]
    fn enable_needs_a_stopped_interface() {
        let mut pri = enabled(8);
        let group = ask(&mut pri, 0, 1);
        pri.write(CONTROL, 0);
        pri.write(CONTROL, ENABLE);
        assert_eq!((control(&pri), status(&pri)), (0, ACTIVE));
        answer(&mut pri, group, Response::Invalid);
        pri.write(CONTROL, ENABLE);
        assert_eq!(control(&pri), ENABLE);
    }

    #[test]
    fn reset_needs_a_disabled_interface_and_forgets() {
        let mut pri = enabled(8);
        let group = ask(&mut pri, 0, 1);
        assert!(!pri.write(CONTROL, ENABLE | RESET));
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
        pri.write(CONTROL, 0);
        assert!(pri.write(CONTROL, RESET));
        assert_eq!((control(&pri), status(&pri), allocation(&pri)), (0, STOPPED, 8));
        assert_eq!(answer(&mut pri, group, Response::Failure), None);
        assert_eq!(status(&pri), STOPPED, "the answer came too late to mean anything");
    }

    #[test]
    fn reset_can_come_with_disable_but_not_with_enable() {
        let mut pri = enabled(8);
        ask(&mut pri, 0, 8);
        assert!(pri.write(CONTROL, RESET));
        assert_eq!((control(&pri), status(&pri)), (0, STOPPED));
        assert!(!pri.write(CONTROL, RESET | ENABLE));
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
    }

    #[test]
    fn allocation_is_fixed_while_enabled() {
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
    fn read_only_bytes_stay() {
        let mut pri = Pri::default();
        let before = pri.read();
        for byte in [1, 2, 3, 4, 5, 6, 7, REGISTERS, usize::MAX] {
            assert!(!pri.write(byte, 0xff));
        }
        assert_eq!(pri.read(), before);
    }

    // Answers.

    #[test]
    fn an_answer_names_the_channel_that_asked() {
        let mut pri = enabled(8);
        let (a, b) = (ask(&mut pri, 3, 1), ask(&mut pri, 9, 1));
        assert_eq!(answer(&mut pri, b, Response::Success), Some(9));
        assert_eq!(answer(&mut pri, a, Response::Invalid), Some(3));
    }

    #[test]
    fn an_answer_that_nobody_asked_for_is_noted_until_cleared() {
        let mut pri = enabled(8);
        let group = pri.begin(0, Some(Pasid(5)), wish(1)).unwrap();
        let unexpected = [
            (Some(Pasid(5)), PrgIndex(group.index.0 + 1)),
            (Some(Pasid(6)), group.index),
            (None, group.index),
        ];
        for (pasid, index) in unexpected {
            assert_eq!(pri.answer(pasid, index, Response::Failure), None);
            assert_eq!(status(&pri), ACTIVE | STATUS_UNEXPECTED_INDEX);
            pri.write(STATUS, STATUS_UNEXPECTED_INDEX as u8);
            assert_eq!(status(&pri), ACTIVE);
        }
        assert_eq!(answer(&mut pri, Some(group), Response::Success), Some(0));
        assert_eq!(answer(&mut pri, Some(group), Response::Success), None, "a second answer");
    }

    /// An interface with two groups, one of which was answered with FAILURE.
    fn failed() -> Pri {
        let mut pri = enabled(8);
        let group = ask(&mut pri, 0, 1);
        ask(&mut pri, 1, 1);
        assert_eq!(answer(&mut pri, group, Response::Failure), None);
        assert_eq!(status(&pri), ACTIVE | STATUS_RESPONSE_FAILURE);
        pri
    }

    #[test]
    fn after_failure_nothing_is_asked_whatever_the_status_shows() {
        let mut pri = failed();
        pri.write(STATUS, STATUS_RESPONSE_FAILURE as u8);
        assert_eq!(status(&pri), ACTIVE);
        pri.write(CONTROL, ENABLE);
        assert!(pri.has_failed() && !pri.is_on());
        assert_eq!(begin(&mut pri, 2, 1), None);
    }

    #[test]
    fn disabled_after_failure_it_expects_no_more_answers() {
        let mut pri = failed();
        assert!(pri.write(CONTROL, 0));
        assert!(!pri.has_failed());
        assert_eq!(status(&pri), STOPPED | STATUS_RESPONSE_FAILURE);
        pri.write(CONTROL, ENABLE);
        assert_eq!(status(&pri), ACTIVE);
        assert_eq!(ask(&mut pri, 0, 8).unwrap().wish.pages, 8);
    }

    #[test]
    fn reset_clears_the_failure_and_its_status() {
        let mut pri = failed();
        assert!(pri.write(CONTROL, RESET));
        assert!(!pri.has_failed());
        assert_eq!(status(&pri), STOPPED);
    }

    #[test]
    fn failure_of_a_disabled_interface_keeps_it_from_stopping() {
        let mut pri = enabled(8);
        let group = ask(&mut pri, 0, 1);
        pri.write(CONTROL, 0);
        answer(&mut pri, group, Response::Failure);
        pri.write(CONTROL, ENABLE);
        assert_eq!((control(&pri), status(&pri)), (0, ACTIVE | STATUS_RESPONSE_FAILURE));
        assert!(pri.write(CONTROL, RESET));
        pri.write(CONTROL, ENABLE);
        assert_eq!((control(&pri), status(&pri)), (ENABLE, ACTIVE));
    }

    // Room.

    #[test]
    fn a_group_is_cut_to_the_room_that_there_is() {
        for (allocation, room) in [(10, 10), (PRI_CAPACITY, PRI_CAPACITY), (u32::MAX, 64)] {
            let mut pri = enabled(allocation);
            assert_eq!(ask(&mut pri, 0, room - 3).unwrap().wish.pages, room - 3);
            let second = ask(&mut pri, 1, 7);
            assert_eq!(second.unwrap().wish.pages, 3);
            assert_eq!(ask(&mut pri, 2, 1), None);
            answer(&mut pri, second, Response::Success);
            assert_eq!(ask(&mut pri, 2, 2).unwrap().wish.pages, 2);
        }
    }

    #[test]
    fn without_allocation_nothing_is_asked() {
        let pri = enabled(0);
        assert!(!pri.is_on() && !pri.may_ask(0));
    }

    #[test]
    fn those_that_wait_for_room_ask_in_their_order() {
        let mut pri = enabled(1);
        let mut group = ask(&mut pri, 0, 1);
        for channel in [7, 2, 5] {
            assert_eq!(begin(&mut pri, channel, 1), None);
        }
        for channel in [7, 2, 5] {
            answer(&mut pri, group, Response::Success);
            assert!((0..8).all(|other| pri.may_ask(other) == (other == channel)));
            assert_eq!(begin(&mut pri, 0, 1), None, "who asked last is behind the others");
            group = ask(&mut pri, channel, 1);
            assert!(group.is_some());
        }
    }

    #[test]
    fn who_leaves_the_queue_lets_the_next_one_ask() {
        let mut pri = enabled(1);
        let group = ask(&mut pri, 0, 1);
        begin(&mut pri, 1, 1);
        begin(&mut pri, 2, 1);
        answer(&mut pri, group, Response::Success);
        assert!(!pri.may_ask(2));
        pri.leave(1);
        assert!(pri.may_ask(2));
    }

    #[test]
    fn a_group_that_was_not_made_is_the_first_after_resume() {
        let mut pri = enabled(8);
        ask(&mut pri, 0, 1);
        let group = begin(&mut pri, 1, 7).unwrap();
        assert_eq!(begin(&mut pri, 2, 1), None);
        pri.not_made(&group);
        assert!((0..8).all(|channel| !pri.may_ask(channel)));
        pri.resume();
        assert!(pri.may_ask(1) && !pri.may_ask(2));
        assert_eq!(ask(&mut pri, 1, 7).unwrap().wish.pages, 7, "its room was given back");
    }

    #[test]
    fn a_resume_that_comes_before_the_refusal_is_known_counts() {
        let mut pri = enabled(8);
        let group = begin(&mut pri, 1, 1).unwrap();
        pri.resume();
        pri.not_made(&group);
        assert!(pri.may_ask(1));
    }

    #[test]
    fn enabled_anew_it_does_not_wait_for_an_old_resume() {
        let mut pri = enabled(8);
        let group = begin(&mut pri, 1, 1).unwrap();
        pri.not_made(&group);
        pri.write(CONTROL, 0);
        pri.write(CONTROL, ENABLE);
        assert!(pri.may_ask(1));
    }

    #[test]
    fn indexs_count_and_skip_those_outstanding() {
        let mut pri = enabled(8);
        let first = ask(&mut pri, 0, 1).unwrap();
        let second = ask(&mut pri, 1, 1);
        answer(&mut pri, second, Response::Success);
        assert_eq!(ask(&mut pri, 1, 1).unwrap().index.0, first.index.0 + 2);
        pri.last = first.index.0.wrapping_sub(1);
        let after = ask(&mut pri, 2, 1).unwrap();
        assert_eq!(after.index.0, first.index.0 + 1, "answered long ago");
        pri.last = u32::MAX;
        assert_eq!(ask(&mut pri, 3, 1).unwrap().index, PrgIndex(0));
    }

    #[test]
    fn a_reset_function_does_not_begin_with_old_indexs() {
        let mut pri = enabled(8);
        let before = ask(&mut pri, 0, 1).unwrap();
        pri.reset();
        assert_eq!(pri.read(), Pri::default().read());
        pri.write(ALLOCATION, 1);
        pri.write(CONTROL, ENABLE);
        assert_ne!(ask(&mut pri, 0, 1).unwrap().index, before.index);
    }

    // Groups.

    #[test]
    fn the_requests_of_a_group_differ_in_address_and_last() {
        let mut pri = enabled(8);
        let wanted = Wish { access: Access::Write, first: u64::MAX - 0x1fff, pages: 2 };
        let group = pri.begin(0, Some(Pasid(7)), wanted).unwrap();
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
