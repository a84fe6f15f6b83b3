//! A driver of the accelerator, as docs/accelerator.md describes it.

use std::fmt;
use std::ops::Range;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::regs::{self, Descriptor};
use crate::ring::{Completion, ENTRIES, Ring};
use crate::sys::Bar;

/// How long work may take: emulated machines can be slow, but end one day.
const PATIENCE_SECONDS: u32 = 300;

/// How interrupts come to this program. Whoever implements it keeps the function open.
pub trait Interrupts {
    /// How many have come for `vector` since the last call. Waits for the first, but no longer
    /// than `seconds`.
    fn wait(&self, vector: u32, seconds: u32) -> u64;
}

/// The accelerator, enabled.
pub struct Accelerator {
    name: String,
    // Unmapped before the function is closed.
    bar: Bar,
    interrupts: Box<dyn Interrupts>,
}

impl Accelerator {
    pub fn new(name: &str, bar: Bar, interrupts: Box<dyn Interrupts>) -> Result<Self> {
        let (id, version) = (bar.read32(regs::ID), bar.read32(regs::VERSION));
        if (id, version) != (regs::ID_VALUE, regs::VERSION_VALUE) {
            return Err(format!("{name} says ID {id:#x}, version {version}: no accelerator"));
        }
        let limit = bar.read64(regs::LENGTH_LIMIT);
        if limit != regs::MAX_LENGTH {
            return Err(format!("{name} says that a descriptor has at most {limit:#x} bytes"));
        }
        Ok(Self { name: name.into(), bar, interrupts })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether it has all of these features.
    pub fn has(&self, features: u32) -> bool {
        self.bar.read32(regs::FEATURES) & features == features
    }
}

/// How the end of work is noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// By an interrupt of the channel's own vector; the records must be there then.
    Interrupt,
    /// By interrupts of the one vector that all channels share.
    SharedInterrupt,
    /// By looking at the records.
    Poll,
}

/// What a channel accesses.
#[derive(Clone, Copy)]
pub enum Access {
    /// What the function's own domain maps.
    Domain,
    /// What the process with this PASID can access. Faults become page requests, in groups of up
    /// to `group_pages` pages.
    Process { pasid: u32, group_pages: u32 },
}

/// A channel with its ring.
pub struct Channel<'a> {
    accelerator: &'a Accelerator,
    index: u32,
    wait: Wait,
    ring: Ring,
    /// How many of the entries before the tail are work that nobody has waited for yet.
    started: usize,
}

impl<'a> Channel<'a> {
    /// Sets channel `index` up.
    pub fn new(
        accelerator: &'a Accelerator,
        index: u32,
        wait: Wait,
        access: Access,
        ring: Ring,
    ) -> Result<Self> {
        let channel = Self { accelerator, index, wait, ring, started: 0 };
        channel.write(regs::CH_CONTROL, 0);
        let ring = channel.ring.address();
        accelerator.bar.write64(channel.register(regs::CH_RING_BASE), ring);
        channel.write(regs::CH_RING_SIZE, ENTRIES as u32);
        channel.write(regs::CH_VECTOR, channel.vector());
        channel.enable(access);
        match channel.error() {
            Some(error) => Err(error),
            None => Ok(channel),
        }
    }

    fn enable(&self, access: Access) {
        let (pasid, group_pages, control) = match access {
            Access::Domain => (0, 0, 0),
            Access::Process { pasid, group_pages } => {
                (regs::CH_PASID_VALID | pasid, group_pages, regs::CH_CONTROL_PAGE_REQUEST)
            }
        };
        self.write(regs::CH_PASID, pasid);
        self.write(regs::CH_GROUP_PAGES, group_pages);
        self.write(regs::CH_CONTROL, regs::CH_CONTROL_ENABLE | control);
    }

    fn vector(&self) -> u32 {
        if self.wait == Wait::SharedInterrupt { 0 } else { self.index }
    }

    /// Does one piece of work.
    pub fn run(&mut self, work: Descriptor) -> Result<Completion> {
        Ok(self.run_all(&[work])?[0])
    }

    /// Does the work in order. Records come back for all of it, whatever its status.
    pub fn run_all(&mut self, work: &[Descriptor]) -> Result<Vec<Completion>> {
        let mut completions = Vec::new();
        for batch in work.chunks(ENTRIES - 1) {
            self.start(batch);
            completions.extend(self.finish()?);
        }
        Ok(completions)
    }

