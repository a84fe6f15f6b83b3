//! The registers of the whole function, and whose turn it is. Makes no access itself.

use super::channel::{Channel, ChannelError};
use super::exec::{Outcome, Task};
use super::msix::Vectors;
use super::regs::*;
use crate::address::Pasid;
use std::array::from_fn;

/// A task of one channel; [`Function::finish`] takes it back.
#[derive(Debug)]
pub struct Turn {
    /// Number of the channel.
    pub channel: usize,
    /// The PASID of its accesses.
    pub pasid: Option<Pasid>,
    /// What to do.
    pub task: Task,
}

/// BAR 0 and the interrupts it raises.
#[derive(Debug, Default)]
pub struct Function {
    channels: [Channel; CHANNELS],
    int_status: u32,
    /// PASIDs are enabled in the configuration space.
    pasids_allowed: bool,
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
    }

    /// Whether channels may use PASIDs.
    pub fn pasids_allowed(&self) -> bool {
        self.pasids_allowed
    }

    /// Lets channels use PASIDs, or not; a reset of the registers leaves that alone.
    pub fn allow_pasids(&mut self, allowed: bool) {
        self.pasids_allowed = allowed;
    }

    /// Hands out the next turn: each channel that has work gets one before another gets two.
    pub fn next_turn(&mut self) -> Option<Turn> {
        (0..CHANNELS).find_map(|step| self.turn_of((self.next + step) % CHANNELS))
    }

    fn turn_of(&mut self, channel: usize) -> Option<Turn> {
        let pasid = self.channels[channel].pasid();
        let task = self.channels[channel].next_task()?;
        if pasid.is_some() && !self.pasids_allowed {
            self.finish(channel, Some(Outcome::Failed(ChannelError::plain(ERROR_CONFIG))));
            return None;
        }
        self.next = (channel + 1) % CHANNELS;
        Some(Turn { channel, pasid, task })
    }

    /// Takes back a turn of `channel` with what became of it: `None` if that is not known.
    pub fn finish(&mut self, channel: usize, outcome: Option<Outcome>) {
        let internal = || Outcome::Failed(ChannelError::plain(ERROR_INTERNAL));
        let interrupt = self.channels[channel].finish(outcome.unwrap_or_else(internal));
        self.raise_if(interrupt, channel);
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
            FEATURES => FEATURE_PASID,
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
        assert_eq!(function.read(FEATURES), FEATURE_PASID);
        assert_eq!(function.read(CHANNEL_COUNT), 8);
        assert_eq!(function.read(RING_LIMIT), 4096);
        assert_eq!((function.read(LENGTH_LIMIT), function.read(LENGTH_LIMIT + 4)), (0, 1));
    }

    #[test]
    fn offsets_without_register_read_0_and_ignore_writes() {
        let mut function = Function::default();
        for offset in [0x28, 0xffc, 0x1ffc, 0x9000, BAR0_SIZE - 4] {
            function.write(offset, u32::MAX);
            assert_eq!(function.read(offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn channels_with_work_take_turns() {
        let mut function = Function::default();
        enable(&mut function, 1, 3);
        enable(&mut function, 5, 2);
        enable(&mut function, 7, 1);
        let order: Vec<_> = std::iter::from_fn(|| complete_next(&mut function)).collect();
        assert_eq!(order, [1, 5, 7, 1, 5, 1]);
    }

    #[test]
    fn interrupts_set_status_bits_until_cleared() {
        let mut function = Function::default();
        enable(&mut function, 2, 1);
        enable(&mut function, 3, 1);
        while complete_next(&mut function).is_some() {}
        assert_eq!(function.read(INT_STATUS), 0b1100);
        function.write(INT_STATUS, 0b0100);
        assert_eq!(function.read(INT_STATUS), 0b1000);
    }

    #[test]
    fn unknown_outcome_stops_the_channel() {
        let mut function = Function::default();
        enable(&mut function, 0, 1);
        let turn = function.next_turn().unwrap();
        function.finish(turn.channel, None);
        assert_eq!(function.read(channel_register(0, CH_ERROR)), ERROR_INTERNAL);
    }

    #[test]
    fn reset_bit_resets_every_channel() {
        let mut function = Function::default();
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
        let mut function = Function::default();
        enable(&mut function, 0, 1);
        assert!(function.is_light(INT_STATUS, 1));
        assert!(function.is_light(channel_register(0, CH_DOORBELL), 2));
        assert!(!function.is_light(channel_register(0, CH_DOORBELL), 16));
        assert!(!function.is_light(channel_register(0, CH_CONTROL), 0));
        assert!(!function.is_light(CONTROL, CONTROL_RESET));
    }

    #[test]
    fn a_channel_with_a_pasid_works_only_while_pasids_are_enabled() {
        let mut function = Function::default();
        function.write(channel_register(0, CH_PASID), CH_PASID_VALID | 7);
        enable(&mut function, 0, 2);
        enable(&mut function, 1, 1);
        function.allow_pasids(true);
        let turn = function.next_turn().unwrap();
        assert_eq!((turn.channel, turn.pasid), (0, Some(Pasid(7))));
        function.finish(0, Some(Outcome::Complete { interrupt: false }));
        function.allow_pasids(false);
        assert_eq!(complete_next(&mut function), Some(1));
        assert!(function.next_turn().is_none());
        assert_eq!(function.read(channel_register(0, CH_ERROR)), ERROR_CONFIG);
    }
}
