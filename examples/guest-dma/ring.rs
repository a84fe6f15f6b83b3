//! The descriptor ring of a channel and its completion records.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use anyhow::{Result, anyhow};

use crate::memory::Memory;
use crate::regs::{self, Descriptor};

/// Number of entries of a ring. At most `ENTRIES - 1` can be pending.
pub const ENTRIES: usize = 16;

const DESCRIPTOR_WORDS: usize = regs::DESCRIPTOR_SIZE / 8;
const RECORD_WORDS: usize = regs::COMPLETION_SIZE / 8;
const DESCRIPTORS: usize = ENTRIES * regs::DESCRIPTOR_SIZE;

/// Memory and its address for the device.
#[derive(Clone, Copy)]
pub struct Area {
    pub words: &'static [AtomicU64],
    pub address: u64,
}

/// Descriptors and completion records. The record of an entry has the same index.
pub struct Ring {
    descriptors: Area,
    records: Area,
    tail: usize,
}

impl Ring {
    /// Places descriptors and records in one page, which has `address` for the device.
    pub fn in_page(page: Memory, address: u64) -> Self {
        let (descriptors, records) = page.words().split_at(DESCRIPTORS / 8);
        Self::new(
            Area { words: descriptors, address },
            Area { words: records, address: address + DESCRIPTORS as u64 },
        )
    }

    /// Places descriptors and records in separate memory of at least a page each.
    pub fn new(descriptors: Area, records: Area) -> Self {
        Self { descriptors, records, tail: 0 }
    }

    /// Returns the address of the descriptors for the device.
    pub fn address(&self) -> u64 {
        self.descriptors.address
    }

    /// Returns the index of the next free entry.
    pub fn tail(&self) -> usize {
        self.tail
    }

    /// Writes `work` to the next entry, with a completion record.
    pub fn push(&mut self, work: Descriptor, flags: u8) {
        self.clear_record(self.tail);
        let record = (self.tail * regs::COMPLETION_SIZE) as u64;
        self.write_descriptor(Descriptor {
            flags: regs::FLAG_COMPLETION | flags,
            tag: self.tail as u32,
            completion: self.records.address + record,
            ..work
        });
        self.tail = (self.tail + 1) % ENTRIES;
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
        let entry = &self.descriptors.words[self.tail * DESCRIPTOR_WORDS..][..DESCRIPTOR_WORDS];
        for (to, word) in entry.iter().zip(words) {
            to.store(word.to_le(), Ordering::Relaxed);
        }
    }

    /// Clears a record. Does not write to words that are 0, so that the device is the first to
    /// write to a new page.
    fn clear_record(&self, entry: usize) {
        for word in self.record_words(entry) {
            if word.load(Ordering::Relaxed) != 0 {
                word.store(0, Ordering::Relaxed);
            }
        }
    }

    fn record_words(&self, entry: usize) -> &'static [AtomicU64] {
        &self.records.words[entry * RECORD_WORDS..][..RECORD_WORDS]
    }

    /// Returns whether the record of an entry is not written yet.
    pub fn is_pending(&self, entry: usize) -> bool {
        let first = u64::from_le(self.record_words(entry)[0].load(Ordering::Acquire));
        first as u8 == regs::STATUS_PENDING
    }

    /// Decodes the record of an entry that is not pending.
    pub fn record(&self, entry: usize) -> Completion {
        fence(Ordering::Acquire);
        let words = self.record_words(entry);
        let word = |index: usize| u64::from_le(words[index].load(Ordering::Relaxed));
        let flags = (word(0) >> 8) as u8;
        Completion {
            status: word(0) as u8,
            write: flags & regs::FAULT_WRITE != 0,
            page_request: flags & regs::FAULT_PAGE_REQUEST != 0,
            bytes_done: word(1),
            fault_address: word(2),
            result: word(3),
        }
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

/// A decoded completion record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Completion {
    pub status: u8,
    /// For a fault: the access was a write.
    pub write: bool,
    /// For a fault: the response to the page request was INVALID.
    pub page_request: bool,
    pub bytes_done: u64,
    pub fault_address: u64,
    pub result: u64,
}

impl Completion {
    /// Checks that all of `length` bytes were processed.
    pub fn expect_success(&self, what: &str, length: u64) -> Result<()> {
        if self.status == regs::STATUS_SUCCESS && self.bytes_done == length {
            return Ok(());
        }
        Err(anyhow!("{what}: expected SUCCESS after {length} bytes, got {self}"))
    }

    /// Checks for an unrecoverable fault of an access to `address`, after `done` bytes.
    pub fn expect_fault(&self, what: &str, address: u64, write: bool, done: u64) -> Result<()> {
        self.expect(what, Self::fault(address, write, false, done))
    }

    /// Checks that the response to the page request for `address`, after `done` bytes, was INVALID.
    pub fn expect_invalid(&self, what: &str, address: u64, write: bool, done: u64) -> Result<()> {
        self.expect(what, Self::fault(address, write, true, done))
    }

    fn fault(fault_address: u64, write: bool, page_request: bool, bytes_done: u64) -> Self {
        let status = regs::STATUS_FAULT;
        Self { status, write, page_request, bytes_done, fault_address, result: 0 }
    }

    /// Compares with `expected`, except for the result.
    fn expect(&self, what: &str, expected: Self) -> Result<()> {
        if (Self { result: 0, ..*self }) == expected {
            return Ok(());
        }
        Err(anyhow!("{what}: expected {expected}, got {self}"))
    }
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, done) = (status_name(self.status), self.bytes_done);
        match self.status {
            regs::STATUS_FAULT | regs::STATUS_BUS_ERROR => {
                let access = if self.write { "write" } else { "read" };
                let response = if self.page_request { " (page request: INVALID)" } else { "" };
                write!(f, "{name}, {access} at {:#x} after {done} bytes", self.fault_address)?;
                f.write_str(response)
            }
            _ => write!(f, "{name} after {done} bytes"),
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
