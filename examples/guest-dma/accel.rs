//! A driver of the accelerator, as docs/accelerator.md describes it.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};
use std::thread;
use std::time::{Duration, Instant};

use crate::Result;
use crate::memory::Memory;
use crate::regs::{self, Descriptor};
use crate::sys::Bar;
use crate::vfio::{Device, Eventfd, Protection, Space};

/// Entries of a channel's ring. Ring and records share one page.
const ENTRIES: usize = 16;
const DESCRIPTOR_WORDS: usize = regs::DESCRIPTOR_SIZE / 8;
const RECORD_WORDS: usize = regs::COMPLETION_SIZE / 8;
const RECORDS: usize = ENTRIES * regs::DESCRIPTOR_SIZE;

/// How long work may take: emulated machines can be slow, but end one day.
const PATIENCE_SECONDS: u32 = 120;

/// The accelerator, enabled.
pub struct Accelerator {
    bar: Bar,
    interrupts: Vec<Eventfd>,
    // Closed after all that was made with it.
    device: Device,
}

impl Accelerator {
    pub fn open(space: &Space, name: &str) -> Result<Self> {
        let device = space.attach(name)?;
        device.enable()?;
        let bar = device.registers()?;
        let (id, version) = (bar.read32(regs::ID), bar.read32(regs::VERSION));
        if (id, version) != (regs::ID_VALUE, regs::VERSION_VALUE) {
            return Err(format!("{name} says ID {id:#x}, version {version}: no accelerator"));
        }
        let limit = bar.read64(regs::LENGTH_LIMIT);
        if limit != regs::MAX_LENGTH {
            return Err(format!("{name} says that a descriptor has at most {limit:#x} bytes"));
        }
        let interrupts = device.interrupts()?;
        Ok(Self { bar, interrupts, device })
    }

    pub fn name(&self) -> &str {
        &self.device.name
    }
}

/// How the end of work is noticed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Wait {
    /// By an interrupt; the records must be there then.
    Interrupt,
    /// By looking at the records.
    Poll,
}

/// A channel with its ring in memory that the space maps.
pub struct Channel<'a> {
    accelerator: &'a Accelerator,
    index: u32,
    wait: Wait,
    page: Memory,
    iova: u64,
    tail: usize,
}

impl<'a> Channel<'a> {
    /// Sets channel `index` up with a page at `iova` for ring and records.
    pub fn open(
        accelerator: &'a Accelerator,
        space: &Space,
        index: u32,
        iova: u64,
        wait: Wait,
    ) -> Result<Self> {
        let page = Memory::pages(1)?;
        space.map(iova, page, Protection::ReadWrite)?;
        let channel = Self { accelerator, index, wait, page, iova, tail: 0 };
        channel.write(regs::CH_CONTROL, 0);
        accelerator.bar.write64(channel.register(regs::CH_RING_BASE), iova);
        channel.write(regs::CH_RING_SIZE, ENTRIES as u32);
        channel.write(regs::CH_VECTOR, index);
        channel.write(regs::CH_CONTROL, regs::CH_CONTROL_ENABLE);
        match channel.error() {
            Some(error) => Err(error),
            None => Ok(channel),
        }
    }

    /// Does one piece of work.
    pub fn run(&mut self, work: Descriptor) -> Result<Completion> {
        Ok(self.run_all(&[work])?[0])
    }

    /// Does the work in order. Records come back for all of it, whatever its status.
    pub fn run_all(&mut self, work: &[Descriptor]) -> Result<Vec<Completion>> {
        let mut completions = Vec::new();
        for batch in work.chunks(ENTRIES - 1) {
            let first = self.tail;
            self.submit(batch);
            let last = (first + batch.len() - 1) % ENTRIES;
            match self.wait {
                Wait::Interrupt => self.wait_for_interrupt(last)?,
                Wait::Poll => self.poll(last)?,
            }
            completions.extend((0..batch.len()).map(|n| self.record((first + n) % ENTRIES)));
        }
        Ok(completions)
    }

    /// Puts up to a ring full of descriptors behind the tail. The last raises the interrupt.
    fn submit(&mut self, batch: &[Descriptor]) {
        for (index, descriptor) in batch.iter().enumerate() {
            let is_last = index + 1 == batch.len();
            let interrupt = is_last && self.wait == Wait::Interrupt;
            let record = self.tail * regs::COMPLETION_SIZE;
            self.clear_record(self.tail);
            self.write_descriptor(Descriptor {
                flags: regs::FLAG_COMPLETION | if interrupt { regs::FLAG_INTERRUPT } else { 0 },
                tag: self.tail as u32,
                completion: self.iova + (RECORDS + record) as u64,
                ..*descriptor
            });
            self.tail = (self.tail + 1) % ENTRIES;
        }
        fence(Ordering::Release);
        self.write(regs::CH_DOORBELL, self.tail as u32);
    }

    fn write_descriptor(&self, descriptor: Descriptor) {
        let words = [
            u64::from(descriptor.opcode)
                | u64::from(descriptor.flags) << 8
                | u64::from(descriptor.tag) << 32,
            descriptor.source,
            descriptor.destination,
            descriptor.length,
            descriptor.operand,
            descriptor.completion,
            0,
            0,
        ];
        let entry = &self.page.words()[self.tail * DESCRIPTOR_WORDS..][..DESCRIPTOR_WORDS];
        for (to, word) in entry.iter().zip(words) {
            to.store(word.to_le(), Ordering::Relaxed);
        }
    }

