//! The registers of the whole function, and whose turn it is. Makes no access itself.

use super::channel::{Channel, ChannelError};
use super::config::Allowed;
use super::exec::{Outcome, Requester, Task};
use super::msix::Vectors;
use super::pri::{self, Group, Pri};
use super::regs::*;
use crate::dma::Pasid;
use crate::faults::{PrgIndex, QueueFull, Response};
use std::array::from_fn;

/// A task of one channel; [`Function::finish`] takes it back.
#[derive(Debug)]
pub struct Turn {
    /// Number of the channel.
    pub channel: usize,
    /// Who makes the accesses.
    pub requester: Requester,
    /// What to do.
    pub task: Task,
}

/// BAR 0 and the interrupts it raises.
#[derive(Debug, Default)]
pub struct Function {
    channels: [Channel; CHANNELS],
    int_status: u32,
    /// What the configuration space allows; a reset of the registers leaves it alone.
    pub allowed: Allowed,
    /// The page request interface; a reset of the registers leaves it alone.
    pri: Pri,
    /// The channel that is asked first for the next turn.
    next: usize,
    /// The MSI-X vectors; a reset leaves them alone.
    pub vectors: Vectors,
}

/// The part of the function that an offset of BAR 0 names.
enum Place {
    Function(u32),
    Channel(usize, u32),
    Nowhere,
}

fn place(offset: u32) -> Place {
    let (page, register) = (offset / CHANNEL_STRIDE, offset % CHANNEL_STRIDE);
    match page {
        0 => Place::Function(register),
        1.. if page as usize <= CHANNELS => Place::Channel(page as usize - 1, register),
        _ => Place::Nowhere,
    }
}

impl Function {
    /// The 32 bits at `offset` of BAR 0, a multiple of 4.
    pub fn read(&self, offset: u32) -> u32 {
        match place(offset) {
            Place::Function(register) => self.read_own(register),
            Place::Channel(n, register) => self.channels[n].read(register),
            Place::Nowhere => 0,
        }
    }

    /// Writes the 32 bits at `offset` of BAR 0, a multiple of 4.
    pub fn write(&mut self, offset: u32, value: u32) {
        match place(offset) {
            Place::Function(INT_STATUS) => self.int_status &= !value,
            Place::Function(CONTROL) if value & CONTROL_RESET != 0 => self.reset(),
            Place::Channel(n, register) => {
                let interrupt = self.channels[n].write(register, value);
                self.raise_if(interrupt, n);
                if !self.channels[n].is_running() {
                    self.pri.leave(n);
                }
            }
            _ => {}
        }
    }

    /// Whether the write leaves the turn under way alone, so that it need not wait for its end.
    pub fn is_light(&self, offset: u32, value: u32) -> bool {
        match place(offset) {
            Place::Function(register) => register != CONTROL,
            Place::Channel(n, CH_DOORBELL) => self.channels[n].takes_doorbell(value),
            Place::Channel(..) => false,
            Place::Nowhere => true,
        }
    }

    /// Brings every register to its state after reset.
    pub fn reset(&mut self) {
        self.channels = from_fn(|_| Channel::default());
        self.int_status = 0;
        (0..CHANNELS).for_each(|n| self.pri.leave(n));
    }

    /// Resets the whole function, but for its vectors. All page requests are forgotten.
    pub fn reset_all(&mut self) {
        self.allowed = Allowed::default();
        self.pri.reset();
        self.reset();
    }

    /// The registers of the page request interface.
    pub fn read_pri(&self) -> [u8; pri::REGISTERS] {
        self.pri.read()
    }

    /// Writes a byte of the registers of the page request interface; true when all page requests
    /// are forgotten.
    pub fn write_pri(&mut self, byte: usize, value: u8) -> bool {
        self.stop_if_failed();
        let forgotten = self.pri.write(byte, value);
        if forgotten {
            self.channels.iter_mut().for_each(Channel::forget);
        }
        forgotten
    }

    /// Hands out the next turn: each channel that has work gets one before another gets two.
    pub fn next_turn(&mut self) -> Option<Turn> {
        self.stop_if_failed();
        if !self.allowed.bus_master {
            return None;
        }
        (0..CHANNELS).find_map(|step| self.turn_of((self.next + step) % CHANNELS))
    }

