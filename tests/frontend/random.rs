//! Numbers at random, the same each time.

/// Xorshift.
pub struct Random(pub u64);

impl Random {
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
