//! Addresses, identifiers, and all arithmetic on address ranges.
//!
//! Ends of ranges are inclusive (`last`), as in virtio-iommu requests, so that a range can end at
//! 2^64 - 1 without overflow.

use std::fmt;

/// An I/O virtual address: an address as an endpoint issues it, before translation, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Iova(pub u64);

/// A guest-physical address, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Gpa(pub u64);

/// An endpoint of the virtual IOMMU. The identifier of a PCI function is `segment << 16 | bus << 8 |
/// device << 3 | function`, as in the VIOT table.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct EndpointId(pub u32);

/// A domain (address space) of the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainId(pub u32);

/// A process address space identifier (PASID): 20 bits, not 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(pub u32);

/// The type of an access, or the permissions of a mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// Reads memory.
    pub read: bool,
    /// Writes memory.
    pub write: bool,
}

impl Access {
    /// A read.
    pub const READ: Access = Access { read: true, write: false };
    /// A write.
    pub const WRITE: Access = Access { read: false, write: true };
    /// A read and a write.
    pub const READ_WRITE: Access = Access { read: true, write: true };

    /// Returns whether a mapping with these permissions permits `access`.
    ///
    /// ```
    /// use vhost_user_iommu::address::Access;
    ///
    /// assert!(Access::READ_WRITE.allows(Access::WRITE));
    /// assert!(!Access::READ.allows(Access::READ_WRITE));
    /// ```
    pub const fn allows(self, access: Access) -> bool {
        (self.read || !access.read) && (self.write || !access.write)
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

/// Formats the identifier as a PCI address.
impl fmt::Display for EndpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let id = self.0;
        let (segment, bus) = (id >> 16, id >> 8 & 0xff);
        write!(f, "{segment:04x}:{bus:02x}:{:02x}.{}", id >> 3 & 0x1f, id & 7)
    }
}

/// A non-empty range of I/O virtual addresses. Both ends are inclusive.
///
/// ```
/// use vhost_user_iommu::address::IovaRange;
///
/// let range = IovaRange::new(0x1800, 0x4fff).unwrap();
/// assert_eq!(range.shrink_to_granule(0x1000), IovaRange::new(0x2000, 0x4fff));
/// assert_eq!(IovaRange::new(1, 0), None);
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct IovaRange {
    first: u64,
    last: u64,
}

impl IovaRange {
    /// All addresses.
    pub const ALL: IovaRange = IovaRange { first: 0, last: u64::MAX };

    /// Returns the range from `first` to `last`, or `None` if `last` is below `first`.
    pub const fn new(first: u64, last: u64) -> Option<Self> {
        if first <= last { Some(Self { first, last }) } else { None }
    }

    /// Returns the lowest address.
    pub const fn first(&self) -> u64 {
        self.first
    }

    /// Returns the highest address (inclusive).
    pub const fn last(&self) -> u64 {
        self.last
    }

    /// Returns the number of bytes minus one: the size of [`ALL`](Self::ALL) exceeds 64 bits.
    pub const fn span(&self) -> u64 {
        self.last - self.first
    }

    /// Returns whether `address` is in the range.
    pub const fn contains(&self, address: u64) -> bool {
        self.first <= address && address <= self.last
    }

    /// Returns whether all of `other` is in the range.
    pub const fn covers(&self, other: &IovaRange) -> bool {
        self.first <= other.first && other.last <= self.last
    }

    /// Returns whether the two ranges have an address in common.
    pub const fn overlaps(&self, other: &IovaRange) -> bool {
        self.first <= other.last && other.first <= self.last
    }

    /// Returns the parts of the range that are not in `other`: up to two, in ascending order.
    pub fn without(&self, other: &IovaRange) -> impl Iterator<Item = IovaRange> + use<> {
        let below = other.first.checked_sub(1).map(|last| last.min(self.last));
        let above = other.last.checked_add(1).map(|first| first.max(self.first));
        let below = below.and_then(|last| Self::new(self.first, last));
        let above = above.and_then(|first| Self::new(first, self.last));
        below.into_iter().chain(above)
    }

    /// Returns the addresses that are in both ranges.
    pub fn intersection(&self, other: &IovaRange) -> Option<IovaRange> {
        Self::new(self.first.max(other.first), self.last.min(other.last))
    }

    /// Returns the whole granules of the range. `granule` is a power of two, in bytes.
    pub fn shrink_to_granule(&self, granule: u64) -> Option<IovaRange> {
        let first = self.first.checked_next_multiple_of(granule)?;
        match self.last.checked_add(1) {
            Some(end) => Self::new(first, (end & !(granule - 1)).checked_sub(1)?),
            None => Self::new(first, self.last),
        }
    }

    /// Returns whether the range consists of whole granules. `granule` is a power of two, in bytes.
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
    fn without_returns_parts_below_and_above() {
        fn left(first: u64, last: u64) -> Vec<(u64, u64)> {
            let parts = range(10, 20).without(&range(first, last));
            parts.map(|part| (part.first, part.last)).collect()
        }
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
    fn shrink_to_granule_keeps_whole_granules() {
        assert_eq!(range(1, 0x2fff).shrink_to_granule(0x1000), Some(range(0x1000, 0x2fff)));
        assert_eq!(range(0, 0x2ffe).shrink_to_granule(0x1000), Some(range(0, 0x1fff)));
        assert_eq!(range(1, 0x1ffe).shrink_to_granule(0x1000), None);
        assert_eq!(range(0, 5).shrink_to_granule(0x1000), None);
        assert_eq!(IovaRange::ALL.shrink_to_granule(0x1000), Some(IovaRange::ALL));
        assert_eq!(range(u64::MAX, u64::MAX).shrink_to_granule(0x1000), None);
    }

    #[test]
    fn intersection_of_disjoint_ranges_is_empty() {
        assert_eq!(range(10, 20).intersection(&range(15, 30)), Some(range(15, 20)));
        assert_eq!(range(10, 20).intersection(&range(21, 30)), None);
    }
}
