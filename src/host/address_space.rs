//! The mappings of one domain.
//!
//! The software back end translates through them. The device model checks requests against them
//! for overlaps and splits, before a back end makes changes that cannot be rolled back.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::address::{Access, Gpa, Iova, IovaRange};

/// A mapping, as created by a MAP request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The I/O virtual addresses.
    pub range: IovaRange,
    /// The guest-physical address that the first of them translates to.
    pub gpa: Gpa,
    /// The permissions.
    pub access: Access,
}

/// The result of a translation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// Size of the contiguous range at that address minus one, in bytes.
    pub span: u64,
}

/// A change of the mappings that is not permitted. The mappings are unchanged.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MappingError {
    /// MAP of a range that overlaps a mapping.
    #[error("the range overlaps a mapping")]
    Overlap,
    /// UNMAP of a range that covers only a part of a mapping.
    #[error("the range would split a mapping")]
    Split,
}

/// A mapping in the tree, whose key is the first address.
#[derive(Clone, Copy)]
struct Entry {
    last: u64,
    gpa: u64,
    access: Access,
}

type Tree = BTreeMap<u64, Entry>;

/// The mappings of one domain.
///
/// ```
/// use vhost_user_iommu::address::{Access, Gpa, Iova, IovaRange};
/// use vhost_user_iommu::host::{AddressSpace, Mapping, MappingError};
///
/// let range = IovaRange::new(0x1000, 0x2fff).unwrap();
/// let space = AddressSpace::default();
/// space.check_unmapped(range)?;
/// space.insert(Mapping { range, gpa: Gpa(0x8000), access: Access::READ });
///
/// let gpa = |address, access| space.with_target(Iova(address), access, |target| target.gpa);
/// assert_eq!(gpa(0x1234, Access::READ), Some(Gpa(0x8234)));
/// assert_eq!(gpa(0x1234, Access::WRITE), None);
///
/// let half = IovaRange::new(0x1000, 0x1fff).unwrap();
/// assert_eq!(space.check_no_split(half), Err(MappingError::Split));
/// # Ok::<(), MappingError>(())
/// ```
#[derive(Default)]
pub struct AddressSpace {
    tree: RwLock<Tree>,
}

impl AddressSpace {
    /// Checks that nothing is mapped in `range`.
    ///
    /// # Errors
    /// [`MappingError::Overlap`] otherwise.
    pub fn check_unmapped(&self, range: IovaRange) -> Result<(), MappingError> {
        match last_before(&self.read(), range.last()) {
            Some((_, entry)) if entry.last >= range.first() => Err(MappingError::Overlap),
            _ => Ok(()),
        }
    }

    /// Adds a mapping whose range [`check_unmapped`](Self::check_unmapped) has accepted.
    pub fn insert(&self, mapping: Mapping) {
        let entry =
            Entry { last: mapping.range.last(), gpa: mapping.gpa.0, access: mapping.access };
        self.write().insert(mapping.range.first(), entry);
    }

    /// Checks that the removal of `range` splits no mapping.
    ///
    /// # Errors
    /// [`MappingError::Split`] otherwise.
    pub fn check_no_split(&self, range: IovaRange) -> Result<(), MappingError> {
        let tree = self.read();
        if is_one_mapping(&tree, range) {
            return Ok(());
        }
        let starts = [Some(range.first()), range.last().checked_add(1)];
        if starts.into_iter().flatten().any(|address| splits_mapping(&tree, address)) {
            return Err(MappingError::Split);
        }
        Ok(())
    }

    /// Removes all mappings in `range`, which [`check_no_split`](Self::check_no_split) has
    /// accepted. Returns their number. No access uses them after the call returns.
    pub fn remove(&self, range: IovaRange) -> usize {
        let mut tree = self.write();
        if is_one_mapping(&tree, range) {
            return usize::from(tree.remove(&range.first()).is_some());
        }
        tree.extract_if(range.first()..=range.last(), |_, _| true).count()
    }

    /// Returns the mappings that overlap `range`, in ascending order.
    pub fn mappings_in(&self, range: IovaRange) -> Vec<Mapping> {
        let tree = self.read();
        let first = match last_before(&tree, range.first()) {
            Some((first, entry)) if entry.last >= range.first() => first,
            _ => range.first(),
        };
        tree.range(first..=range.last()).map(|(&first, entry)| entry.mapping(first)).collect()
    }

    /// Returns the number of mappings.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Returns whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Translates `address` and calls `use_target` with the result, unless nothing is mapped there
    /// with the permissions for `access`. The mapping stays valid during the call: its removal
    /// waits, so `use_target` has to be short.
    pub fn with_target<T>(
        &self,
        address: Iova,
        access: Access,
        use_target: impl FnOnce(Target) -> T,
    ) -> Option<T> {
        let tree = self.read();
        let (first, entry) = last_before(&tree, address.0)?;
        let hit = entry.last >= address.0 && entry.access.allows(access);
        hit.then(|| use_target(entry.target(first, address)))
    }

