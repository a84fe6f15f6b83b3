//! Addresses, identifiers and all range arithmetic of the crate.
//!
//! Ends of ranges are inclusive (`last`), as on the virtio-iommu wire, so that a range can
//! reach 2^64 - 1 without overflow.

use std::fmt;

/// An address as an endpoint issues it, before translation (I/O virtual address), in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// An endpoint of the virtual IOMMU: `segment << 16 | bus << 8 | device << 3 | function` for
/// PCI functions, as the VIOT table announces them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

/// A domain (address space) as the guest numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u32);

/// A process address space identifier, 20 bits, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(pub u32);

/// What an access does, or what a mapping allows.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Reads from memory.
    pub read: bool,
    /// Writes to memory.
    pub write: bool,
}

impl Access {
    /// A read.
    pub const READ: Access = Access { read: true, write: false };
    /// A write.
    pub const WRITE: Access = Access { read: false, write: true };
    /// Both.
    pub const READ_WRITE: Access = Access { read: true, write: true };

    /// Whether a mapping with these permissions lets `wanted` through.
    pub const fn allows(self, wanted: Access) -> bool {
        (self.read || !wanted.read) && (self.write || !wanted.write)
    }
}

impl fmt::Display for Iova {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for Gpa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl fmt::Display for DomainId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Display for Pasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Prints the PCI address that the identifier stands for.
impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        let (segment, bus) = (id >> 16, id >> 8 & 0xff);
        write!(f, "{segment:04x}:{bus:02x}:{:02x}.{}", id >> 3 & 0x1f, id & 7)
    }
}

/// A non-empty range of I/O virtual addresses; both ends belong to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IovaRange {
    first: u64,
    last: u64,
}

impl IovaRange {
    /// Every address there is.
    pub const ALL: IovaRange = IovaRange { first: 0, last: u64::MAX };

    /// The range from `first` to `last`, or `None` when `last` lies below `first`.
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// The lowest address.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// The highest address (inclusive).
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Number of bytes minus one: the full range has no size in 64 bits.
    pub const fn span(&self) -> u64 {
        self.last - self.first
    }

    /// Whether `address` belongs to the range.
    pub const fn contains(&self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }

    /// Whether all of `other` belongs to the range.
    pub const fn covers(&self, other: &IovaRange) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Whether the two ranges share an address.
    pub const fn overlaps(&self, other: &IovaRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// What is left of the range when `other` is taken out: up to two ranges, lowest first.
    pub fn without(&self, other: &IovaRange) -> impl Iterator<Item = IovaRange> + use<> {
        let below = other.first.checked_sub(1).map(|last| last.min(self.last));
        let above = other.last.checked_add(1).map(|first| first.max(self.first));
        let below = below.and_then(|last| Self::new(self.first, last));
        let above = above.and_then(|first| Self::new(first, self.last));
        below.into_iter().chain(above)
    }

    /// The addresses that both ranges have.
    pub fn common(&self, other: &IovaRange) -> Option<IovaRange> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// The whole granules (of a power of two of bytes) in the range.
    pub fn shrunk_to(&self, granule: u64) -> Option<IovaRange> {
        let first = self.first.checked_next_multiple_of(granule)?;
        match self.last.checked_add(1) {
            Some(end) => Self::new(first, (end & !(granule - 1)).checked_sub(1)?),
            None => Self::new(first, self.last),
        }
    }

    /// Whether both ends lie on boundaries of `granule` bytes (a power of two).
    pub const fn is_aligned(&self, granule: u64) -> bool {
        let mask = granule - 1;
        self.first & mask == 0 && self.last & mask == mask
    }
}

impl fmt::Display for IovaRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}-{:#x}", self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(first, last).unwrap()
    }

    #[test]
    fn what_is_left_without_another_range() {
        let left = |first, last| -> Vec<(u64, u64)> {
            let other = range(first, last);
            range(10, 20).without(&other).map(|part| (part.first, part.last)).collect()
        };
        assert_eq!(left(0, 9), [(10, 20)]);
        assert_eq!(left(21, 30), [(10, 20)]);
        assert_eq!(left(12, 14), [(10, 11), (15, 20)]);
        assert_eq!(left(0, 10), [(11, 20)]);
        assert_eq!(left(20, u64::MAX), [(10, 19)]);
        assert_eq!(left(0, u64::MAX), []);
        assert_eq!(IovaRange::ALL.without(&range(0, u64::MAX)).count(), 0);
        assert_eq!(IovaRange::ALL.without(&range(0, 0)).collect::<Vec<_>>(), [range(1, u64::MAX)]);
    }

    #[test]
    fn whole_granules_of_a_range() {
        assert_eq!(range(1, 0x2fff).shrunk_to(0x1000), Some(range(0x1000, 0x2fff)));
        assert_eq!(range(0, 0x2ffe).shrunk_to(0x1000), Some(range(0, 0x1fff)));
        assert_eq!(range(1, 0x1ffe).shrunk_to(0x1000), None);
        assert_eq!(range(0, 5).shrunk_to(0x1000), None);
        assert_eq!(IovaRange::ALL.shrunk_to(0x1000), Some(IovaRange::ALL));
        assert_eq!(range(u64::MAX, u64::MAX).shrunk_to(0x1000), None);
    }

    #[test]
    fn what_two_ranges_have_in_common() {
        assert_eq!(range(10, 20).common(&range(15, 30)), Some(range(15, 20)));
        assert_eq!(range(10, 20).common(&range(21, 30)), None);
    }
}
