//! Executes descriptors, one bounded turn at a time, and accounts for every fault.

use super::channel::ChannelError;
use super::pri::{Group, Wish};
use super::regs::*;
use crate::dma::{Access, Dma, DmaCause, DmaError, Pasid};
use crate::faults::{FaultHandler, QueueFull};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Most bytes of data in one turn: how long others wait for their turn, and whoever stops a
/// channel for the end of it.
pub const TURN_BYTES: usize = 64 << 10;

/// On whose behalf a turn makes its accesses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// The PASID of the accesses.
    pub pasid: Option<Pasid>,
    /// A fault does not end the work but makes it wait for pages.
    pub page_requests: bool,
}

/// A piece of work that makes accesses.
#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    /// Read the descriptor at the address and begin with it.
    Fetch(u64),
    /// Go on with a descriptor.
    Run(Job),
    /// Tell the driver how a descriptor has ended.
    Tell(Ending),
}

/// What a channel has to do next.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Work from where it stands.
    Do(Work),
    /// End work whose page requests were refused.
    GiveUp(Stall),
}

/// What became of a task.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// There is more to do for the descriptor.
    More(Work),
    /// A fault stopped the work: it needs pages to go on.
    Stalled(Stall),
    /// The descriptor is complete, its record is written.
    Complete {
        /// The descriptor asks for an interrupt.
        interrupt: bool,
    },
    /// The channel cannot go on.
    Failed(ChannelError),
}

/// Work that cannot go on before a page is there.
#[derive(Debug, PartialEq, Eq)]
pub struct Stall {
    work: Work,
    fault: Fault,
}

impl Stall {
    /// The pages to ask for: the missing one, and those behind it that the rest of the buffer
    /// touches; at most `most` (0 counts as 1) and [`MAX_GROUP_PAGES`] of them.
    pub fn wish(&self, most: u32) -> Wish {
        let Fault { address, last, access, .. } = self.fault;
        let page = |address: u64| address / REQUEST_PAGE_SIZE;
        let more = (page(last) - page(address)).min(most.clamp(1, MAX_GROUP_PAGES) as u64 - 1);
        let first = page(address) * REQUEST_PAGE_SIZE;
        Wish { access, first, pages: more as u32 + 1 }
    }

    /// Tries again from where the work stands.
    pub fn retry(self) -> Task {
        Task::Do(self.work)
    }

    /// Ends the work with its fault.
    pub fn give_up(self) -> Task {
        Task::GiveUp(self)
    }
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

    fn source(&self) -> Buffer {
        self.rest_of(self.descriptor.source)
    }

    fn destination(&self) -> Buffer {
        self.rest_of(self.descriptor.destination)
    }

    /// No sum overflows: `check` has looked at the last byte of both buffers.
    fn rest_of(&self, first: u64) -> Buffer {
        let last = first + (self.descriptor.length - 1);
        Buffer { next: first + self.done, last }
    }

    fn ends(&self, status: u8) -> Ending {
        let record = Completion {
            status,
            tag: self.descriptor.tag,
            bytes_done: self.done,
            result: self.result,
            ..Default::default()
        };
        Ending { descriptor: self.descriptor, record }
    }

    fn ends_by(&self, fault: &Fault) -> Ending {
        let mut ending = self.ends(fault.status());
        ending.record.fault_flags = fault.flags();
        ending.record.fault_address = fault.address;
        ending
    }
}

/// A descriptor that has ended, and how.
#[derive(Debug, PartialEq, Eq)]
pub struct Ending {
    descriptor: Descriptor,
    record: Completion,
}

/// What is left of a buffer; both ends belong to it.
#[derive(Clone, Copy)]
struct Buffer {
    next: u64,
    last: u64,
}