    fn read(&self) -> RwLockReadGuard<'_, Tree> {
        self.tree.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, Tree> {
        self.tree.write().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Entry {
    fn mapping(&self, first: u64) -> Mapping {
        let range = IovaRange::new(first, self.last).expect("the tree holds valid ranges");
        Mapping { range, gpa: Gpa(self.gpa), access: self.access }
    }

    // The device model has checked that the last guest-physical address does not overflow.
    fn target(&self, first: u64, address: Iova) -> Target {
        Target { gpa: Gpa(self.gpa + (address.0 - first)), span: self.last - address.0 }
    }
}

/// Returns whether `range` is exactly one mapping: by far the most common UNMAP, and the cheapest
/// to check.
fn is_one_mapping(tree: &Tree, range: IovaRange) -> bool {
    tree.get(&range.first()).is_some_and(|entry| entry.last == range.last())
}

/// Returns whether a mapping begins below `address` and contains it.
fn splits_mapping(tree: &Tree, address: u64) -> bool {
    last_before(tree, address)
        .is_some_and(|(first, entry)| first < address && entry.last >= address)
}

/// Returns the mapping with the highest first address at or below `address`.
fn last_before(tree: &Tree, address: u64) -> Option<(u64, &Entry)> {
    tree.range(..=address).next_back().map(|(&first, entry)| (first, entry))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(first: u64, last: u64) -> IovaRange {
        IovaRange::new(first, last).unwrap()
    }

    fn space(ranges: &[(u64, u64)]) -> AddressSpace {
        let space = AddressSpace::default();
        for &(first, last) in ranges {
            let range = range(first, last);
            space.check_unmapped(range).unwrap();
            space.insert(Mapping { range, gpa: Gpa(first), access: Access::READ_WRITE });
        }
        space
    }

    #[test]
    fn check_unmapped_finds_overlap_at_edges_and_inside() {
        let space = space(&[(0x1000, 0x1fff), (0x4000, 0x7fff)]);
        for (first, last) in [(0, 0x1000), (0x1fff, 0x2000), (0x5000, 0x5fff), (0, u64::MAX)] {
            assert_eq!(space.check_unmapped(range(first, last)), Err(MappingError::Overlap));
        }
        for (first, last) in [(0, 0xfff), (0x2000, 0x3fff), (0x8000, u64::MAX)] {
            assert_eq!(space.check_unmapped(range(first, last)), Ok(()));
        }
    }

    #[test]
    fn check_no_split_rejects_partial_mappings_and_accepts_holes() {
        let space = space(&[(0x1000, 0x1fff), (0x4000, 0x7fff)]);
        for (first, last) in [(0, 0x17ff), (0x1800, 0x1fff), (0x5000, 0x5fff), (0, 0x4fff)] {
            assert_eq!(space.check_no_split(range(first, last)), Err(MappingError::Split));
        }
        for (first, last) in [(0, 0xfff), (0x1000, 0x1fff), (0x2000, u64::MAX), (0, u64::MAX)] {
            assert_eq!(space.check_no_split(range(first, last)), Ok(()));
        }
    }

    #[test]
    fn remove_keeps_mappings_outside_the_range() {
        let space = space(&[(0, 0xfff), (0x1000, 0x1fff), (0x4000, 0x7fff), (0x9000, 0x9fff)]);
        assert_eq!(space.remove(range(0x1000, 0x8fff)), 2);
        assert_eq!(space.remove(range(0x1000, 0x8fff)), 0);
        assert_eq!(space.remove(range(0x9000, 0x9fff)), 1);
        assert_eq!(space.len(), 1);
    }

    #[test]
    fn mapping_can_cover_all_addresses() {
        let space = space(&[(0, u64::MAX)]);
        let target = space.with_target(Iova(u64::MAX), Access::READ, |target| target).unwrap();
        assert_eq!(target, Target { gpa: Gpa(u64::MAX), span: 0 });
        assert_eq!(space.check_unmapped(range(u64::MAX, u64::MAX)), Err(MappingError::Overlap));
        assert_eq!(space.check_no_split(IovaRange::ALL), Ok(()));
        assert_eq!(space.remove(IovaRange::ALL), 1);
    }

    #[test]
    fn translation_checks_permissions() {
        let space = AddressSpace::default();
        let range = range(0x1000, 0x1fff);
        space.insert(Mapping { range, gpa: Gpa(0x8000), access: Access::READ });
        let translate = |address, access| space.with_target(Iova(address), access, |t| t.gpa.0);
        assert_eq!(translate(0x1234, Access::READ), Some(0x8234));
        assert_eq!(translate(0x1234, Access::WRITE), None);
        assert_eq!(translate(0x2000, Access::READ), None);
    }

    #[test]
    fn mappings_in_includes_mapping_that_begins_below() {
        let space = space(&[(0x1000, 0x1fff), (0x4000, 0x7fff), (0x9000, 0x9fff)]);
        let firsts = |first, last| -> Vec<u64> {
            space.mappings_in(range(first, last)).iter().map(|m| m.range.first()).collect()
        };
        assert_eq!(firsts(0x1800, 0x4000), [0x1000, 0x4000]);
        assert_eq!(firsts(0x2000, 0x3fff), [0u64; 0]);
        assert_eq!(firsts(0, u64::MAX), [0x1000, 0x4000, 0x9000]);
    }
}
