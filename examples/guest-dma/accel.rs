//! Driver of the accelerator, which docs/accelerator.md specifies.

use std::fmt;
use std::sync::atomic::{Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow, bail};

use crate::regs::{self, Descriptor};
use crate::ring::{Completion, ENTRIES, Ring};
use crate::sys::Bar;

/// Timeout of a batch of descriptors. It is long because emulated machines can be slow.
const TIMEOUT_SECONDS: u32 = 300;

/// Interrupts of a function. An implementation keeps the function open.
pub trait Interrupts {
    /// Waits up to `seconds` for an interrupt of `vector`. Returns the number of interrupts since
    /// the previous call.
    fn wait(&self, vector: u32, seconds: u32) -> u64;
}

/// An open accelerator.
pub struct Accelerator {
    name: String,
    // Unmapped before the function is closed.
    bar: Bar,
    interrupts: Box<dyn Interrupts>,
}

impl Accelerator {
    /// Checks the identity of the accelerator. `name` is the PCI address, for messages.
    pub fn new(name: &str, bar: Bar, interrupts: Box<dyn Interrupts>) -> Result<Self> {
        let (id, version) = (bar.read32(regs::ID), bar.read32(regs::VERSION));
        if (id, version) != (regs::ID_VALUE, regs::VERSION_VALUE) {
            bail!("{name} is not an accelerator: ID is {id:#x}, version is {version}");
        }
        let limit = bar.read64(regs::LENGTH_LIMIT);
        if limit != regs::MAX_LENGTH {
            bail!("{name}: unsupported maximum length of a descriptor: {limit:#x}");
        }
        Ok(Self { name: name.into(), bar, interrupts })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// Returns whether the accelerator has all of `features` (`regs::FEATURE_*`).
    pub fn has(&self, features: u32) -> bool {
        self.bar.read32(regs::FEATURES) & features == features
    }
}

/// How the program detects completion.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// By exactly one interrupt of the channel's vector, after all completion records are written.
    Interrupt,
    /// By interrupts of vector 0, which all channels share.
    SharedInterrupt,
    /// By polling completion records.
    Poll,
}

/// The address space of a channel.
#[derive(Clone, Copy)]
pub enum Access {
    /// The domain of the function, without PASID.
    Domain,
    /// The address space of the process with this PASID. Faults become page requests, in groups
    /// of up to `group_pages` pages.
    Process { pasid: u32, group_pages: u32 },
}

/// An enabled channel with its ring. Dropping it disables the channel.
pub struct Channel<'a> {
    accelerator: &'a Accelerator,
    index: u32,
    wait: Wait,
    ring: Ring,
    /// Number of entries before the tail that were submitted since the last `finish`.
    started: usize,
}

impl<'a> Channel<'a> {
    /// Configures and enables channel `index`.
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
        channel.check_running()?;
        Ok(channel)
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

    /// Executes one descriptor.
    pub fn run(&mut self, work: Descriptor) -> Result<Completion> {
        Ok(self.run_all(&[work])?[0])
    }

    /// Executes descriptors in order. Returns the completion of each, including failed ones.
    pub fn run_all(&mut self, work: &[Descriptor]) -> Result<Vec<Completion>> {
        let mut completions = Vec::new();
        for batch in work.chunks(ENTRIES - 1) {
            self.start(batch);
            completions.extend(self.finish()?);
        }
        Ok(completions)
    }

    /// Submits descriptors, no more than the ring has space for. The last one raises the interrupt.
    pub fn start(&mut self, batch: &[Descriptor]) {
        assert!(self.started + batch.len() < ENTRIES, "the ring does not have enough free entries");
        let raise = if self.wait == Wait::Poll { 0 } else { regs::FLAG_INTERRUPT };
        for (index, work) in batch.iter().enumerate() {
            let is_last = index + 1 == batch.len();
            self.ring.push(*work, if is_last { raise } else { 0 });
        }
        self.started += batch.len();
        fence(Ordering::Release);
        self.write(regs::CH_DOORBELL, self.ring.tail() as u32);
    }

    /// Waits until all submitted descriptors are complete. Returns their completions.
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

    /// Waits until the first submitted descriptor is complete.
    pub fn wait_for_first(&self) -> Result<()> {
        self.entries().next().map_or(Ok(()), |first| self.poll(first))
    }

    /// Returns the indices of the submitted entries.
    fn entries(&self) -> impl Iterator<Item = usize> + use<> {
        let end = self.ring.tail() + ENTRIES;
        (end - self.started..end).map(|entry| entry % ENTRIES)
    }

    fn wait_for_interrupt(&self, last: usize) -> Result<()> {
        let count = self.interrupts();
        self.check_running()?;
        match (count, self.ring.is_pending(last)) {
            (1, false) => Ok(()),
            (2.., false) => Err(anyhow!("{self}: expected 1 interrupt, got {count}")),
            (1.., true) => {
                Err(anyhow!("{self}: interrupt before the completion record was written"))
            }
            (0, pending) => Err(self.no_interrupt(pending)),
        }
    }

    /// Waits for the record, because interrupts of other channels signal the same vector.
    fn wait_for_shared_interrupt(&self, last: usize) -> Result<()> {
        while self.ring.is_pending(last) {
            let count = self.interrupts();
            self.check_running()?;
            if count == 0 {
                return Err(self.no_interrupt(self.ring.is_pending(last)));
            }
        }
        Ok(())
    }

    fn interrupts(&self) -> u64 {
        self.accelerator.interrupts.wait(self.vector(), TIMEOUT_SECONDS)
    }

    fn no_interrupt(&self, pending: bool) -> Error {
        if pending {
            self.timed_out()
        } else {
            anyhow!("{self}: complete, but no interrupt within {TIMEOUT_SECONDS} s")
        }
    }

    fn timed_out(&self) -> Error {
        anyhow!("{self}: not complete after {TIMEOUT_SECONDS} s")
    }

    fn poll(&self, entry: usize) -> Result<()> {
        let start = Instant::now();
        while self.ring.is_pending(entry) {
            self.check_running()?;
            if start.elapsed() > Duration::from_secs(TIMEOUT_SECONDS.into()) {
                return Err(self.timed_out());
            }
            thread::yield_now();
        }
        Ok(())
    }

    /// Returns an error if the channel is not in the state RUNNING.
    fn check_running(&self) -> Result<()> {
        let state = self.read(regs::CH_STATUS) & regs::CH_STATUS_STATE;
        if state == regs::STATE_RUNNING {
            return Ok(());
        }
        let error = self.read(regs::CH_ERROR);
        let address = self.accelerator.bar.read64(self.register(regs::CH_ERROR_ADDRESS));
        Err(anyhow!("{self} is in state {state}: error {error:#x}, address {address:#x}"))
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
