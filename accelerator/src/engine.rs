//! The registers, shared between the client's accesses and the worker thread.
//!
//! The worker takes a turn out of the registers, works without the lock, and puts the outcome
//! back. Whoever must not meet an access under way waits for the end of that one turn
//! ([`Engine::pause`]); plain register accesses never wait.

use super::config::Allowed;
use super::exec::Executor;
use super::function::{Function, Turn};
use super::msix::Vectors;
use super::pri;
use crate::dma::Pasid;
use crate::faults::{PrgIndex, Response};
use std::mem::take;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    function: Function,
    /// The worker has a turn, or makes the page requests that it ended with.
    working: bool,
    /// Threads that wait for the end of the turn; the worker takes none before they are served.
    waiting: usize,
    /// The worker sleeps, and nobody has woken it yet.
    idle: bool,
    stopping: bool,
}

impl State {
    fn next_turn(&mut self) -> Option<Turn> {
        if self.waiting > 0 {
            return None;
        }
        let turn = self.function.next_turn()?;
        self.working = true;
        Some(turn)
    }
}

/// One accelerator without its connections to the client and to memory.
#[derive(Debug, Default)]
pub struct Engine {
    state: Mutex<State>,
    changed: Condvar,
}

impl Engine {
    /// The 32 bits at `offset` of BAR 0, a multiple of 4.
    pub fn read(&self, offset: u32) -> u32 {
        self.lock().function.read(offset)
    }

    /// Writes the 32 bits at `offset` of BAR 0, a multiple of 4. No access that the write
    /// forbids is under way once it returns.
    pub fn write(&self, offset: u32, value: u32) {
        let mut state = self.lock();
        if state.function.is_light(offset, value) {
            state.function.write(offset, value);
            self.wake(state);
        } else {
            drop(state);
            self.paused(|state| state.function.write(offset, value));
        }
    }

    /// What the configuration space allows: with bus master channels work, else they pause where
    /// they stand; with PASIDs they may use theirs, else those that have one fail; with ATS and
    /// the page request interface they ask for pages, else faults are final.
    pub fn allow(&self, allowed: Allowed) {
        let is_new = self.lock().function.allowed != allowed;
        if is_new {
            self.paused(|state| state.function.allowed = allowed);
        }
    }

    /// The registers of the page request interface.
    pub fn read_pri(&self) -> [u8; pri::REGISTERS] {
        self.lock().function.read_pri()
    }

    /// Writes a byte of the registers of the page request interface; true when all page requests
    /// are forgotten, and the fault path has to hear of that.
    pub fn write_pri(&self, byte: usize, value: u8) -> bool {
        self.paused(|state| state.function.write_pri(byte, value))
    }

    /// Brings the function to its state after reset: nothing is allowed, all page requests are
    /// forgotten. The fault path has to hear of that before anything is allowed again.
    pub fn reset(&self) {
        self.paused(|state| state.function.reset_all());
    }

    /// Gives access to the interrupt vectors.
    pub fn vectors<R>(&self, f: impl FnOnce(&mut Vectors) -> R) -> R {
        f(&mut self.lock().function.vectors)
    }

    /// Runs `f` while no access to memory is under way and none begins.
    pub fn pause<R>(&self, f: impl FnOnce() -> R) -> R {
        self.paused(|_| f())
    }

    /// Ends [`run`](Self::run); no access is under way once this returns.
    pub fn stop(&self) {
        self.paused(|state| state.stopping = true);
    }

    /// Works for all channels until [`stop`](Self::stop).
    pub fn run(&self, mut executor: Executor) {
        while let Some(Turn { channel, requester, task }) = self.take() {
            let outcome = caught(channel, || executor.turn(requester, task));
            let mut state = self.lock();
            if let Some(group) = state.function.finish(channel, outcome) {
                drop(state);
                let asked = caught(channel, || executor.ask(&group));
                state = self.lock();
                state.function.asked(&group, asked);
            }
            state.working = false;
            self.wake(state);
        }
    }

    fn take(&self) -> Option<Turn> {
        let mut state = self.lock();
        while !state.stopping {
            if let Some(turn) = state.next_turn() {
                return Some(turn);
            }
            state.idle = true;
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            state.idle = false;
        }
        None
    }

    fn paused<R>(&self, f: impl FnOnce(&mut State) -> R) -> R {
        let mut state = self.lock();
        state.waiting += 1;
        let idle = self.changed.wait_while(state, |state| state.working);
        state = idle.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        let result = f(&mut state);
        self.wake(state);
        result
    }

    /// Wakes who waits for what has changed. That is a system call, so only if somebody does: a
    /// worker that is at work looks by itself what to do next.
    fn wake(&self, mut state: MutexGuard<State>) {
        let is_due = take(&mut state.idle) || state.waiting > 0;
        drop(state);
        if is_due {
            self.changed.notify_all();
        }
    }

    /// A panic with the lock held would be a bug, but no reason to give up the registers: each
    /// change to them is complete in itself.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Takes the lock and nothing else: the registers' lock is never held while something is awaited
/// or the fault path is called.
impl Engine {
    /// Completes a page request group.
    pub fn respond(&self, pasid: Option<Pasid>, cookie: PrgIndex, response: Response) {
        let mut state = self.lock();
        state.function.answer(pasid, cookie, response);
        self.wake(state);
    }

    /// The fault handler's queue has space again.
    pub fn resume(&self) {
        let mut state = self.lock();
        state.function.resume();
        self.wake(state);
    }
}

fn caught<R>(channel: usize, f: impl FnOnce() -> R) -> Option<R> {
    let result = catch_unwind(AssertUnwindSafe(f)).ok();
    if result.is_none() {
        log::error!("channel {channel} stopped: internal error");
    }
    result
}
