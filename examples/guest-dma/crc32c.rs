//! CRC-32C on the CPU, independent of the accelerator's implementation.

/// The Castagnoli polynomial, with its bits reversed.
const POLYNOMIAL: u32 = 0x82f6_3b78;

const TABLE: [u32; 256] = table();

const fn table() -> [u32; 256] {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let mut value = index as u32;
        let mut bit = 0;
        while bit < 8 {
            value = value >> 1 ^ if value & 1 == 1 { POLYNOMIAL } else { 0 };
            bit += 1;
        }
        table[index] = value;
        index += 1;
    }
    table
}

/// An incremental checksum over 64-bit words.
pub struct Crc32c(u32);

impl Default for Crc32c {
    fn default() -> Self {
        Self(!0)
    }
}

impl Crc32c {
    /// Appends the bytes of a word.
    pub fn update(&mut self, word: u64) {
        for byte in word.to_le_bytes() {
            self.0 = self.0 >> 8 ^ TABLE[usize::from(self.0 as u8 ^ byte)];
        }
    }

    /// Returns the checksum of all bytes so far.
    pub fn value(&self) -> u32 {
        !self.0
    }
}
