//! Executes descriptors, one bounded turn at a time, and accounts for every fault.

use super::FaultReporter;
use super::channel::ChannelError;
use super::regs::*;
use crate::address::{Iova, Pasid};
use crate::host::Access;
use crate::host::dma::{Dma, DmaCause, DmaError};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Most bytes of data in one turn: how long others wait for their turn, and whoever stops a
/// channel for the end of it.
pub const TURN_BYTES: usize = 64 << 10;

/// What a channel has to do next.
#[derive(Debug)]
pub enum Task {
    /// Read the descriptor at the address and begin with it.
    Fetch(Iova),
    /// Go on with a descriptor.
    Run(Job),
}

/// What became of a task.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is more to do for the descriptor.
    More(Job),
    /// The descriptor is complete, its record is written.
    Complete {
        /// The descriptor asks for an interrupt.
        interrupt: bool,
    },
    /// The channel cannot go on.
    Failed(ChannelError),
}

/// A descriptor under way.
#[derive(Debug, PartialEq, Eq)]
pub struct Job {
    descriptor: Descriptor,
    done: u64,
    result: u64,
}

impl Job {
    /// Begins with a descriptor, or tells with which status it is refused.
    fn new(descriptor: Descriptor) -> Result<Self, u8> {
        check(&descriptor)?;
        let result = match descriptor.opcode {
            OP_CRC32C => descriptor.operand as u32 as u64,
            _ => 0,
        };
        Ok(Self { descriptor, done: 0, result })
    }

    /// Bytes of the next turn.
    fn piece(&self) -> usize {
        let left = match self.descriptor.opcode {
            OP_NOOP => 0,
            _ => self.descriptor.length - self.done,
        };
        left.min(TURN_BYTES as u64) as usize
    }

    // Neither sum overflows: `check` has looked at the last byte of both buffers.

    fn source(&self) -> Iova {
        Iova(self.descriptor.source + self.done)
    }

    fn destination(&self) -> Iova {
        Iova(self.descriptor.destination + self.done)
    }
}

/// Refuses, with a status, what the descriptor alone shows to be wrong.
fn check(d: &Descriptor) -> Result<(), u8> {
    let (reads, writes) = match d.opcode {
        OP_NOOP => (false, false),
        OP_COPY | OP_COMPARE => (true, true),
        OP_FILL => (false, true),
        OP_CRC32C => (true, false),
        _ => return Err(STATUS_BAD_OPCODE),
    };
    if d.flags & !(FLAG_COMPLETION | FLAG_INTERRUPT) != 0
        || d.reserved0 != 0
        || d.reserved1 != [0; 2]
    {
        return Err(STATUS_BAD_FLAGS);
    }
    if d.opcode != OP_NOOP && !(1..=MAX_LENGTH).contains(&d.length) {
        return Err(STATUS_BAD_LENGTH);
    }
    let fits = |used: bool, first: u64| !used || first.checked_add(d.length - 1).is_some();
    if !fits(reads, d.source) || !fits(writes, d.destination) {
        return Err(STATUS_BAD_ADDRESS);
    }
    Ok(())
}

/// An access that stopped before its end.
#[derive(Clone, Copy, Debug)]
struct Fault {
    address: Iova,
    access: Access,
    cause: DmaCause,
}

impl Fault {
    fn status(&self) -> u8 {
        match self.cause {
            DmaCause::NotMemory => STATUS_BUS_ERROR,
            DmaCause::NoDomain | DmaCause::NotMapped => STATUS_FAULT,
        }
    }

    /// The channel's error where `fault` and `bus` are its codes for the two kinds.
    fn stops_channel(&self, fault: u32, bus: u32) -> ChannelError {
        let code = if self.status() == STATUS_FAULT { fault } else { bus };
        ChannelError { code, status: 0, address: self.address.0 }
    }
}

/// Why a descriptor ends before its last byte.
enum Stop {
    Mismatch,
    Fault(Fault),
}

/// How far a piece of work came: bytes done, and what stopped it there.
type Progress = (usize, Option<Stop>);

/// How far an access came: bytes done, and what stopped it there.
type Accessed = (usize, Option<Fault>);

