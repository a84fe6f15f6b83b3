//! Domains.

use std::sync::Arc;

use crate::address::DomainId;
use crate::host::{AddressSpace, Translation};

/// A domain. It exists from the first ATTACH to it until its last endpoint or PASID is detached.
pub(super) struct Domain {
    translation: Translation,
    /// Number of attached endpoints and PASIDs.
    pub(super) endpoints: usize,
}

impl Domain {
    /// Creates a domain to which nothing is attached yet.
    pub(super) fn new(translation: Translation) -> Self {
        Self { translation, endpoints: 0 }
    }

    /// Returns the translation for a new domain.
    pub(super) fn new_translation(id: DomainId, bypass: bool) -> Translation {
        if bypass { Translation::Bypass } else { Translation::Domain(id, Arc::default()) }
    }

    /// Returns the translation of accesses from attached endpoints and PASIDs.
    pub(super) fn translation(&self) -> &Translation {
        &self.translation
    }

    /// Returns the mappings, or `None` if this is a bypass domain.
    pub(super) fn space(&self) -> Option<&Arc<AddressSpace>> {
        match &self.translation {
            Translation::Domain(_, space) => Some(space),
            _ => None,
        }
    }

    pub(super) fn is_bypass(&self) -> bool {
        self.space().is_none()
    }

    /// Returns the number of mappings.
    pub(super) fn mappings(&self) -> usize {
        self.space().map_or(0, |space| space.len())
    }
}
