//! A channel: its registers and its position in the descriptor ring. Accesses no memory.

use super::regs::*;
use super::work::{ChannelError, MissingPages, Outcome, Stall, Task, Work};
use crate::dma::Pasid;
use crate::faults::PrgIndex;
use std::mem::take;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    Disabled,
    Running,
    Error(ChannelError),
}

/// Progress of a running channel.
#[derive(Debug, Default)]
enum Progress {
    /// The descriptor at `head` has not been started, or the worker thread has the task.
    #[default]
    Start,
    /// The descriptor is in progress; this is its next task.
    Ready(Task),
    /// The descriptor is stalled, and no page has been requested yet.
    Stalled(Stall),
    /// The descriptor is stalled until the response to a group.
    Requested { index: PrgIndex, pages: u32, stall: Stall },
}

/// A channel as described in [`regs`](super::regs).
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
    /// [`CH_CONTROL_PAGE_REQUEST`] when the channel was enabled.
    page_requests: bool,
    progress: Progress,
    /// The response to a group of the descriptor was INVALID: request single pages.
    single_pages: bool,
}

impl Channel {
    /// Reads the 32 bits at offset `register` of the channel's page.
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

    /// Writes the 32 bits at offset `register`. Returns whether the channel raises its interrupt.
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

    /// Returns whether a doorbell write of `tail` leaves the work in progress unchanged.
    pub fn accepts_doorbell(&self, tail: u32) -> bool {
        self.state != State::Running || tail < self.ring_size
    }

    /// Returns the MSI-X vector of the channel.
    pub fn vector(&self) -> usize {
        self.vector as usize
    }

    /// Returns the PASID of the channel's accesses.
    pub fn pasid(&self) -> Option<Pasid> {
        (self.pasid & CH_PASID_VALID != 0).then_some(Pasid(self.pasid & PASID_MASK))
    }

    /// Returns whether the driver has enabled page requests for the channel.
    pub fn page_requests_enabled(&self) -> bool {
        self.page_requests
    }

    /// Returns whether the channel is enabled and without error.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// Returns whether the channel has work.
    pub fn is_busy(&self) -> bool {
        self.is_running() && (self.head != self.tail || !matches!(self.progress, Progress::Start))
    }

    /// Returns the pages to request, if the channel is stalled and has not requested them.
    pub fn missing_pages(&self) -> Option<MissingPages> {
        let limit = if self.single_pages { 1 } else { self.group_pages };
        match &self.progress {
            Progress::Stalled(stall) => Some(stall.missing_pages(limit)),
            _ => None,
        }
    }

    /// Takes the next task; [`finish`](Self::finish) returns it. A stalled channel that has not
    /// requested its pages retries if `may_request`.
    pub fn next_task(&mut self, may_request: bool) -> Option<Task> {
        if !self.is_busy() {
            return None;
        }
        match take(&mut self.progress) {
            Progress::Start => Some(Task::Execute(Work::Fetch(self.head_address()))),
            Progress::Ready(task) => Some(task),
            Progress::Stalled(stall) if may_request => Some(stall.retry()),
            waiting => {
                self.progress = waiting;
                None
            }
        }
    }

    /// Applies the outcome of a task. Returns whether the channel raises its interrupt.
    pub fn finish(&mut self, outcome: Outcome) -> bool {
        if !self.is_running() {
            return false;
        }
        match outcome {
            Outcome::Continue(work) => self.progress = Progress::Ready(Task::Execute(work)),
            Outcome::Stalled(stall) => self.progress = Progress::Stalled(stall),
            Outcome::Complete { interrupt } => {
                self.head = (self.head + 1) & (self.ring_size - 1);
                self.single_pages = false;
                return interrupt;
            }
            Outcome::Failed(error) => return self.fail(error),
        }
        false
    }

    /// Records that the pages of a stalled channel are requested as group `index` of `pages`.
    pub fn set_requested(&mut self, index: PrgIndex, pages: u32) {
        self.progress = match take(&mut self.progress) {
            Progress::Stalled(stall) => Progress::Requested { index, pages, stall },
            progress => progress,
        };
    }

    /// Records that group `index` was not queued.
    pub fn clear_requested(&mut self, index: PrgIndex) {
        if let Some((_, stall)) = self.take_requested(index) {
            self.progress = Progress::Stalled(stall);
        }
    }

    /// Applies the response to group `index`; ignored unless the channel waits for it. The
    /// response INVALID does not identify the page that failed: only a single page is aborted.
    pub fn respond(&mut self, index: PrgIndex, success: bool) {
        let Some((pages, stall)) = self.take_requested(index) else { return };
        self.single_pages |= !success;
        let task = if success || pages > 1 { stall.retry() } else { Task::Abort(stall) };
        self.progress = Progress::Ready(task);
    }

    /// Retries the stalled descriptor: no response will arrive.
    pub fn withdraw(&mut self) {
        if let Progress::Requested { index, .. } = self.progress {
            self.respond(index, true);
        }
    }

