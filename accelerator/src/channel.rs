//! One channel: its registers and where it stands in its ring. Makes no access itself.

use super::exec::{Outcome, Stall, Task, Work};
use super::pri::Wish;
use super::regs::*;
use crate::dma::Pasid;
use crate::faults::PrgIndex;
use std::mem::take;

/// Why a channel stopped.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelError {
    /// `ERROR_*`.
    pub code: u32,
    /// The descriptor's status, for [`ERROR_DESCRIPTOR`].
    pub status: u8,
    /// The address that belongs to it, or 0.
    pub address: u64,
}

impl ChannelError {
    /// An error without status or address.
    pub fn plain(code: u32) -> Self {
        Self { code, ..Default::default() }
    }
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Disabled,
    Running,
    Error(ChannelError),
}

/// Where a running channel stands.
#[derive(Debug, Default)]
enum Step {
    /// Before the descriptor at `head`, or the worker has the task.
    #[default]
    Start,
    /// Within the descriptor: the task is next.
    Next(Task),
    /// Stopped by a fault, and waits until it can ask for pages.
    Stalled(Stall),
    /// Has asked for this many pages, and waits for the answer.
    Asked(PrgIndex, u32, Stall),
}

/// The channel as [`regs`](super::regs) describes it.
#[derive(Debug, Default)]
pub struct Channel {
    state: State,
    ring_base: u64,
    ring_size: u32,
    vector: u32,
    /// As written: [`CH_PASID_VALID`] and the PASID.
    pasid: u32,
    head: u32,
    tail: u32,
    group_pages: u32,
    /// [`CH_CONTROL_PAGE_REQUEST`], as taken over.
    page_requests: bool,
    step: Step,
    /// A group of the descriptor was refused: one page at a time.
    page_by_page: bool,
}

impl Channel {
    /// The 32 bits at offset `register` of the channel's page.
    pub fn read(&self, register: u32) -> u32 {
        match register {
            CH_CONTROL => match (self.state, self.page_requests) {
                (State::Disabled, _) => 0,
                (_, false) => CH_CONTROL_ENABLE,
                (_, true) => CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST,
            },
            CH_STATUS => self.status(),
            CH_RING_BASE => self.ring_base as u32,
            CH_RING_BASE_HIGH => (self.ring_base >> 32) as u32,
            CH_RING_SIZE => self.ring_size,
            CH_VECTOR => self.vector,
            CH_PASID => self.pasid,
            CH_ERROR => self.error().code | (self.error().status as u32) << 16,
            CH_ERROR_ADDRESS => self.error().address as u32,
            CH_ERROR_ADDRESS_HIGH => (self.error().address >> 32) as u32,
            CH_DOORBELL => self.tail,
            CH_HEAD => self.head,
            CH_GROUP_PAGES => self.group_pages,
            _ => 0,
        }
    }

    /// Writes the 32 bits at offset `register`; true when the channel raises its interrupt.
    pub fn write(&mut self, register: u32, value: u32) -> bool {
        match (register, self.state) {
            (CH_CONTROL, state) => return self.control(state, value),
            (CH_DOORBELL, State::Running) => return self.ring_doorbell(value),
            (CH_RING_BASE, State::Disabled) => self.ring_base = with_low(self.ring_base, value),
            (CH_RING_BASE_HIGH, State::Disabled) => {
                self.ring_base = with_high(self.ring_base, value)
            }
            (CH_RING_SIZE, State::Disabled) => self.ring_size = value,
            (CH_VECTOR, State::Disabled) => self.vector = value,
            (CH_PASID, State::Disabled) => self.pasid = value & (CH_PASID_VALID | PASID_MASK),
            (CH_GROUP_PAGES, State::Disabled) => self.group_pages = value,
            _ => {}
        }
        false
    }

    /// Whether ringing the doorbell with `tail` leaves the work under way alone.
    pub fn takes_doorbell(&self, tail: u32) -> bool {
        self.state != State::Running || tail < self.ring_size
    }

    /// The MSI-X vector that the channel signals.
    pub fn vector(&self) -> usize {
        self.vector as usize
    }

    /// The PASID of the channel's accesses.
    pub fn pasid(&self) -> Option<Pasid> {
        (self.pasid & CH_PASID_VALID != 0).then_some(Pasid(self.pasid & PASID_MASK))
    }

