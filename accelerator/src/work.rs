//! Types that the channels and the executor exchange: the work of a channel, and its outcome.

use super::regs::*;
use crate::dma::{Access, DmaCause, Pasid};

/// Maximum number of data bytes that one slice processes. Bounds the delay of the other channels
/// and of a request to stop the channel.
pub const SLICE_BYTES: usize = 64 << 10;

/// The error that stopped a channel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ChannelError {
    /// `ERROR_*`.
    pub code: u32,
    /// Status of the descriptor, for [`ERROR_DESCRIPTOR`].
    pub status: u8,
    /// Address of the failed access, or 0.
    pub address: u64,
}

impl ChannelError {
    /// Returns an error without descriptor status and address.
    pub fn plain(code: u32) -> Self {
        Self { code, ..Default::default() }
    }
}

/// Attributes of the accesses of a slice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Requester {
    /// PASID of the accesses.
    pub pasid: Option<Pasid>,
    /// Whether a translation fault stalls the work until the page is requested, instead of
    /// ending it.
    pub page_requests: bool,
}

/// Work that accesses memory.
#[derive(Debug, PartialEq, Eq)]
pub enum Work {
    /// Fetch the descriptor at the address and start it.
    Fetch(u64),
    /// Process the next piece of an operation.
    Process(Operation),
    /// Report the completion of a descriptor.
    Complete(Completed),
}

/// The task of a slice.
#[derive(Debug, PartialEq, Eq)]
pub enum Task {
    /// Execute the work.
    Execute(Work),
    /// End the work with its fault: the page request failed.
    Abort(Stall),
}

/// Outcome of a task.
#[derive(Debug, PartialEq, Eq)]
pub enum Outcome {
    /// The descriptor is in progress; this is its next work.
    Continue(Work),
    /// A translation fault stalls the work.
    Stalled(Stall),
    /// The descriptor is complete and its completion record is written.
    Complete {
        /// Whether the descriptor requests an interrupt.
        interrupt: bool,
    },
    /// The channel stops.
    Failed(ChannelError),
}

/// Pages that an access requires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MissingPages {
    /// Direction of the access.
    pub access: Access,
    /// First byte of the first page.
    pub first: u64,
    /// Number of pages, at least 1. The last one ends at or below 2^64 - 1.
    pub pages: u32,
}

/// Work that cannot continue until a page is accessible.
#[derive(Debug, PartialEq, Eq)]
pub struct Stall {
    /// The work to repeat.
    pub work: Work,
    /// The fault that stalled it.
    pub fault: Fault,
}

impl Stall {
    /// Returns the pages to request: the one that faulted and those after it that the rest of the
    /// buffer covers, at most `limit` (0 counts as 1) and [`MAX_GROUP_PAGES`].
    pub fn missing_pages(&self, limit: u32) -> MissingPages {
        let Fault { address, last, access, .. } = self.fault;
        let page = address / REQUEST_PAGE_SIZE;
        let following = last / REQUEST_PAGE_SIZE - page;
        let pages = following.min(limit.clamp(1, MAX_GROUP_PAGES) as u64 - 1) as u32 + 1;
        MissingPages { access, first: page * REQUEST_PAGE_SIZE, pages }
    }

    /// Returns the task that repeats the work.
    pub fn retry(self) -> Task {
        Task::Execute(self.work)
    }
}

/// An access that failed before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fault {
    /// First address that was not accessed.
    pub address: u64,
    /// Last address of the buffer.
    pub last: u64,
    /// Direction of the access.
    pub access: Access,
    /// Reason of the failure.
    pub cause: DmaCause,
    /// Whether the page was requested and the response was INVALID.
    pub page_request_failed: bool,
}

impl Fault {
    /// Returns whether a page request can resolve the fault.
    pub fn is_recoverable(&self) -> bool {
        self.cause != DmaCause::NotMemory
    }

    fn status(&self) -> u8 {
        if self.is_recoverable() { STATUS_FAULT } else { STATUS_BUS_ERROR }
    }

    fn flags(&self) -> u8 {
        let write = if self.access == Access::Write { FAULT_WRITE } else { 0 };
        let request = if self.page_request_failed { FAULT_PAGE_REQUEST } else { 0 };
        write | request
    }

    /// Returns the outcome for a channel that the fault stops. `fault` and `bus` are the error
    /// codes for a translation fault and a bus error.
    pub fn stops_channel(&self, fault: u32, bus: u32) -> Outcome {
        let code = if self.is_recoverable() { fault } else { bus };
        Outcome::Failed(ChannelError { code, status: 0, address: self.address })
    }
}

