//! Memory that the program shares with a device.

use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};

use anyhow::{Result, anyhow};

use crate::crc32c::Crc32c;
use crate::sys;
use crate::vfio::{Protection, Space};

/// Page size in bytes.
pub const PAGE: usize = 4096;

/// Number of words of a page.
const WORDS: usize = PAGE / size_of::<u64>();

/// Access to memory that a device may change at any time.
pub trait Content {
    /// Fills the memory with pseudorandom words that depend on `seed`.
    fn scramble(&self, seed: u64);
    /// Returns whether every word is `pattern`.
    fn is_filled(&self, pattern: u64) -> bool;
    /// Returns the CRC-32C.
    fn crc(&self) -> u32;
    /// Returns byte `index`.
    fn byte(&self, index: usize) -> u8;
    /// Returns the size in bytes.
    fn bytes(&self) -> usize;
    /// Returns the virtual address in this process.
    fn address(&self) -> u64;
}

impl Content for [AtomicU64] {
    fn scramble(&self, seed: u64) {
        for (index, word) in self.iter().enumerate() {
            word.store(mix(seed << 32 ^ index as u64), Ordering::Relaxed);
        }
    }

    fn is_filled(&self, pattern: u64) -> bool {
        self.iter().all(|word| word.load(Ordering::Relaxed) == pattern)
    }

    fn crc(&self) -> u32 {
        let mut crc = Crc32c::default();
        self.iter().for_each(|word| crc.update(word.load(Ordering::Relaxed)));
        crc.value()
    }

    fn byte(&self, index: usize) -> u8 {
        let word = self[index / 8].load(Ordering::Relaxed);
        word.to_le_bytes()[index % 8]
    }

    fn bytes(&self) -> usize {
        size_of_val(self)
    }

    fn address(&self) -> u64 {
        self.as_ptr().addr() as u64
    }
}

/// Whole pages of memory that are never freed.
#[derive(Clone, Copy)]
pub struct Memory(&'static [AtomicU64]);

impl Memory {
    /// Allocates `count` zeroed pages.
    pub fn pages(count: usize) -> Result<Self> {
        let bytes = count * PAGE;
        sys::leak_pages(bytes)
            .map(Self)
            .map_err(|error| anyhow!("cannot allocate {bytes} bytes: {error}"))
    }

    pub fn words(self) -> &'static [AtomicU64] {
        self.0
    }

    /// Returns page `index`.
    pub fn page(self, index: usize) -> Self {
        Self(&self.0[index * WORDS..][..WORDS])
    }
}

impl Deref for Memory {
    type Target = [AtomicU64];

    fn deref(&self) -> &[AtomicU64] {
        self.0
    }
}

/// The output function of SplitMix64.
fn mix(value: u64) -> u64 {
    let value = value.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let value = (value ^ value >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let value = (value ^ value >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    value ^ value >> 31
}

/// A buffer that is contiguous for the device, although its pages are permuted in memory. A
/// mapping to a wrong page changes its content.
pub struct Scattered {
    memory: Memory,
    /// First IOVA.
    pub iova: u64,
}

impl Scattered {
    /// Allocates and maps `pages` pages, a power of two, with a separate mapping for each.
    pub fn map(space: &Space, iova: u64, pages: usize) -> Result<Self> {
        assert!(pages.is_power_of_two());
        let buffer = Self { memory: Memory::pages(pages)?, iova };
        for index in 0..pages {
            let address = iova + (index * PAGE) as u64;
            space.map(address, buffer.page(index), Protection::ReadWrite)?;
        }
        Ok(buffer)
    }

    pub fn unmap(&self, space: &Space) -> Result<()> {
        space.unmap(self.iova, self.bytes())
    }

    pub fn pages(&self) -> usize {
        self.memory.bytes() / PAGE
    }

    pub fn bytes(&self) -> usize {
        self.memory.bytes()
    }

    /// Returns page `index` in the device's order. An odd factor permutes a power of two.
    fn page(&self, index: usize) -> Memory {
        self.memory.page((index * 389 + 5) % self.pages())
    }

    pub fn scramble(&self, seed: u64) {
        self.memory.scramble(seed);
    }

    /// Returns byte `index` in the device's order.
    pub fn byte(&self, index: usize) -> u8 {
        self.page(index / PAGE).byte(index % PAGE)
    }

    /// Returns the CRC-32C in the device's order.
    pub fn crc(&self) -> u32 {
        let mut crc = Crc32c::default();
        for index in 0..self.pages() {
            self.page(index).iter().for_each(|word| crc.update(word.load(Ordering::Relaxed)));
        }
        crc.value()
    }
}
