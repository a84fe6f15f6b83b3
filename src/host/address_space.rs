//! The mappings of one domain: what the daemon itself knows to be mapped.
//!
//! Every back end relies on these: the software one translates through them, others check here
//! for overlaps and splits before they touch anything that cannot be undone.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock, RwLockReadGuard};

use crate::address::{Access, Gpa, Iova, IovaRange};

/// One mapping, as the guest's MAP request made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Mapping {
    /// The addresses that are mapped.
    pub range: IovaRange,
    /// Where the first of them leads.
    pub gpa: Gpa,
    /// What accesses it allows.
    pub access: Access,
}

/// Where an address leads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The guest-physical address.
    pub gpa: Gpa,
    /// How many further bytes are contiguous behind that one byte (size minus one).
    pub span: u64,
}

/// Why a change was refused; nothing has been changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SpaceError {
    /// MAP over something that is mapped.
    #[error("the range overlaps a mapping")]
    Overlap,
    /// UNMAP of a part of a mapping.
    #[error("the range would split a mapping")]
    Split,
}

/// A mapping without its first address, which is its key in the tree.
#[derive(Clone, Copy)]
struct Entry {
    last: u64,
    gpa: u64,
    access: Access,
}

type Tree = BTreeMap<u64, Entry>;

/// The mappings of one domain.
#[derive(Default)]
pub struct AddressSpace {
    tree: RwLock<Tree>,
}

impl AddressSpace {
    /// Checks that `range` is free.
    pub fn check_free(&self, range: IovaRange) -> Result<(), SpaceError> {
        match last_before(&self.read(), range.last()) {
            Some((_, entry)) if entry.last >= range.first() => Err(SpaceError::Overlap),
            _ => Ok(()),
        }
    }

    /// Adds a mapping whose range [`check_free`](Self::check_free) has found to be free.
    pub fn insert(&self, mapping: Mapping) {
        let entry =
            Entry { last: mapping.range.last(), gpa: mapping.gpa.0, access: mapping.access };
        self.write().insert(mapping.range.first(), entry);
    }

    /// Checks that removing `range` would split no mapping.
    pub fn check_whole(&self, range: IovaRange) -> Result<(), SpaceError> {
        let tree = self.read();
        if is_one_mapping(&tree, range) {
            return Ok(());
        }
        let cuts = |address: u64| match last_before(&tree, address) {
            Some((first, entry)) => entry.last >= address && first < address,
            None => false,
        };
        let cut_behind = range.last().checked_add(1).is_some_and(cuts);
        if cuts(range.first()) || cut_behind {
            return Err(SpaceError::Split);
        }
        Ok(())
    }

    /// Removes every mapping inside `range`, which [`check_whole`](Self::check_whole) has
    /// accepted; returns how many there were. When it returns, no access goes through them.
    pub fn remove(&self, range: IovaRange) -> usize {
        let mut tree = self.write();
        if is_one_mapping(&tree, range) {
            return usize::from(tree.remove(&range.first()).is_some());
        }
        tree.extract_if(range.first()..=range.last(), |_, _| true).count()
    }

    /// The mappings that touch `range`, lowest first.
    pub fn mappings_in(&self, range: IovaRange) -> Vec<Mapping> {
        let tree = self.read();
        let first = match last_before(&tree, range.first()) {
            Some((first, entry)) if entry.last >= range.first() => first,
            _ => range.first(),
        };
        tree.range(first..=range.last()).map(|(&first, entry)| entry.mapping(first)).collect()
    }

