//! Executes descriptors in bounded slices and reports translation faults.

use super::pri::Group;
use super::regs::*;
use super::work::*;
use crate::dma::{Access, Dma, DmaError};
use crate::faults::{FaultHandler, QueueFull};
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

/// Event that ends a descriptor before its last byte.
enum Stop {
    Mismatch,
    Fault(Fault),
}

/// Progress of a piece of data: number of bytes processed, and the event that stopped it.
type Progress = (usize, Option<Stop>);

/// Progress of an access: number of bytes accessed, and the fault that stopped it.
type Accessed = (usize, Option<Fault>);

/// Access to memory and to the fault handler during one slice.
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

    /// Stalls `work` at `fault`, or reports the fault and ends the work. If several accesses of a
    /// piece failed, `fault` is the one that limits the bytes done; the others are not reported.
    fn stop(&self, work: Work, fault: Fault) -> Outcome {
        if fault.is_recoverable() {
            if self.requester.page_requests {
                return Outcome::Stalled(Stall { work, fault });
            }
            self.faults.report(self.requester.pasid, fault.address, fault.access, fault.cause);
        }
        self.end(work, fault)
    }

    /// Ends `work` with `fault`.
    fn end(&self, work: Work, fault: Fault) -> Outcome {
        match work {
            Work::Fetch(_) => fault.stops_channel(ERROR_RING_FAULT, ERROR_RING_BUS),
            Work::Process(operation) => self.complete(operation.complete_with_fault(&fault)),
            Work::Complete(_) => fault.stops_channel(ERROR_COMPLETION_FAULT, ERROR_COMPLETION_BUS),
        }
    }

    /// Reports a completed descriptor: in the completion record if there is one, else in the
    /// registers of the channel.
    fn complete(&self, completed: Completed) -> Outcome {
        let Completed { descriptor, record } = &completed;
        let interrupt = descriptor.flags & FLAG_INTERRUPT != 0;
        if descriptor.flags & FLAG_COMPLETION == 0 {
            return complete_without_record(record, interrupt);
        }
        let address = descriptor.completion;
        if !address.is_multiple_of(COMPLETION_SIZE as u64) {
            let code = ERROR_COMPLETION_ALIGN;
            return Outcome::Failed(ChannelError { code, status: 0, address });
        }
        match self.write_record(address, record) {
            Ok(()) => Outcome::Complete { interrupt },
            Err(fault) => self.stop(Work::Complete(completed), fault),
        }
    }

    /// Writes a completion record. The first 8 bytes, which contain the status, are written last
    /// and in one access: a driver that polls the status finds the rest complete.
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
            let fault = Fault { address, last, access, cause, page_request_failed: false };
            (done.min(len), Some(fault))
        }
    }
}

fn complete_without_record(record: &Completion, interrupt: bool) -> Outcome {
    match record.status {
        STATUS_SUCCESS => Outcome::Complete { interrupt },
        status => {
            let address = record.fault_address;
            Outcome::Failed(ChannelError { code: ERROR_DESCRIPTOR, status, address })
        }
    }
}

/// Executes the work of an accelerator's channels, one slice at a time.
pub struct Executor {
    dma: Arc<dyn Dma>,
    faults: Arc<dyn FaultHandler>,
    buffers: Buffers,
}

/// A piece of each buffer of a descriptor.
type Buffers = [Box<[u8]>; 2];

impl Executor {
    /// Creates an executor whose accesses go through `dma`.
    pub fn new(dma: Arc<dyn Dma>, faults: Arc<dyn FaultHandler>) -> Self {
        let buffers = [(); 2].map(|()| vec![0; SLICE_BYTES].into_boxed_slice());
        Self { dma, faults, buffers }
    }

    /// Executes one slice: fetches a descriptor if none is in progress, processes at most
    /// [`SLICE_BYTES`] bytes of data, and writes the completion record after the last of them.
    pub fn execute(&mut self, requester: Requester, task: Task) -> Outcome {
        let bus = Bus { dma: &*self.dma, faults: &*self.faults, requester };
        match task {
            Task::Execute(Work::Fetch(address)) => fetch(&bus, address, &mut self.buffers),
            Task::Execute(Work::Process(operation)) => process(&bus, operation, &mut self.buffers),
            Task::Execute(Work::Complete(completed)) => bus.complete(completed),
            Task::Abort(Stall { work, fault }) => {
                bus.end(work, Fault { page_request_failed: true, ..fault })
            }
        }
    }

