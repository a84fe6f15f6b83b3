//! The registers of the function, and the selection of the next slice. Accesses no memory.

use super::channel::Channel;
use super::config::Enables;
use super::msix::Vectors;
use super::pri::{self, Group, Pri};
use super::regs::*;
use super::work::{ChannelError, Outcome, Requester, Task};
use crate::dma::Pasid;
use crate::faults::{PrgIndex, QueueFull, Response};
use std::array::from_fn;

/// A task of one channel; [`Function::finish`] receives its outcome.
#[derive(Debug)]
pub struct Slice {
    /// Number of the channel.
    pub channel: usize,
    /// Attributes of the accesses.
    pub requester: Requester,
    /// The task.
    pub task: Task,
}

/// BAR 0 and the interrupts of the function.
#[derive(Debug, Default)]
pub struct Function {
    channels: [Channel; CHANNELS],
    int_status: u32,
    /// Enable bits of the configuration space. Not affected by [`CONTROL_RESET`].
    pub enables: Enables,
    /// The page request interface. Not affected by [`CONTROL_RESET`].
    pri: Pri,
    /// First candidate for the next slice.
    next: usize,
    /// The MSI-X vectors. Not affected by any reset.
    pub vectors: Vectors,
}

/// The register at an offset of BAR 0.
enum Register {
    Function(u32),
    Channel(usize, u32),
    None,
}

impl Register {
    fn at(offset: u32) -> Self {
        let (page, register) = (offset / CHANNEL_STRIDE, offset % CHANNEL_STRIDE);
        match page {
            0 => Self::Function(register),
            1.. if page as usize <= CHANNELS => Self::Channel(page as usize - 1, register),
            _ => Self::None,
        }
    }
}

impl Function {
    /// Reads the 32 bits at `offset` of BAR 0, a multiple of 4.
    pub fn read(&self, offset: u32) -> u32 {
        match Register::at(offset) {
            Register::Function(register) => self.read_function_register(register),
            Register::Channel(n, register) => self.channels[n].read(register),
            Register::None => 0,
        }
    }

    /// Writes the 32 bits at `offset` of BAR 0, a multiple of 4.
    pub fn write(&mut self, offset: u32, value: u32) {
        match Register::at(offset) {
            Register::Function(INT_STATUS) => self.int_status &= !value,
            Register::Function(CONTROL) if value & CONTROL_RESET != 0 => self.reset_registers(),
            Register::Channel(n, register) => {
                let interrupt = self.channels[n].write(register, value);
                self.raise_if(interrupt, n);
                if !self.channels[n].is_running() {
                    self.pri.leave_queue(n);
                }
            }
            _ => {}
        }
    }

    /// Returns whether the write must wait for the end of the slice in progress.
    pub fn needs_pause(&self, offset: u32, value: u32) -> bool {
        match Register::at(offset) {
            Register::Function(register) => register == CONTROL,
            Register::Channel(n, CH_DOORBELL) => !self.channels[n].accepts_doorbell(value),
            Register::Channel(..) => true,
            Register::None => false,
        }
    }

    /// Sets all registers of BAR 0 to their values after reset.
    pub fn reset_registers(&mut self) {
        self.channels = from_fn(|_| Channel::default());
        self.int_status = 0;
        (0..CHANNELS).for_each(|n| self.pri.leave_queue(n));
    }

    /// Resets the function except for its vectors. Withdraws all page requests.
    pub fn reset(&mut self) {
        self.enables = Enables::default();
        self.pri.reset();
        self.reset_registers();
    }

    /// Returns the registers of the page request interface.
    pub fn read_pri(&self) -> [u8; pri::REGISTERS] {
        self.pri.read()
    }

    /// Writes a byte of the registers of the page request interface. Returns whether all page
    /// requests are withdrawn.
    pub fn write_pri(&mut self, byte: usize, value: u8) -> bool {
        self.stop_if_failed();
        let withdrawn = self.pri.write(byte, value);
        if withdrawn {
            self.channels.iter_mut().for_each(Channel::withdraw);
        }
        withdrawn
    }

    /// Selects the next slice, round robin over the channels that have work.
    pub fn next_slice(&mut self) -> Option<Slice> {
        self.stop_if_failed();
        if !self.enables.bus_master {
            return None;
        }
        (0..CHANNELS).find_map(|step| self.slice_of((self.next + step) % CHANNELS))
    }

    fn slice_of(&mut self, channel: usize) -> Option<Slice> {
        let pasid = self.channels[channel].pasid();
        if pasid.is_some() && !self.enables.pasid && self.channels[channel].is_busy() {
            self.fail(channel, ERROR_CONFIG);
            return None;
        }
        let enabled = self.enables.ats && self.pri.is_enabled();
        let may_request = !enabled || self.pri.may_request(channel);
        let task = self.channels[channel].next_task(may_request)?;
        self.next = (channel + 1) % CHANNELS;
        let page_requests = enabled && self.channels[channel].page_requests_enabled();
        Some(Slice { channel, requester: Requester { pasid, page_requests }, task })
    }

    /// Applies the outcome of a slice of `channel`; `None` after an internal error. Returns the
    /// page request group to submit; [`submitted`](Self::submitted) receives the result.
    pub fn finish(&mut self, channel: usize, outcome: Option<Outcome>) -> Option<Group> {
        let outcome = outcome.unwrap_or(Outcome::Failed(ChannelError::plain(ERROR_INTERNAL)));
        let interrupt = self.channels[channel].finish(outcome);
        self.raise_if(interrupt, channel);
        self.begin_group(channel)
    }