/// The way to memory, with the PASID of the channel whose turn it is.
struct Bus<'a> {
    dma: &'a dyn Dma,
    faults: &'a dyn FaultReporter,
    pasid: Option<Pasid>,
}

impl Bus<'_> {
    fn read(&self, address: Iova, buf: &mut [u8]) -> Accessed {
        let result = self.dma.read(self.pasid, address, buf);
        self.accessed(Access::READ, buf.len(), result)
    }

    fn write(&self, address: Iova, buf: &[u8]) -> Accessed {
        let result = self.dma.write(self.pasid, address, buf);
        self.accessed(Access::WRITE, buf.len(), result)
    }

    fn accessed(&self, access: Access, len: usize, result: Result<(), DmaError>) -> Accessed {
        match result {
            Ok(()) => (len, None),
            Err(DmaError { address, done, cause }) => {
                (done.min(len), Some(Fault { address, access, cause }))
            }
        }
    }

    /// Tells the fault path what stopped the work. Several accesses of one piece can fail;
    /// only the one that the driver is told of is reported.
    fn report(&self, fault: &Fault) {
        if fault.cause != DmaCause::NotMemory {
            self.faults.report(self.pasid, fault.address, fault.access, fault.cause);
        }
    }

    fn fetch(&self, address: Iova) -> Result<Descriptor, ChannelError> {
        let mut bytes = [0; DESCRIPTOR_SIZE];
        let (_, fault) = self.read(address, &mut bytes);
        self.channel_fault(fault, ERROR_RING_FAULT, ERROR_RING_BUS)?;
        Ok(Descriptor::from_bytes(&bytes))
    }

    /// The first 8 bytes go last, and in one piece: they tell a poller that the rest is there.
    fn write_record(&self, address: u64, record: &Completion) -> Result<(), ChannelError> {
        if !address.is_multiple_of(COMPLETION_SIZE as u64) {
            return Err(ChannelError { code: ERROR_COMPLETION_ALIGN, status: 0, address });
        }
        let bytes = record.to_bytes();
        let (first, rest) = bytes.split_at(8);
        for (at, part) in [(address + 8, rest), (address, first)] {
            fence(Ordering::Release);
            let (_, fault) = self.write(Iova(at), part);
            self.channel_fault(fault, ERROR_COMPLETION_FAULT, ERROR_COMPLETION_BUS)?;
        }
        Ok(())
    }

    fn channel_fault(
        &self,
        stopped: Option<Fault>,
        fault: u32,
        bus: u32,
    ) -> Result<(), ChannelError> {
        let Some(stopped) = stopped else { return Ok(()) };
        self.report(&stopped);
        Err(stopped.stops_channel(fault, bus))
    }
}

/// Does the work of one accelerator's channels, one turn at a time.
pub struct Executor {
    dma: Arc<dyn Dma>,
    faults: Arc<dyn FaultReporter>,
    first: Box<[u8]>,
    second: Box<[u8]>,
}

impl Executor {
    /// An executor whose accesses go through `dma`.
    pub fn new(dma: Arc<dyn Dma>, faults: Arc<dyn FaultReporter>) -> Self {
        let buffer = || vec![0; TURN_BYTES].into_boxed_slice();
        Self { dma, faults, first: buffer(), second: buffer() }
    }

    /// One turn: reads a descriptor if need be, works on at most [`TURN_BYTES`] bytes of data
    /// and writes the completion record after the last of them.
    pub fn turn(&mut self, pasid: Option<Pasid>, task: Task) -> Outcome {
        let bus = Bus { dma: &*self.dma, faults: &*self.faults, pasid };
        match task {
            Task::Run(job) => step(&bus, job, &mut self.first, &mut self.second),
            Task::Fetch(address) => match bus.fetch(address) {
                Err(error) => Outcome::Failed(error),
                Ok(descriptor) => match Job::new(descriptor) {
                    Ok(job) => step(&bus, job, &mut self.first, &mut self.second),
                    Err(status) => refuse(&bus, &descriptor, status),
                },
            },
        }
    }
}