    /// Number of mappings.
    pub fn len(&self) -> usize {
        self.read().len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Translates `address` for `wanted`, and keeps the answer true while `access` runs:
    /// whoever removes the mapping waits for it. `access` therefore has to be short.
    ///
    /// `None`: nothing is mapped there, or not with that permission.
    pub fn with_target<T>(
        &self,
        address: Iova,
        wanted: Access,
        access: impl FnOnce(Target) -> T,
    ) -> Option<T> {
        let tree = self.read();
        let (first, entry) = last_before(&tree, address.0)?;
        let hit = entry.last >= address.0 && entry.access.allows(wanted);
        hit.then(|| access(entry.target(first, address)))
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

    /// MAP has checked that the guest-physical end does not overflow.
    fn target(&self, first: u64, address: Iova) -> Target {
        Target { gpa: Gpa(self.gpa + (address.0 - first)), span: self.last - address.0 }
    }
}

/// Whether `range` is exactly what one MAP has mapped: by far the commonest UNMAP, and the
/// cheapest to check.
fn is_one_mapping(tree: &Tree, range: IovaRange) -> bool {
    tree.get(&range.first()).is_some_and(|entry| entry.last == range.last())
}

/// The mapping with the highest first address at or below `address`.
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
            space.check_free(range).unwrap();
            space.insert(Mapping { range, gpa: Gpa(first), access: Access::READ_WRITE });
        }
        space
    }

    #[test]
    fn overlap_is_found_at_each_edge_and_inside() {
        let space = space(&[(0x1000, 0x1fff), (0x4000, 0x7fff)]);
        for (first, last) in [(0, 0x1000), (0x1fff, 0x2000), (0x5000, 0x5fff), (0, u64::MAX)] {
            assert_eq!(space.check_free(range(first, last)), Err(SpaceError::Overlap));
        }
        for (first, last) in [(0, 0xfff), (0x2000, 0x3fff), (0x8000, u64::MAX)] {
            assert_eq!(space.check_free(range(first, last)), Ok(()));
        }
    }

    #[test]
    fn a_range_that_cuts_a_mapping_is_refused_and_holes_are_not() {
        let space = space(&[(0x1000, 0x1fff), (0x4000, 0x7fff)]);
        for (first, last) in [(0, 0x17ff), (0x1800, 0x1fff), (0x5000, 0x5fff), (0, 0x4fff)] {
            assert_eq!(space.check_whole(range(first, last)), Err(SpaceError::Split));
        }
        for (first, last) in [(0, 0xfff), (0x1000, 0x1fff), (0x2000, u64::MAX), (0, u64::MAX)] {
            assert_eq!(space.check_whole(range(first, last)), Ok(()));
        }
    }

    #[test]
    fn remove_takes_all_inside_and_leaves_the_rest() {
        let space = space(&[(0, 0xfff), (0x1000, 0x1fff), (0x4000, 0x7fff), (0x9000, 0x9fff)]);
        assert_eq!(space.remove(range(0x1000, 0x8fff)), 2);
        assert_eq!(space.remove(range(0x1000, 0x8fff)), 0);
        assert_eq!(space.remove(range(0x9000, 0x9fff)), 1);
        assert_eq!(space.len(), 1);
    }

    #[test]
    fn the_whole_address_range_can_be_one_mapping() {
        let space = space(&[(0, u64::MAX)]);
        let target = space.with_target(Iova(u64::MAX), Access::READ, |target| target).unwrap();
        assert_eq!(target, Target { gpa: Gpa(u64::MAX), span: 0 });
        assert_eq!(space.check_free(range(u64::MAX, u64::MAX)), Err(SpaceError::Overlap));
        assert_eq!(space.check_whole(IovaRange::ALL), Ok(()));
        assert_eq!(space.remove(IovaRange::ALL), 1);
    }

    #[test]
    fn translation_honours_permissions() {
        let space = AddressSpace::default();
        let range = range(0x1000, 0x1fff);
        space.insert(Mapping { range, gpa: Gpa(0x8000), access: Access::READ });
        let translate = |address, access| space.with_target(Iova(address), access, |t| t.gpa.0);
        assert_eq!(translate(0x1234, Access::READ), Some(0x8234));
        assert_eq!(translate(0x1234, Access::WRITE), None);
        assert_eq!(translate(0x2000, Access::READ), None);
    }

    #[test]
    fn mappings_in_includes_one_that_begins_before() {
        let space = space(&[(0x1000, 0x1fff), (0x4000, 0x7fff), (0x9000, 0x9fff)]);
        let firsts = |first, last| -> Vec<u64> {
            space.mappings_in(range(first, last)).iter().map(|m| m.range.first()).collect()
        };
        assert_eq!(firsts(0x1800, 0x4000), [0x1000, 0x4000]);
        assert_eq!(firsts(0x2000, 0x3fff), [0u64; 0]);
        assert_eq!(firsts(0, u64::MAX), [0x1000, 0x4000, 0x9000]);
    }
}