    /// Submits the page requests of `group`.
    ///
    /// # Errors
    /// [`QueueFull`] if the handler cannot queue the group; no request has been submitted then.
    pub fn request_pages(&self, group: &Group) -> Result<(), QueueFull> {
        group.requests().try_for_each(|request| self.faults.request(request))
    }
}

/// Fetches a descriptor and processes its first piece.
fn fetch(bus: &Bus, address: u64, buffers: &mut Buffers) -> Outcome {
    let mut bytes = [0; DESCRIPTOR_SIZE];
    if let (_, Some(fault)) = bus.read(Buffer::at(address, DESCRIPTOR_SIZE), &mut bytes) {
        return bus.stop(Work::Fetch(address), fault);
    }
    let descriptor = Descriptor::from_bytes(&bytes);
    match Operation::new(descriptor) {
        Ok(operation) => process(bus, operation, buffers),
        Err(status) => {
            let record = Completion { status, tag: descriptor.tag, ..Default::default() };
            bus.complete(Completed { descriptor, record })
        }
    }
}

/// Processes the next piece of `operation`, and completes the descriptor after the last one.
fn process(bus: &Bus, mut operation: Operation, buffers: &mut Buffers) -> Outcome {
    let piece = operation.piece();
    let [first, second] = buffers;
    let (done, stop) =
        process_piece(bus, &mut operation, &mut first[..piece], &mut second[..piece]);
    operation.done += done as u64;
    match stop {
        None if operation.piece() > 0 => Outcome::Continue(Work::Process(operation)),
        None => bus.complete(operation.complete(STATUS_SUCCESS)),
        Some(Stop::Mismatch) => {
            operation.result = operation.done;
            bus.complete(operation.complete(STATUS_MISMATCH))
        }
        Some(Stop::Fault(fault)) => bus.stop(Work::Process(operation), fault),
    }
}

/// Processes one piece; the buffers have its length.
fn process_piece(
    bus: &Bus,
    operation: &mut Operation,
    first: &mut [u8],
    second: &mut [u8],
) -> Progress {
    match operation.descriptor.opcode {
        OP_COPY => copy(bus, operation, first),
        OP_FILL => fill(bus, operation, first),
        OP_COMPARE => compare(bus, operation, first, second),
        OP_CRC32C => crc32c(bus, operation, first),
        _ => (0, None),
    }
}

/// Writes also the bytes that were read before a fault, so that the bytes done are complete.
fn copy(bus: &Bus, operation: &Operation, buf: &mut [u8]) -> Progress {
    let (read, source_fault) = bus.read(operation.source(), buf);
    let (written, fault) = bus.write(operation.destination(), &buf[..read]);
    (written, fault.or(source_fault).map(Stop::Fault))
}

/// After a fault, a piece can start at any byte of the pattern.
fn fill(bus: &Bus, operation: &Operation, buf: &mut [u8]) -> Progress {
    let mut pattern = operation.descriptor.operand.to_le_bytes();
    pattern.rotate_left((operation.done % 8) as usize);
    for chunk in buf.chunks_mut(pattern.len()) {
        chunk.copy_from_slice(&pattern[..chunk.len()]);
    }
    let (written, fault) = bus.write(operation.destination(), buf);
    (written, fault.map(Stop::Fault))
}

fn compare(bus: &Bus, operation: &Operation, first: &mut [u8], second: &mut [u8]) -> Progress {
    let (read, source_fault) = bus.read(operation.source(), first);
    let (both, fault) = bus.read(operation.destination(), &mut second[..read]);
    let mut pairs = first[..both].iter().zip(&second[..both]);
    match pairs.position(|(a, b)| a != b) {
        Some(offset) => (offset, Some(Stop::Mismatch)),
        None => (both, fault.or(source_fault).map(Stop::Fault)),
    }
}

fn crc32c(bus: &Bus, operation: &mut Operation, buf: &mut [u8]) -> Progress {
    let (read, fault) = bus.read(operation.source(), buf);
    operation.result = ::crc32c::crc32c_append(operation.result as u32, &buf[..read]) as u64;
    (read, fault.map(Stop::Fault))
}
