//! Pseudorandom numbers, the same in every run.

/// An xorshift generator. The seed must not be 0.
///
/// ```
/// use testing::random::Random;
///
/// let mut random = Random(1);
/// assert!(random.below(6) < 6);
/// ```
pub struct Random(pub u64);

impl Random {
    /// Returns a number below `end`.
    pub fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 16) as usize % end
    }

    /// Returns `true` half of the time.
    pub fn coin(&mut self) -> bool {
        self.below(2) == 0
    }
}