    /// Whether the driver wants page requests for the channel's faults.
    pub fn wants_page_requests(&self) -> bool {
        self.page_requests
    }

    /// Enabled, and without error.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Whether there is anything left to do.
    pub fn is_busy(&self) -> bool {
        self.is_running() && (self.head != self.tail || !matches!(self.step, Step::Start))
    }

    /// The pages that the channel misses, if it waits until it can ask for them.
    pub fn wish(&self) -> Option<Wish> {
        let most = if self.page_by_page { 1 } else { self.group_pages };
        match &self.step {
            Step::Stalled(stall) => Some(stall.wish(most)),
            _ => None,
        }
    }

    /// Hands out what is to be done next; [`finish`](Self::finish) brings it back. A channel that
    /// waits until it can ask for pages tries again with `may_ask`.
    pub fn next_task(&mut self, may_ask: bool) -> Option<Task> {
        if !self.is_busy() {
            return None;
        }
        match take(&mut self.step) {
            Step::Start => Some(Task::Do(Work::Fetch(self.head_address()))),
            Step::Next(task) => Some(task),
            Step::Stalled(stall) if may_ask => Some(stall.retry()),
            waiting => {
                self.step = waiting;
                None
            }
        }
    }

    /// Takes back a task with what became of it; true when the channel raises its interrupt.
    pub fn finish(&mut self, outcome: Outcome) -> bool {
        if !self.is_running() {
            return false;
        }
        match outcome {
            Outcome::More(work) => self.step = Step::Next(Task::Do(work)),
            Outcome::Stalled(stall) => self.step = Step::Stalled(stall),
            Outcome::Complete { interrupt } => {
                self.head = (self.head + 1) & (self.ring_size - 1);
                self.page_by_page = false;
                return interrupt;
            }
            Outcome::Failed(error) => return self.fail(error),
        }
        false
    }

    /// A stalled channel waits for the answer to `cookie`, a group of `pages`.
    pub fn ask(&mut self, cookie: PrgIndex, pages: u32) {
        self.step = match take(&mut self.step) {
            Step::Stalled(stall) => Step::Asked(cookie, pages, stall),
            step => step,
        };
    }

    /// What was asked for with `cookie` was not asked after all.
    pub fn take_back(&mut self, cookie: PrgIndex) {
        if let Some((_, stall)) = self.take_asked(cookie) {
            self.step = Step::Stalled(stall);
        }
    }

    /// The answer to `cookie`; ignored unless the channel waits for it. A group that is refused
    /// does not tell which of its pages cannot be had: only a single page is given up.
    pub fn answer(&mut self, cookie: PrgIndex, success: bool) {
        let Some((pages, stall)) = self.take_asked(cookie) else { return };
        self.page_by_page |= !success;
        self.step = Step::Next(if success || pages > 1 { stall.retry() } else { stall.give_up() });
    }

    /// No answer will come: tries again.
    pub fn forget(&mut self) {
        if let Step::Asked(cookie, ..) = self.step {
            self.answer(cookie, true);
        }
    }

    /// Stops the channel; true when it raises its interrupt.
    pub fn fail(&mut self, error: ChannelError) -> bool {
        self.state = State::Error(error);
        self.step = Step::Start;
        true
    }

    fn take_asked(&mut self, cookie: PrgIndex) -> Option<(u32, Stall)> {
        match take(&mut self.step) {
            Step::Asked(asked, pages, stall) if asked == cookie => Some((pages, stall)),
            step => {
                self.step = step;
                None
            }
        }
    }

    fn status(&self) -> u32 {
        let state = match self.state {
            State::Disabled => STATE_DISABLED,
            State::Running => STATE_RUNNING,
            State::Error(_) => STATE_ERROR,
        };
        if self.is_busy() { state | CH_STATUS_BUSY } else { state }
    }

    fn error(&self) -> ChannelError {
        match self.state {
            State::Error(error) => error,
            _ => ChannelError::default(),
        }
    }

    fn control(&mut self, state: State, value: u32) -> bool {
        match (state, value & CH_CONTROL_ENABLE != 0) {
            (State::Disabled, true) => self.enable(value & CH_CONTROL_PAGE_REQUEST != 0),
            (_, false) => self.disable(),
            (_, true) => false,
        }
    }