    /// Applies the result of submitting `group`; `None` after an internal error.
    pub fn submitted(&mut self, group: &Group, result: Option<Result<(), QueueFull>>) {
        match result {
            Some(Ok(())) => self.pri.submitted(),
            Some(Err(QueueFull)) => {
                self.pri.rejected(group);
                self.channels[group.channel].clear_requested(group.index);
            }
            None => {
                self.pri.submitted();
                self.fail(group.channel, ERROR_INTERNAL);
            }
        }
    }

    /// Completes a page request group.
    pub fn respond(&mut self, pasid: Option<Pasid>, index: PrgIndex, response: Response) {
        if let Some(channel) = self.pri.respond(pasid, index, response) {
            self.channels[channel].respond(index, response == Response::Success);
        }
    }

    /// The fault handler can queue groups again.
    pub fn capacity_available(&mut self) {
        self.pri.capacity_available();
    }

    /// Begins a group for the pages that a stalled channel requires, if the allocation permits.
    fn begin_group(&mut self, n: usize) -> Option<Group> {
        let channel = &mut self.channels[n];
        let Some(missing) = channel.missing_pages() else {
            self.pri.leave_queue(n);
            return None;
        };
        let group = self.pri.begin(n, channel.pasid(), missing)?;
        channel.set_requested(group.index, group.missing.pages);
        Some(group)
    }

    /// After the response FAILURE, no channel works. Not called while a slice is in progress: a
    /// channel that has stopped must not access memory.
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
        self.pri.leave_queue(channel);
    }

    fn raise_if(&mut self, interrupt: bool, channel: usize) {
        if interrupt {
            self.int_status |= 1 << channel;
            self.vectors.signal(self.channels[channel].vector());
        }
    }

    fn read_function_register(&self, register: u32) -> u32 {
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
    use crate::work::MissingPages;

    fn function() -> Function {
        let mut function = Function::default();
        function.enables.bus_master = true;
        function
    }

    fn enable(function: &mut Function, channel: u32, entries: u32) {
        function.write(channel_register(channel, CH_RING_SIZE), 16);
        function.write(channel_register(channel, CH_CONTROL), CH_CONTROL_ENABLE);
        function.write(channel_register(channel, CH_DOORBELL), entries);
    }

    fn complete_next(function: &mut Function) -> Option<usize> {
        let slice = function.next_slice()?;
        function.finish(slice.channel, Some(Outcome::Complete { interrupt: true }));
        Some(slice.channel)
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
    fn undefined_offsets_read_zero_and_ignore_writes() {
        let mut function = function();
        for offset in [0x28, 0xffc, 0x1ffc, 0x21000, BAR0_SIZE - 4] {
            function.write(offset, u32::MAX);
            assert_eq!(function.read(offset), 0, "{offset:#x}");
        }
    }

    #[test]
    fn slices_are_round_robin_over_busy_channels() {
        let mut function = function();
        enable(&mut function, 1, 3);
        enable(&mut function, 5, 2);
        enable(&mut function, 7, 1);
        let order: Vec<_> = std::iter::from_fn(|| complete_next(&mut function)).collect();
        assert_eq!(order, [1, 5, 7, 1, 5, 1]);
    }

    #[test]
    fn interrupt_status_bits_persist_until_cleared() {
        let mut function = function();
        enable(&mut function, 2, 1);
        enable(&mut function, 3, 1);
        while complete_next(&mut function).is_some() {}
        assert_eq!(function.read(INT_STATUS), 0b1100);
        function.write(INT_STATUS, 0b0100);
        assert_eq!(function.read(INT_STATUS), 0b1000);
    }

    #[test]
    fn internal_error_stops_channel() {
        let mut function = function();
        enable(&mut function, 0, 1);
        let slice = function.next_slice().unwrap();
        function.finish(slice.channel, None);
        assert_eq!(function.read(channel_register(0, CH_ERROR)), ERROR_INTERNAL);
    }

    #[test]
    fn control_reset_resets_all_channels() {
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
        assert!(function.next_slice().is_none());
    }

    #[test]
    fn only_doorbell_and_interrupt_status_need_no_pause() {
        let mut function = function();
        enable(&mut function, 0, 1);
        assert!(!function.needs_pause(INT_STATUS, 1));
        assert!(!function.needs_pause(channel_register(0, CH_DOORBELL), 2));
        assert!(function.needs_pause(channel_register(0, CH_DOORBELL), 16));
        assert!(function.needs_pause(channel_register(0, CH_CONTROL), 0));
        assert!(function.needs_pause(CONTROL, CONTROL_RESET));
    }

    #[test]
    fn channel_with_pasid_fails_while_pasid_is_disabled() {
        let mut function = function();
        function.write(channel_register(0, CH_PASID), CH_PASID_VALID | 7);
        enable(&mut function, 0, 2);
        enable(&mut function, 1, 1);
        function.enables.pasid = true;
        let slice = function.next_slice().unwrap();
        assert_eq!((slice.channel, slice.requester.pasid), (0, Some(Pasid(7))));
        function.finish(0, Some(Outcome::Complete { interrupt: false }));
        function.enables.pasid = false;
        assert_eq!(complete_next(&mut function), Some(1));
        assert!(function.next_slice().is_none());
        assert_eq!(function.read(channel_register(0, CH_ERROR)), ERROR_CONFIG);
    }

    #[test]
    fn failure_stops_channels_despite_immediate_pri_reset() {
        let mut function = function();
        function.write_pri(8, 1);
        function.write_pri(0, 1);
        enable(&mut function, 4, 1);
        let missing = MissingPages { access: Access::Read, first: 0, pages: 1 };
        let group = function.pri.begin(4, None, missing).unwrap();
        function.respond(None, group.index, Response::Failure);
        assert!(function.write_pri(0, 2));
        assert_eq!(function.read(channel_register(4, CH_ERROR)), ERROR_PAGE_RESPONSE);
    }
}