    fn record_words(&self, entry: usize) -> &'static [AtomicU64] {
        &self.page.words()[RECORDS / 8 + entry * RECORD_WORDS..][..RECORD_WORDS]
    }

    fn clear_record(&self, entry: usize) {
        self.record_words(entry).iter().for_each(|word| word.store(0, Ordering::Relaxed));
    }

    fn is_pending(&self, entry: usize) -> bool {
        let first = u64::from_le(self.record_words(entry)[0].load(Ordering::Acquire));
        first as u8 == regs::STATUS_PENDING
    }

    fn record(&self, entry: usize) -> Completion {
        let words = self.record_words(entry);
        let word = |index: usize| u64::from_le(words[index].load(Ordering::Relaxed));
        let head = word(0);
        Completion {
            status: head as u8,
            write: (head >> 8) as u8 & regs::FAULT_WRITE != 0,
            bytes_done: word(1),
            fault_address: word(2),
            result: word(3),
        }
    }

    fn wait_for_interrupt(&self, last: usize) -> Result<()> {
        let interrupts = &self.accelerator.interrupts[self.index as usize];
        let came = interrupts.wait(PATIENCE_SECONDS.into());
        let count = interrupts.take();
        if let Some(error) = self.error() {
            return Err(error);
        }
        match (came, self.is_pending(last)) {
            (true, false) if count == 1 => Ok(()),
            (true, false) => Err(format!("{self}: {count} interrupts instead of one")),
            (true, true) => Err(format!("{self}: an interrupt, but no completion record")),
            (false, true) => Err(format!("{self}: not done after {PATIENCE_SECONDS} s")),
            (false, false) => {
                Err(format!("{self}: done, but no interrupt came in {PATIENCE_SECONDS} s"))
            }
        }
    }

    fn poll(&self, last: usize) -> Result<()> {
        let start = Instant::now();
        while self.is_pending(last) {
            if let Some(error) = self.error() {
                return Err(error);
            }
            if start.elapsed() > Duration::from_secs(PATIENCE_SECONDS.into()) {
                return Err(format!("{self}: not done after {PATIENCE_SECONDS} s"));
            }
            thread::yield_now();
        }
        fence(Ordering::Acquire);
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

pub fn copy(source: u64, destination: u64, length: u64) -> Descriptor {
    Descriptor { opcode: regs::OP_COPY, source, destination, length, ..Default::default() }
}

pub fn fill(destination: u64, length: u64, pattern: u64) -> Descriptor {
    let opcode = regs::OP_FILL;
    Descriptor { opcode, destination, length, operand: pattern, ..Default::default() }
}

pub fn compare(source: u64, destination: u64, length: u64) -> Descriptor {
    Descriptor { opcode: regs::OP_COMPARE, source, destination, length, ..Default::default() }
}

pub fn crc32c(source: u64, length: u64) -> Descriptor {
    Descriptor { opcode: regs::OP_CRC32C, source, length, ..Default::default() }
}

/// What became of a piece of work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub status: u8,
    /// For a fault: the access was a write.
    pub write: bool,
    pub bytes_done: u64,
    pub fault_address: u64,
    pub result: u64,
}

impl Completion {
    /// That all of `length` bytes were done, or the record in words.
    pub fn expect_success(&self, what: &str, length: u64) -> Result<()> {
        if self.status == regs::STATUS_SUCCESS && self.bytes_done == length {
            return Ok(());
        }
        Err(format!("{what}: expected SUCCESS after {length} bytes, got {self}"))
    }

    /// That an access to `address` was refused after `done` bytes, or the record in words.
    pub fn expect_fault(&self, what: &str, address: u64, write: bool, done: u64) -> Result<()> {
        let got = (self.status, self.fault_address, self.write, self.bytes_done);
        if got == (regs::STATUS_FAULT, address, write, done) {
            return Ok(());
        }
        let access = if write { "write" } else { "read" };
        Err(format!(
            "{what}: expected FAULT, {access} at {address:#x} after {done} bytes, got {self}"
        ))
    }
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.status {
            regs::STATUS_FAULT | regs::STATUS_BUS_ERROR => {
                let access = if self.write { "write" } else { "read" };
                let (name, address) = (status_name(self.status), self.fault_address);
                write!(f, "{name}, {access} at {address:#x} after {} bytes", self.bytes_done)
            }
            status => write!(f, "{} after {} bytes", status_name(status), self.bytes_done),
        }
    }
}

fn status_name(status: u8) -> String {
    let name = match status {
        regs::STATUS_PENDING => "PENDING",
        regs::STATUS_SUCCESS => "SUCCESS",
        regs::STATUS_MISMATCH => "MISMATCH",
        regs::STATUS_FAULT => "FAULT",
        regs::STATUS_BUS_ERROR => "BUS_ERROR",
        regs::STATUS_BAD_OPCODE => "BAD_OPCODE",
        regs::STATUS_BAD_FLAGS => "BAD_FLAGS",
        regs::STATUS_BAD_LENGTH => "BAD_LENGTH",
        regs::STATUS_BAD_ADDRESS => "BAD_ADDRESS",
        other => return format!("status {other}"),
    };
    name.into()
}