    fn enable(&mut self, page_requests: bool) -> bool {
        (self.head, self.tail) = (0, 0);
        (self.page_requests, self.page_by_page) = (page_requests, false);
        if !self.is_configured() {
            return self.fail(ChannelError::plain(ERROR_CONFIG));
        }
        self.state = State::Running;
        false
    }

    fn disable(&mut self) -> bool {
        self.state = State::Disabled;
        self.step = Step::Start;
        false
    }

    fn ring_doorbell(&mut self, tail: u32) -> bool {
        if tail >= self.ring_size {
            return self.fail(ChannelError::plain(ERROR_INDEX));
        }
        self.tail = tail;
        false
    }

    fn is_configured(&self) -> bool {
        let size = self.ring_size;
        let span = size as u64 * DESCRIPTOR_SIZE as u64;
        size.is_power_of_two()
            && (MIN_RING..=MAX_RING).contains(&size)
            && self.ring_base.is_multiple_of(DESCRIPTOR_SIZE as u64)
            && self.ring_base.checked_add(span - 1).is_some()
            && self.vector() < VECTORS
    }

    /// No overflow: the whole ring was checked when the channel was enabled.
    fn head_address(&self) -> u64 {
        self.ring_base + self.head as u64 * DESCRIPTOR_SIZE as u64
    }
}

const PASID_MASK: u32 = (1 << 20) - 1;
const CH_RING_BASE_HIGH: u32 = CH_RING_BASE + 4;
const CH_ERROR_ADDRESS_HIGH: u32 = CH_ERROR_ADDRESS + 4;

fn with_low(value: u64, low: u32) -> u64 {
    value >> 32 << 32 | low as u64
}

fn with_high(value: u64, high: u32) -> u64 {
    value & u32::MAX as u64 | (high as u64) << 32
}

#[cfg(test)]
mod tests {
    use super::*;

    fn configured() -> Channel {
        let mut channel = Channel::default();
        channel.write(CH_RING_BASE, 0x1000);
        channel.write(CH_RING_SIZE, 4);
        channel
    }

    fn running() -> Channel {
        let mut channel = configured();
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert_eq!(channel.read(CH_STATUS), STATE_RUNNING);
        channel
    }

    fn complete(channel: &mut Channel) {
        assert!(channel.next_task(false).is_some());
        channel.finish(Outcome::Complete { interrupt: false });
    }

    #[test]
    fn all_registers_read_0_after_reset() {
        let channel = Channel::default();
        for register in (0..CHANNEL_STRIDE).step_by(4) {
            assert_eq!(channel.read(register), 0, "{register:#x}");
        }
    }

    #[test]
    fn ring_base_takes_both_halves() {
        let mut channel = Channel::default();
        channel.write(CH_RING_BASE + 4, 0x1234);
        channel.write(CH_RING_BASE, 0x40);
        assert_eq!(channel.ring_base, 0x1234_0000_0040);
        assert_eq!(channel.read(CH_RING_BASE), 0x40);
        assert_eq!(channel.read(CH_RING_BASE + 4), 0x1234);
    }

    #[test]
    fn configuration_is_fixed_while_enabled() {
        let mut channel = running();
        for register in [CH_RING_BASE, CH_RING_BASE + 4, CH_RING_SIZE, CH_VECTOR, CH_GROUP_PAGES] {
            let before = channel.read(register);
            channel.write(register, 0x80);
            assert_eq!(channel.read(register), before);
        }
    }

    #[test]
    fn pasid_is_fixed_while_enabled() {
        let mut channel = configured();
        channel.write(CH_PASID, 7);
        assert_eq!(channel.pasid(), None, "not valid");
        channel.write(CH_PASID, u32::MAX);
        assert_eq!(channel.read(CH_PASID), CH_PASID_VALID | 0xf_ffff);
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        channel.write(CH_PASID, 0);
        assert_eq!(channel.pasid(), Some(Pasid(0xf_ffff)));
    }

