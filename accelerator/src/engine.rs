//! The registers, shared between the client's accesses and the worker thread.
//!
//! The worker selects a slice from the registers, executes it without the lock, and applies its
//! outcome. An operation that must not coincide with an access to memory waits for the end of the
//! slice ([`Engine::pause`]); plain register accesses do not wait.

use super::config::Enables;
use super::exec::Executor;
use super::function::{Function, Slice};
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
    /// The worker executes a slice or submits the page requests that resulted from it.
    working: bool,
    /// Number of threads in [`Engine::pause`]. They precede the next slice.
    waiting: usize,
    /// The worker sleeps and has not been woken.
    idle: bool,
    stopping: bool,
}

impl State {
    fn next_slice(&mut self) -> Option<Slice> {
        if self.waiting > 0 {
            return None;
        }
        let slice = self.function.next_slice()?;
        self.working = true;
        Some(slice)
    }
}

/// The registers and the scheduler of an accelerator.
#[derive(Debug, Default)]
pub struct Engine {
    state: Mutex<State>,
    changed: Condvar,
}

impl Engine {
    /// Reads the 32 bits at `offset` of BAR 0, a multiple of 4.
    pub fn read(&self, offset: u32) -> u32 {
        self.lock().function.read(offset)
    }

    /// Writes the 32 bits at `offset` of BAR 0, a multiple of 4. When it returns, no access
    /// that the write disables is in progress.
    pub fn write(&self, offset: u32, value: u32) {
        let mut state = self.lock();
        if state.function.needs_pause(offset, value) {
            drop(state);
            self.paused(|state| state.function.write(offset, value));
        } else {
            state.function.write(offset, value);
            self.wake(state);
        }
    }

    /// Applies the enable bits of the configuration space. Without bus master, all channels pause;
    /// without PASID, channels with a PASID fail; without ATS, faults are unrecoverable.
    pub fn set_enables(&self, enables: Enables) {
        let changed = self.lock().function.enables != enables;
        if changed {
            self.paused(|state| state.function.enables = enables);
        }
    }

    /// Returns the registers of the page request interface.
    pub fn read_pri(&self) -> [u8; pri::REGISTERS] {
        self.lock().function.read_pri()
    }

    /// Writes a byte of the registers of the page request interface. Returns whether all page
    /// requests are withdrawn; the caller then notifies the fault handler.
    pub fn write_pri(&self, byte: usize, value: u8) -> bool {
        self.paused(|state| state.function.write_pri(byte, value))
    }

    /// Resets the function and withdraws all page requests. The caller notifies the fault handler
    /// before it sets an enable bit again.
    pub fn reset(&self) {
        self.paused(|state| state.function.reset());
    }

    /// Calls `f` with the interrupt vectors.
    pub fn vectors<R>(&self, f: impl FnOnce(&mut Vectors) -> R) -> R {
        f(&mut self.lock().function.vectors)
    }

    /// Calls `f` while no access to memory is in progress.
    pub fn pause<R>(&self, f: impl FnOnce() -> R) -> R {
        self.paused(|_| f())
    }

    /// Ends [`run`](Self::run). When it returns, no access is in progress.
    pub fn stop(&self) {
        self.paused(|state| state.stopping = true);
    }

    /// Executes the work of all channels until [`stop`](Self::stop).
    pub fn run(&self, mut executor: Executor) {
        while let Some(Slice { channel, requester, task }) = self.wait_for_slice() {
            let outcome = catch_panic(channel, || executor.execute(requester, task));
            let mut state = self.lock();
            if let Some(group) = state.function.finish(channel, outcome) {
                drop(state);
                let result = catch_panic(channel, || executor.request_pages(&group));
                state = self.lock();
                state.function.submitted(&group, result);
            }
            state.working = false;
            self.wake(state);
        }
    }

    fn wait_for_slice(&self) -> Option<Slice> {
        let mut state = self.lock();
        while !state.stopping {
            if let Some(slice) = state.next_slice() {
                return Some(slice);
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
        let paused = self.changed.wait_while(state, |state| state.working);
        state = paused.unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        let result = f(&mut state);
        self.wake(state);
        result
    }

    /// Wakes the waiting threads after a change. Avoids the system call if there is none: a worker
    /// that is not idle checks for its next slice without being woken.
    fn wake(&self, mut state: MutexGuard<State>) {
        let is_due = take(&mut state.idle) || state.waiting > 0;
        drop(state);
        if is_due {
            self.changed.notify_all();
        }
    }

    /// Ignores poisoning: every change of the registers is complete when a panic can occur.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

// These methods must not block: the fault handler may call them with its locks held. The lock of
// the registers is never held during a wait or a call of the fault handler.
impl Engine {
    /// Completes a page request group.
    pub fn respond(&self, pasid: Option<Pasid>, index: PrgIndex, response: Response) {
        let mut state = self.lock();
        state.function.respond(pasid, index, response);
        self.wake(state);
    }

    /// The fault handler can queue groups again.
    pub fn capacity_available(&self) {
        let mut state = self.lock();
        state.function.capacity_available();
        self.wake(state);
    }
}

/// Returns the result of `f`, or `None` if it panics.
fn catch_panic<R>(channel: usize, f: impl FnOnce() -> R) -> Option<R> {
    let result = catch_unwind(AssertUnwindSafe(f)).ok();
    if result.is_none() {
        log::error!("channel {channel} stopped: internal error");
    }
    result
}