/// Works on the next piece of `job`, and completes the descriptor after the last one.
fn step(bus: &Bus, mut job: Job, first: &mut [u8], second: &mut [u8]) -> Outcome {
    let piece = job.piece();
    let (done, stop) = work(bus, &mut job, &mut first[..piece], &mut second[..piece]);
    job.done += done as u64;
    match stop {
        None if job.piece() > 0 => Outcome::More(job),
        None => finish(bus, &job, STATUS_SUCCESS, None),
        Some(Stop::Mismatch) => {
            job.result = job.done;
            finish(bus, &job, STATUS_MISMATCH, None)
        }
        Some(Stop::Fault(fault)) => finish(bus, &job, fault.status(), Some(fault)),
    }
}

/// Does one piece; the buffers are as long as the piece.
fn work(bus: &Bus, job: &mut Job, first: &mut [u8], second: &mut [u8]) -> Progress {
    match job.descriptor.opcode {
        OP_COPY => copy(bus, job, first),
        OP_FILL => fill(bus, job, first),
        OP_COMPARE => compare(bus, job, first, second),
        OP_CRC32C => crc32c(bus, job, first),
        _ => (0, None),
    }
}

/// What was read before a fault is still written, so that the bytes done are all done.
fn copy(bus: &Bus, job: &Job, buf: &mut [u8]) -> Progress {
    let (read, source_fault) = bus.read(job.source(), buf);
    let (written, fault) = bus.write(job.destination(), &buf[..read]);
    (written, fault.or(source_fault).map(Stop::Fault))
}

/// Each piece starts a multiple of 8 bytes after the first one.
fn fill(bus: &Bus, job: &Job, buf: &mut [u8]) -> Progress {
    let pattern = job.descriptor.operand.to_le_bytes();
    for chunk in buf.chunks_mut(pattern.len()) {
        chunk.copy_from_slice(&pattern[..chunk.len()]);
    }
    let (written, fault) = bus.write(job.destination(), buf);
    (written, fault.map(Stop::Fault))
}

fn compare(bus: &Bus, job: &Job, first: &mut [u8], second: &mut [u8]) -> Progress {
    let (read, source_fault) = bus.read(job.source(), first);
    let (both, fault) = bus.read(job.destination(), &mut second[..read]);
    let mut pairs = first[..both].iter().zip(&second[..both]);
    match pairs.position(|(a, b)| a != b) {
        Some(offset) => (offset, Some(Stop::Mismatch)),
        None => (both, fault.or(source_fault).map(Stop::Fault)),
    }
}

fn crc32c(bus: &Bus, job: &mut Job, buf: &mut [u8]) -> Progress {
    let (read, fault) = bus.read(job.source(), buf);
    job.result = ::crc32c::crc32c_append(job.result as u32, &buf[..read]) as u64;
    (read, fault.map(Stop::Fault))
}

fn finish(bus: &Bus, job: &Job, status: u8, fault: Option<Fault>) -> Outcome {
    if let Some(fault) = &fault {
        bus.report(fault);
    }
    let wrote = fault.is_some_and(|fault| fault.access == Access::WRITE);
    let record = Completion {
        status,
        fault_flags: wrote as u8 * FAULT_WRITE,
        tag: job.descriptor.tag,
        bytes_done: job.done,
        fault_address: fault.map_or(0, |fault| fault.address.0),
        result: job.result,
        ..Default::default()
    };
    complete(bus, &job.descriptor, &record)
}

fn refuse(bus: &Bus, descriptor: &Descriptor, status: u8) -> Outcome {
    let record = Completion { status, tag: descriptor.tag, ..Default::default() };
    complete(bus, descriptor, &record)
}

/// Tells the driver how the descriptor ended: in the record, else in the channel's registers.
fn complete(bus: &Bus, descriptor: &Descriptor, record: &Completion) -> Outcome {
    let told = if descriptor.flags & FLAG_COMPLETION != 0 {
        bus.write_record(descriptor.completion, record)
    } else {
        without_record(record)
    };
    match told {
        Ok(()) => Outcome::Complete { interrupt: descriptor.flags & FLAG_INTERRUPT != 0 },
        Err(error) => Outcome::Failed(error),
    }
}

fn without_record(record: &Completion) -> Result<(), ChannelError> {
    match record.status {
        STATUS_SUCCESS => Ok(()),
        status => {
            Err(ChannelError { code: ERROR_DESCRIPTOR, status, address: record.fault_address })
        }
    }
}
