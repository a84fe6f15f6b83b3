//! The registers, shared between the client's accesses and the worker thread.
//!
//! The worker takes a turn out of the registers, works without the lock, and puts the outcome
//! back. Whoever must not meet an access under way waits for the end of that one turn
//! ([`Engine::pause`]); plain register accesses never wait.

use super::exec::Executor;
use super::function::{Function, Turn};
use super::msix::Vectors;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

#[derive(Debug, Default)]
struct State {
    function: Function,
    bus_master: bool,
    /// The worker has a turn.
    working: bool,
    /// Threads that wait for the end of the turn; the worker takes none before they are served.
    waiting: usize,
    stopping: bool,
}

impl State {
    fn next_turn(&mut self) -> Option<Turn> {
        if !self.bus_master || self.waiting > 0 {
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
            self.changed.notify_all();
        } else {
            drop(state);
            self.paused(|state| state.function.write(offset, value));
        }
    }

    /// What the configuration space allows: with `bus_master` channels work, else they pause
    /// where they stand; with `pasids` they may use their PASID, else those that have one fail.
    pub fn allow(&self, bus_master: bool, pasids: bool) {
        let state = self.lock();
        if state.bus_master != bus_master || state.function.pasids_allowed() != pasids {
            drop(state);
            self.paused(|state| {
                state.bus_master = bus_master;
                state.function.allow_pasids(pasids);
            });
        }
    }

    /// Brings the registers to their state after reset; bus master and PASIDs are off.
    pub fn reset(&self) {
        self.paused(|state| {
            state.bus_master = false;
            state.function.allow_pasids(false);
            state.function.reset();
        });
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
        while let Some(Turn { channel, pasid, task }) = self.take() {
            let turn = AssertUnwindSafe(|| executor.turn(pasid, task));
            let outcome = catch_unwind(turn).ok();
            if outcome.is_none() {
                log::error!("channel {channel} stopped: internal error");
            }
            let mut state = self.lock();
            state.working = false;
            state.function.finish(channel, outcome);
            self.changed.notify_all();
        }
    }

    fn take(&self) -> Option<Turn> {
        let mut state = self.lock();
        while !state.stopping {
            if let Some(turn) = state.next_turn() {
                return Some(turn);
            }
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
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
        self.changed.notify_all();
        result
    }

    /// A panic with the lock held would be a bug, but no reason to give up the registers: each
    /// change to them is complete in itself.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