impl Buffer {
    /// `len` bytes (not 0) from `next`, which do not reach beyond 2^64 - 1.
    fn at(next: u64, len: usize) -> Self {
        Self { next, last: next + (len as u64 - 1) }
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Fault {
    address: u64,
    /// The last address of the buffer.
    last: u64,
    access: Access,
    cause: DmaCause,
    /// The page was asked for in vain.
    refused: bool,
}

impl Fault {
    /// Whether a page request can help.
    fn is_recoverable(&self) -> bool {
        self.cause != DmaCause::NotMemory
    }

    fn status(&self) -> u8 {
        if self.is_recoverable() { STATUS_FAULT } else { STATUS_BUS_ERROR }
    }

    fn flags(&self) -> u8 {
        let write = if self.access == Access::Write { FAULT_WRITE } else { 0 };
        let refused = if self.refused { FAULT_PAGE_REQUEST } else { 0 };
        write | refused
    }

    /// The channel stops, where `fault` and `bus` are the codes for the two kinds.
    fn stops_channel(&self, fault: u32, bus: u32) -> Outcome {
        let code = if self.is_recoverable() { fault } else { bus };
        Outcome::Failed(ChannelError { code, status: 0, address: self.address })
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

/// The way to memory for one turn.
struct Bus<'a> {
    dma: &'a dyn Dma,
    faults: &'a dyn FaultHandler,
    requester: Requester,
}

impl Bus<'_> {
    fn read(&self, from: Buffer, buf: &mut [u8]) -> Accessed {
        let result = self.dma.read(self.requester.pasid, from.next, buf);
        accessed(Access::Read, from.last, buf.len(), result)
    }

    fn write(&self, to: Buffer, buf: &[u8]) -> Accessed {
        let result = self.dma.write(self.requester.pasid, to.next, buf);
        accessed(Access::Write, to.last, buf.len(), result)
    }

    /// What becomes of `work` that `fault` has stopped. Several accesses of one piece can fail;
    /// only the one that counts for the driver is asked for or reported.
    fn stopped(&self, work: Work, fault: Fault) -> Outcome {
        if fault.is_recoverable() {
            if self.requester.page_requests {
                return Outcome::Stalled(Stall { work, fault });
            }
            self.faults.report(self.requester.pasid, fault.address, fault.access, fault.cause);
        }
        self.ended(work, fault)
    }

    /// Ends `work` with `fault`.
    fn ended(&self, work: Work, fault: Fault) -> Outcome {
        match work {
            Work::Fetch(_) => fault.stops_channel(ERROR_RING_FAULT, ERROR_RING_BUS),
            Work::Run(job) => self.tell(job.ends_by(&fault)),
            Work::Tell(_) => fault.stops_channel(ERROR_COMPLETION_FAULT, ERROR_COMPLETION_BUS),
        }
    }

    /// Tells the driver how a descriptor has ended: in the record, else in the channel's
    /// registers.
    fn tell(&self, ending: Ending) -> Outcome {
        let Ending { descriptor, record } = &ending;
        let interrupt = descriptor.flags & FLAG_INTERRUPT != 0;
        if descriptor.flags & FLAG_COMPLETION == 0 {
            return without_record(record, interrupt);
        }
        let address = descriptor.completion;
        if !address.is_multiple_of(COMPLETION_SIZE as u64) {
            let code = ERROR_COMPLETION_ALIGN;
            return Outcome::Failed(ChannelError { code, status: 0, address });
        }
        match self.write_record(address, record) {
            Ok(()) => Outcome::Complete { interrupt },
            Err(fault) => self.stopped(Work::Tell(ending), fault),
        }
    }

    /// The first 8 bytes go last, and in one piece: they tell a poller that the rest is there.
    fn write_record(&self, address: u64, record: &Completion) -> Result<(), Fault> {
        let bytes = record.to_bytes();
        let (first, rest) = bytes.split_at(8);
        for (at, part) in [(address + 8, rest), (address, first)] {
            fence(Ordering::Release);
            if let (_, Some(fault)) = self.write(Buffer::at(at, part.len()), part) {
                return Err(fault);
            }
        }
        Ok(())
    }
}

fn accessed(access: Access, last: u64, len: usize, result: Result<(), DmaError>) -> Accessed {
    match result {
        Ok(()) => (len, None),
        Err(DmaError { address, done, cause }) => {
            (done.min(len), Some(Fault { address, last, access, cause, refused: false }))
        }
    }
}

fn without_record(record: &Completion, interrupt: bool) -> Outcome {
    match record.status {
        STATUS_SUCCESS => Outcome::Complete { interrupt },
        status => {
            let address = record.fault_address;
            Outcome::Failed(ChannelError { code: ERROR_DESCRIPTOR, status, address })
        }
    }
}

/// Does the work of one accelerator's channels, one turn at a time.
pub struct Executor {
    dma: Arc<dyn Dma>,
    faults: Arc<dyn FaultHandler>,
    buffers: Buffers,
}

/// Room for a piece of both buffers of a descriptor.
type Buffers = [Box<[u8]>; 2];

impl Executor {
    /// An executor whose accesses go through `dma`.
    pub fn new(dma: Arc<dyn Dma>, faults: Arc<dyn FaultHandler>) -> Self {
        let buffers = [(); 2].map(|()| vec![0; TURN_BYTES].into_boxed_slice());
        Self { dma, faults, buffers }
    }

    /// One turn: reads a descriptor if need be, works on at most [`TURN_BYTES`] bytes of data
    /// and writes the completion record after the last of them.
    pub fn turn(&mut self, requester: Requester, task: Task) -> Outcome {
        let bus = Bus { dma: &*self.dma, faults: &*self.faults, requester };
        match task {
            Task::Do(Work::Fetch(address)) => fetch(&bus, address, &mut self.buffers),
            Task::Do(Work::Run(job)) => step(&bus, job, &mut self.buffers),
            Task::Do(Work::Tell(ending)) => bus.tell(ending),
            Task::GiveUp(Stall { work, fault }) => {
                bus.ended(work, Fault { refused: true, ..fault })
            }
        }
    }

    /// Makes the requests of `group`.
    ///
    /// # Errors
    /// If there is no room for them; then none is made.
    pub fn ask(&self, group: &Group) -> Result<(), QueueFull> {
        group.requests().try_for_each(|request| self.faults.request(request))
    }
}

/// Reads a descriptor and begins with it.
fn fetch(bus: &Bus, address: u64, buffers: &mut Buffers) -> Outcome {
    let mut bytes = [0; DESCRIPTOR_SIZE];
    if let (_, Some(fault)) = bus.read(Buffer::at(address, DESCRIPTOR_SIZE), &mut bytes) {
        return bus.stopped(Work::Fetch(address), fault);
    }
    let descriptor = Descriptor::from_bytes(&bytes);
    match Job::new(descriptor) {
        Ok(job) => step(bus, job, buffers),
        Err(status) => {
            let record = Completion { status, tag: descriptor.tag, ..Default::default() };
            bus.tell(Ending { descriptor, record })
        }
    }
}

/// Works on the next piece of `job`, and completes the descriptor after the last one.
fn step(bus: &Bus, mut job: Job, buffers: &mut Buffers) -> Outcome {
    let piece = job.piece();
    let [first, second] = buffers;
    let (done, stop) = work(bus, &mut job, &mut first[..piece], &mut second[..piece]);
    job.done += done as u64;
    match stop {
        None if job.piece() > 0 => Outcome::More(Work::Run(job)),
        None => bus.tell(job.ends(STATUS_SUCCESS)),
        Some(Stop::Mismatch) => {
            job.result = job.done;
            bus.tell(job.ends(STATUS_MISMATCH))
        }
        Some(Stop::Fault(fault)) => bus.stopped(Work::Run(job), fault),
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

/// A fault can make a piece start at any byte of the pattern.
fn fill(bus: &Bus, job: &Job, buf: &mut [u8]) -> Progress {
    let mut pattern = job.descriptor.operand.to_le_bytes();
    pattern.rotate_left((job.done % 8) as usize);
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

#[cfg(test)]
mod tests {
    use super::*;

    fn wish(address: u64, last: u64, most: u32) -> (u64, u32) {
        let (address, last) = (address, last);
        let (access, cause) = (Access::Read, DmaCause::NotMapped);
        let fault = Fault { address, last, access, cause, refused: false };
        let wish = Stall { work: Work::Fetch(address), fault }.wish(most);
        (wish.first, wish.pages)
    }

    #[test]
    fn pages_are_asked_for_from_the_fault_to_the_end_of_the_buffer() {
        assert_eq!(wish(0x1fff, 0x1fff, 8), (0x1000, 1));
        assert_eq!(wish(0x1fff, 0x2000, 8), (0x1000, 2));
        assert_eq!(wish(0x1000, 0x8fff, 8), (0x1000, 8));
        assert_eq!(wish(0x1000, 0x9000, 8), (0x1000, 8));
        assert_eq!(wish(0x1000, 0x9000, 0), (0x1000, 1));
        assert_eq!(wish(0, u64::MAX, u32::MAX), (0, MAX_GROUP_PAGES));
    }

    #[test]
    fn the_last_page_there_is_can_be_asked_for() {
        assert_eq!(wish(u64::MAX, u64::MAX, 8), (u64::MAX - 0xfff, 1));
        assert_eq!(wish(u64::MAX - 0x1000, u64::MAX, 8), (u64::MAX - 0x1fff, 2));
    }
}