/// A descriptor in progress.
#[derive(Debug, PartialEq, Eq)]
pub struct Operation {
    /// The descriptor, which has been checked.
    pub descriptor: Descriptor,
    /// Number of bytes processed.
    pub done: u64,
    /// Result for the completion record.
    pub result: u64,
}

impl Operation {
    /// Starts a descriptor.
    ///
    /// # Errors
    /// The completion status of an invalid descriptor.
    pub fn new(descriptor: Descriptor) -> Result<Self, u8> {
        check(&descriptor)?;
        let result = match descriptor.opcode {
            OP_CRC32C => descriptor.operand as u32 as u64,
            _ => 0,
        };
        Ok(Self { descriptor, done: 0, result })
    }

    /// Returns the number of bytes that the next slice processes; 0 after the last.
    pub fn piece(&self) -> usize {
        let left = match self.descriptor.opcode {
            OP_NOOP => 0,
            _ => self.descriptor.length - self.done,
        };
        left.min(SLICE_BYTES as u64) as usize
    }

    /// Returns the rest of the source buffer.
    pub fn source(&self) -> Buffer {
        self.rest_of(self.descriptor.source)
    }

    /// Returns the rest of the destination buffer.
    pub fn destination(&self) -> Buffer {
        self.rest_of(self.descriptor.destination)
    }

    /// No sum overflows: `check` verified the last byte of both buffers.
    fn rest_of(&self, first: u64) -> Buffer {
        Buffer { next: first + self.done, last: first + (self.descriptor.length - 1) }
    }

    /// Completes the descriptor with `status`.
    pub fn complete(&self, status: u8) -> Completed {
        let record = Completion {
            status,
            tag: self.descriptor.tag,
            bytes_done: self.done,
            result: self.result,
            ..Default::default()
        };
        Completed { descriptor: self.descriptor, record }
    }

    /// Completes the descriptor with a fault.
    pub fn complete_with_fault(&self, fault: &Fault) -> Completed {
        let mut completed = self.complete(fault.status());
        completed.record.fault_flags = fault.flags();
        completed.record.fault_address = fault.address;
        completed
    }
}

/// Checks the fields of a descriptor.
///
/// # Errors
/// The completion status of an invalid descriptor.
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
    for (used, first) in [(reads, d.source), (writes, d.destination)] {
        if used && first.checked_add(d.length - 1).is_none() {
            return Err(STATUS_BAD_ADDRESS);
        }
    }
    Ok(())
}

/// A completed descriptor and its completion record.
#[derive(Debug, PartialEq, Eq)]
pub struct Completed {
    /// The descriptor.
    pub descriptor: Descriptor,
    /// Its completion record.
    pub record: Completion,
}

/// The rest of a buffer; both ends are inclusive.
#[derive(Clone, Copy)]
pub struct Buffer {
    /// Address of the next byte.
    pub next: u64,
    /// Address of the last byte.
    pub last: u64,
}

impl Buffer {
    /// Returns the buffer of `len` bytes (at least 1) at `next`; it ends at or below 2^64 - 1.
    pub fn at(next: u64, len: usize) -> Self {
        Self { next, last: next + (len as u64 - 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn missing_pages(address: u64, last: u64, limit: u32) -> (u64, u32) {
        let (access, cause) = (Access::Read, DmaCause::NotMapped);
        let fault = Fault { address, last, access, cause, page_request_failed: false };
        let missing = Stall { work: Work::Fetch(address), fault }.missing_pages(limit);
        (missing.first, missing.pages)
    }

    #[test]
    fn missing_pages_extend_from_fault_to_end_of_buffer() {
        assert_eq!(missing_pages(0x1fff, 0x1fff, 8), (0x1000, 1));
        assert_eq!(missing_pages(0x1fff, 0x2000, 8), (0x1000, 2));
        assert_eq!(missing_pages(0x1000, 0x8fff, 8), (0x1000, 8));
        assert_eq!(missing_pages(0x1000, 0x9000, 8), (0x1000, 8));
        assert_eq!(missing_pages(0x1000, 0x9000, 0), (0x1000, 1));
        assert_eq!(missing_pages(0, u64::MAX, u32::MAX), (0, MAX_GROUP_PAGES));
    }

    #[test]
    fn missing_pages_can_include_last_page_of_address_space() {
        assert_eq!(missing_pages(u64::MAX, u64::MAX, 8), (u64::MAX - 0xfff, 1));
        assert_eq!(missing_pages(u64::MAX - 0x1000, u64::MAX, 8), (u64::MAX - 0x1fff, 2));
    }
}