    /// Hands up to a ring full of work to the device. The last piece raises the interrupt.
    pub fn start(&mut self, batch: &[Descriptor]) {
        assert!(self.started + batch.len() < ENTRIES, "more work than the ring has entries");
        let raise = if self.wait == Wait::Poll { 0 } else { regs::FLAG_INTERRUPT };
        for (index, work) in batch.iter().enumerate() {
            let is_last = index + 1 == batch.len();
            self.ring.push(*work, if is_last { raise } else { 0 });
        }
        self.started += batch.len();
        fence(Ordering::Release);
        self.write(regs::CH_DOORBELL, self.ring.tail() as u32);
    }

    /// Waits for the end of all that was started.
    pub fn finish(&mut self) -> Result<Vec<Completion>> {
        if let Some(last) = self.entries().last() {
            match self.wait {
                Wait::Interrupt => self.wait_for_interrupt(last)?,
                Wait::SharedInterrupt => self.wait_for_shared_interrupt(last)?,
                Wait::Poll => self.poll(last)?,
            }
        }
        let completions = self.entries().map(|entry| self.ring.record(entry)).collect();
        self.started = 0;
        Ok(completions)
    }

    /// Waits for the end of the first piece of what was started.
    pub fn wait_for_first(&self) -> Result<()> {
        self.entries().next().map_or(Ok(()), |first| self.poll(first))
    }

    /// The entries of what was started.
    fn entries(&self) -> impl Iterator<Item = usize> + use<> {
        let end = self.ring.tail() + ENTRIES;
        let all: Range<usize> = end - self.started..end;
        all.map(|entry| entry % ENTRIES)
    }

    fn wait_for_interrupt(&self, last: usize) -> Result<()> {
        let count = self.interrupts();
        if let Some(error) = self.error() {
            return Err(error);
        }
        match (count, self.ring.is_pending(last)) {
            (1, false) => Ok(()),
            (2.., false) => Err(format!("{self}: {count} interrupts instead of one")),
            (1.., true) => Err(format!("{self}: an interrupt, but no completion record")),
            (0, pending) => Err(self.no_interrupt(pending)),
        }
    }

    /// Interrupts for other channels wake this one up as well.
    fn wait_for_shared_interrupt(&self, last: usize) -> Result<()> {
        while self.ring.is_pending(last) {
            let count = self.interrupts();
            if let Some(error) = self.error() {
                return Err(error);
            }
            if count == 0 {
                return Err(self.no_interrupt(self.ring.is_pending(last)));
            }
        }
        Ok(())
    }

    fn interrupts(&self) -> u64 {
        self.accelerator.interrupts.wait(self.vector(), PATIENCE_SECONDS)
    }

    fn no_interrupt(&self, pending: bool) -> String {
        if pending {
            format!("{self}: not done after {PATIENCE_SECONDS} s")
        } else {
            format!("{self}: done, but no interrupt came in {PATIENCE_SECONDS} s")
        }
    }

    fn poll(&self, entry: usize) -> Result<()> {
        let start = Instant::now();
        while self.ring.is_pending(entry) {
            if let Some(error) = self.error() {
                return Err(error);
            }
            if start.elapsed() > Duration::from_secs(PATIENCE_SECONDS.into()) {
                return Err(format!("{self}: not done after {PATIENCE_SECONDS} s"));
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// Why the channel does not run, if it does not.
    fn error(&self) -> Option<String> {
        let state = self.read(regs::CH_STATUS) & regs::CH_STATUS_STATE;
        if state == regs::STATE_RUNNING {
            return None;
        }
        let error = self.read(regs::CH_ERROR);
        let address = self.accelerator.bar.read64(self.register(regs::CH_ERROR_ADDRESS));
        Some(format!("{self} is in state {state}: error {error:#x}, address {address:#x}"))
    }

    fn register(&self, register: u32) -> u32 {
        regs::channel_register(self.index, register)
    }

    fn read(&self, register: u32) -> u32 {
        self.accelerator.bar.read32(self.register(register))
    }

    fn write(&self, register: u32, value: u32) {
        self.accelerator.bar.write32(self.register(register), value);
    }
}

impl Drop for Channel<'_> {
    fn drop(&mut self) {
        self.write(regs::CH_CONTROL, 0);
    }
}

impl fmt::Display for Channel<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: channel {}", self.accelerator.name(), self.index)
    }
}