    fn turn_of(&mut self, channel: usize) -> Option<Turn> {
        let pasid = self.channels[channel].pasid();
        if pasid.is_some() && !self.allowed.pasids && self.channels[channel].is_busy() {
            self.fail(channel, ERROR_CONFIG);
            return None;
        }
        let asks = self.makes_page_requests();
        let task = self.channels[channel].next_task(!asks || self.pri.may_ask(channel))?;
        self.next = (channel + 1) % CHANNELS;
        let page_requests = asks && self.channels[channel].wants_page_requests();
        Some(Turn { channel, requester: Requester { pasid, page_requests }, task })
    }

    /// Takes back a turn of `channel` with what became of it: `None` if that is not known. Returns
    /// the page requests to make now; [`asked`](Self::asked) tells how that went.
    pub fn finish(&mut self, channel: usize, outcome: Option<Outcome>) -> Option<Group> {
        let internal = || Outcome::Failed(ChannelError::plain(ERROR_INTERNAL));
        let interrupt = self.channels[channel].finish(outcome.unwrap_or_else(internal));
        self.raise_if(interrupt, channel);
        self.begin(channel)
    }

    /// Whether `group` was asked for: `None` if that is not known.
    pub fn asked(&mut self, group: &Group, result: Option<Result<(), QueueFull>>) {
        match result {
            Some(Ok(())) => self.pri.made(),
            Some(Err(QueueFull)) => {
                self.pri.not_made(group);
                self.channels[group.channel].take_back(group.index);
            }
            None => {
                self.pri.made();
                self.fail(group.channel, ERROR_INTERNAL);
            }
        }
    }

    /// The answer to a group of page requests.
    pub fn answer(&mut self, pasid: Option<Pasid>, index: PrgIndex, response: Response) {
        if let Some(channel) = self.pri.answer(pasid, index, response) {
            self.channels[channel].answer(index, response == Response::Success);
        }
    }

    /// There is room for page requests where there was none.
    pub fn resume(&mut self) {
        self.pri.resume();
    }

    fn makes_page_requests(&self) -> bool {
        self.allowed.ats && self.pri.is_on()
    }

    /// Begins the page requests that a stalled channel needs, if there is room.
    fn begin(&mut self, n: usize) -> Option<Group> {
        let channel = &mut self.channels[n];
        let Some(wish) = channel.wish() else {
            self.pri.leave(n);
            return None;
        };
        let group = self.pri.begin(n, channel.pasid(), wish)?;
        channel.ask(group.index, group.wish.pages);
        Some(group)
    }

    /// After the answer FAILURE nothing works. Not called while a turn is under way: a channel
    /// that has stopped makes no access.
    fn stop_if_failed(&mut self) {
        for n in 0..CHANNELS {
            if self.pri.has_failed() && self.channels[n].is_running() {
                self.fail(n, ERROR_PAGE_RESPONSE);
            }
        }
    }

    fn fail(&mut self, channel: usize, code: u32) {
        let interrupt = self.channels[channel].fail(ChannelError::plain(code));
        self.raise_if(interrupt, channel);
        self.pri.leave(channel);
    }

    fn raise_if(&mut self, interrupt: bool, channel: usize) {
        if interrupt {
            self.int_status |= 1 << channel;
            self.vectors.signal(self.channels[channel].vector());
        }
    }

    fn read_own(&self, register: u32) -> u32 {
        match register {
            ID => ID_VALUE,
            VERSION => VERSION_VALUE,
            FEATURES => FEATURE_PASID | FEATURE_PAGE_REQUEST,
            CHANNEL_COUNT => CHANNELS as u32,
            VECTOR_COUNT => VECTORS as u32,
            RING_LIMIT => MAX_RING,
            LENGTH_LIMIT => MAX_LENGTH as u32,
            LENGTH_LIMIT_HIGH => (MAX_LENGTH >> 32) as u32,
            INT_STATUS => self.int_status,
            _ => 0,
        }
    }
}