    #[test]
    fn page_requests_are_taken_over_when_enabled() {
        let mut channel = configured();
        channel.write(CH_CONTROL, CH_CONTROL_PAGE_REQUEST);
        assert_eq!(channel.read(CH_CONTROL), 0);
        assert!(!channel.wants_page_requests());
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert_eq!(channel.read(CH_CONTROL), CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
        assert!(channel.wants_page_requests());
        channel.write(CH_CONTROL, 0);
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert!(!channel.wants_page_requests());
    }

    #[test]
    fn bad_configuration_is_an_error_with_an_interrupt() {
        let bad = [
            (CH_RING_SIZE, 0),
            (CH_RING_SIZE, 1),
            (CH_RING_SIZE, 3),
            (CH_RING_SIZE, MAX_RING * 2),
            (CH_RING_SIZE, u32::MAX),
            (CH_RING_BASE, 0x1020),
            (CH_VECTOR, VECTORS as u32),
        ];
        for (register, value) in bad {
            let mut channel = configured();
            channel.write(register, value);
            assert!(channel.write(CH_CONTROL, CH_CONTROL_ENABLE));
            assert_eq!(channel.read(CH_STATUS), STATE_ERROR, "{register:#x} {value:#x}");
            assert_eq!(channel.read(CH_ERROR), ERROR_CONFIG);
        }
    }

    #[test]
    fn ring_may_end_at_the_last_address_but_not_beyond() {
        for (base, state) in [(0xffff_ff00, STATE_RUNNING), (0xffff_ff40, STATE_ERROR)] {
            let mut channel = configured();
            channel.write(CH_RING_BASE, base);
            channel.write(CH_RING_BASE + 4, u32::MAX);
            channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
            assert_eq!(channel.read(CH_STATUS), state);
        }
    }

    #[test]
    fn tasks_follow_the_ring_and_wrap() {
        let mut channel = running();
        channel.write(CH_DOORBELL, 3);
        for entry in 0..3 {
            assert_eq!(channel.read(CH_HEAD), entry);
            assert_eq!(channel.head_address(), 0x1000 + 64 * entry as u64);
            complete(&mut channel);
        }
        assert!(channel.next_task(false).is_none());
        channel.write(CH_DOORBELL, 1);
        complete(&mut channel);
        assert_eq!(channel.read(CH_HEAD), 0);
        assert_eq!(channel.read(CH_STATUS), STATE_RUNNING | CH_STATUS_BUSY);
        complete(&mut channel);
        assert_eq!(channel.read(CH_STATUS), STATE_RUNNING);
    }

    #[test]
    fn index_beyond_the_ring_is_an_error() {
        let mut channel = running();
        assert!(!channel.takes_doorbell(4));
        assert!(channel.write(CH_DOORBELL, 4));
        assert_eq!(channel.read(CH_ERROR), ERROR_INDEX);
        assert!(channel.next_task(false).is_none());
    }

    #[test]
    fn doorbell_of_a_disabled_channel_is_ignored() {
        let mut channel = configured();
        assert!(channel.takes_doorbell(99));
        assert!(!channel.write(CH_DOORBELL, 99));
        assert_eq!(channel.read(CH_DOORBELL), 0);
    }

    #[test]
    fn error_lasts_until_disabled() {
        let mut channel = running();
        channel.write(CH_DOORBELL, 1);
        channel.next_task(false);
        let error = ChannelError { code: ERROR_DESCRIPTOR, status: 3, address: 0x1_0000_0002 };
        assert!(channel.finish(Outcome::Failed(error)));
        assert_eq!(channel.read(CH_ERROR), ERROR_DESCRIPTOR | 3 << 16);
        assert_eq!((channel.read(CH_ERROR_ADDRESS), channel.read(CH_ERROR_ADDRESS + 4)), (2, 1));
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert_eq!(channel.read(CH_STATUS), STATE_ERROR);
        assert_eq!(channel.read(CH_CONTROL), CH_CONTROL_ENABLE);
        channel.write(CH_CONTROL, 0);
        assert_eq!((channel.read(CH_STATUS), channel.read(CH_ERROR)), (STATE_DISABLED, 0));
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert_eq!(channel.read(CH_STATUS), STATE_RUNNING);
    }

    #[test]
    fn head_outlives_disable_until_the_next_enable() {
        let mut channel = running();
        channel.write(CH_DOORBELL, 2);
        complete(&mut channel);
        channel.write(CH_CONTROL, 0);
        assert_eq!((channel.read(CH_HEAD), channel.read(CH_STATUS)), (1, STATE_DISABLED));
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert_eq!((channel.read(CH_HEAD), channel.read(CH_DOORBELL)), (0, 0));
    }
}