    /// Stops the channel. Returns whether it raises its interrupt.
    pub fn fail(&mut self, error: ChannelError) -> bool {
        self.state = State::Error(error);
        self.progress = Progress::Start;
        true
    }

    fn take_requested(&mut self, group: PrgIndex) -> Option<(u32, Stall)> {
        match take(&mut self.progress) {
            Progress::Requested { index, pages, stall } if index == group => Some((pages, stall)),
            progress => {
                self.progress = progress;
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
        (self.page_requests, self.single_pages) = (page_requests, false);
        if !self.is_configured() {
            return self.fail(ChannelError::plain(ERROR_CONFIG));
        }
        self.state = State::Running;
        false
    }

    fn disable(&mut self) -> bool {
        self.state = State::Disabled;
        self.progress = Progress::Start;
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

    /// Does not overflow: `is_configured` checked the end of the ring.
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
    fn registers_read_zero_after_reset() {
        let channel = Channel::default();
        for register in (0..CHANNEL_STRIDE).step_by(4) {
            assert_eq!(channel.read(register), 0, "{register:#x}");
        }
    }

    #[test]
    fn ring_base_has_two_halves() {
        let mut channel = Channel::default();
        channel.write(CH_RING_BASE + 4, 0x1234);
        channel.write(CH_RING_BASE, 0x40);
        assert_eq!(channel.ring_base, 0x1234_0000_0040);
        assert_eq!(channel.read(CH_RING_BASE), 0x40);
        assert_eq!(channel.read(CH_RING_BASE + 4), 0x1234);
    }

    #[test]
    fn configuration_is_read_only_while_enabled() {
        let mut channel = running();
        for register in [CH_RING_BASE, CH_RING_BASE + 4, CH_RING_SIZE, CH_VECTOR, CH_GROUP_PAGES] {
            let before = channel.read(register);
            channel.write(register, 0x80);
            assert_eq!(channel.read(register), before);
        }
    }

    #[test]
    fn pasid_is_read_only_while_enabled() {
        let mut channel = configured();
        channel.write(CH_PASID, 7);
        assert_eq!(channel.pasid(), None, "valid bit is clear");
        channel.write(CH_PASID, u32::MAX);
        assert_eq!(channel.read(CH_PASID), CH_PASID_VALID | 0xf_ffff);
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        channel.write(CH_PASID, 0);
        assert_eq!(channel.pasid(), Some(Pasid(0xf_ffff)));
    }

    #[test]
    fn page_request_bit_is_latched_on_enable() {
        let mut channel = configured();
        channel.write(CH_CONTROL, CH_CONTROL_PAGE_REQUEST);
        assert_eq!(channel.read(CH_CONTROL), 0);
        assert!(!channel.page_requests_enabled());
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert_eq!(channel.read(CH_CONTROL), CH_CONTROL_ENABLE | CH_CONTROL_PAGE_REQUEST);
        assert!(channel.page_requests_enabled());
        channel.write(CH_CONTROL, 0);
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert!(!channel.page_requests_enabled());
    }

    #[test]
    fn invalid_configuration_raises_error_and_interrupt() {
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
    fn ring_must_end_within_address_space() {
        for (base, state) in [(0xffff_ff00, STATE_RUNNING), (0xffff_ff40, STATE_ERROR)] {
            let mut channel = configured();
            channel.write(CH_RING_BASE, base);
            channel.write(CH_RING_BASE + 4, u32::MAX);
            channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
            assert_eq!(channel.read(CH_STATUS), state);
        }
    }

    #[test]
    fn tasks_follow_ring_order_and_wrap() {
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
    fn doorbell_beyond_ring_stops_channel() {
        let mut channel = running();
        assert!(!channel.accepts_doorbell(4));
        assert!(channel.write(CH_DOORBELL, 4));
        assert_eq!(channel.read(CH_ERROR), ERROR_INDEX);
        assert!(channel.next_task(false).is_none());
    }

    #[test]
    fn doorbell_of_disabled_channel_is_ignored() {
        let mut channel = configured();
        assert!(channel.accepts_doorbell(99));
        assert!(!channel.write(CH_DOORBELL, 99));
        assert_eq!(channel.read(CH_DOORBELL), 0);
    }

    #[test]
    fn error_persists_until_disable() {
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
    fn head_is_kept_until_next_enable() {
        let mut channel = running();
        channel.write(CH_DOORBELL, 2);
        complete(&mut channel);
        channel.write(CH_CONTROL, 0);
        assert_eq!((channel.read(CH_HEAD), channel.read(CH_STATUS)), (1, STATE_DISABLED));
        channel.write(CH_CONTROL, CH_CONTROL_ENABLE);
        assert_eq!((channel.read(CH_HEAD), channel.read(CH_DOORBELL)), (0, 0));
    }
}