const LENGTH_LIMIT_HIGH: u32 = LENGTH_LIMIT + 4;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dma::Access;
    use crate::pri::Wish;

    fn function() -> Function {
        let mut function = Function::default();
        function.allowed.bus_master = true;
        function
    }

    fn enable(function: &mut Function, channel: u32, entries: u32) {
        function.write(channel_register(channel, CH_RING_SIZE), 16);
        function.write(channel_register(channel, CH_CONTROL), CH_CONTROL_ENABLE);
        function.write(channel_register(channel, CH_DOORBELL), entries);
    }

    fn complete_next(function: &mut Function) -> Option<usize> {
        let turn = function.next_turn()?;
        function.finish(turn.channel, Some(Outcome::Complete { interrupt: true }));
        Some(turn.channel)
    }

    #[test]
    fn identity_and_limits_are_readable() {
        let function = Function::default();
        assert_eq!(function.read(ID), 0x414d_4456);
        assert_eq!(function.read(VERSION), 1);
        assert_eq!(function.read(FEATURES), FEATURE_PASID | FEATURE_PAGE_REQUEST);
        assert_eq!(function.read(CHANNEL_COUNT), 32);
        assert_eq!(function.read(RING_LIMIT), 4096);
        assert_eq!((function.read(LENGTH_LIMIT), function.read(LENGTH_LIMIT + 4)), (0, 1));
    }

    #[test]
    fn offsets_without_register_read_0_and_ignore_writes() {
        let mut function = function();
        for offset in [0x28, 0xffc, 0x1ffc, 0x21000, BAR0_SIZE - 4] {
            function.write(offset, u32::MAX);
            assert_eq!(function.read(offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn channels_with_work_take_turns() {
        let mut function = function();
        enable(&mut function, 1, 3);
        enable(&mut function, 5, 2);
        enable(&mut function, 7, 1);
        let order: Vec<_> = std::iter::from_fn(|| complete_next(&mut function)).collect();
        assert_eq!(order, [1, 5, 7, 1, 5, 1]);
    }

    #[test]
    fn interrupts_set_status_bits_until_cleared() {
        let mut function = function();
        enable(&mut function, 2, 1);
        enable(&mut function, 3, 1);
        while complete_next(&mut function).is_some() {}
        assert_eq!(function.read(INT_STATUS), 0b1100);
        function.write(INT_STATUS, 0b0100);
        assert_eq!(function.read(INT_STATUS), 0b1000);
    }

    #[test]
    fn unknown_outcome_stops_the_channel() {
        let mut function = function();
        enable(&mut function, 0, 1);
        let turn = function.next_turn().unwrap();
        function.finish(turn.channel, None);
        assert_eq!(function.read(channel_register(0, CH_ERROR)), ERROR_INTERNAL);
    }

    #[test]
    fn reset_bit_resets_every_channel() {
        let mut function = function();
        enable(&mut function, 0, 1);
        enable(&mut function, 7, 99);
        assert_eq!(function.read(INT_STATUS), 1 << 7);
        function.write(CONTROL, CONTROL_RESET);
        assert_eq!(function.read(INT_STATUS), 0);
        assert_eq!(function.read(CONTROL), 0);
        for channel in 0..CHANNELS as u32 {
            assert_eq!(function.read(channel_register(channel, CH_STATUS)), STATE_DISABLED);
            assert_eq!(function.read(channel_register(channel, CH_RING_SIZE)), 0);
        }
        assert!(function.next_turn().is_none());
    }

    #[test]
    fn only_doorbell_and_interrupt_status_need_not_wait() {
        let mut function = function();
        enable(&mut function, 0, 1);
        assert!(function.is_light(INT_STATUS, 1));
        assert!(function.is_light(channel_register(0, CH_DOORBELL), 2));
        assert!(!function.is_light(channel_register(0, CH_DOORBELL), 16));
        assert!(!function.is_light(channel_register(0, CH_CONTROL), 0));
        assert!(!function.is_light(CONTROL, CONTROL_RESET));
    }

    #[test]
    fn a_channel_with_a_pasid_works_only_while_pasids_are_enabled() {
        let mut function = function();
        function.write(channel_register(0, CH_PASID), CH_PASID_VALID | 7);
        enable(&mut function, 0, 2);
        enable(&mut function, 1, 1);
        function.allowed.pasids = true;
        let turn = function.next_turn().unwrap();
        assert_eq!((turn.channel, turn.requester.pasid), (0, Some(Pasid(7))));
        function.finish(0, Some(Outcome::Complete { interrupt: false }));
        function.allowed.pasids = false;
        assert_eq!(complete_next(&mut function), Some(1));
        assert!(function.next_turn().is_none());
        assert_eq!(function.read(channel_register(0, CH_ERROR)), ERROR_CONFIG);
    }

    #[test]
    fn failure_is_not_forgotten_by_a_reset_of_the_interface_that_comes_first() {
        let mut function = function();
        function.write_pri(8, 1);
        function.write_pri(0, 1);
        enable(&mut function, 4, 1);
        let wish = Wish { access: Access::Read, first: 0, pages: 1 };
        let group = function.pri.begin(4, None, wish).unwrap();
        function.answer(None, group.index, Response::Failure);
        assert!(function.write_pri(0, 2));
        assert_eq!(function.read(channel_register(4, CH_ERROR)), ERROR_PAGE_RESPONSE);
    }
}
