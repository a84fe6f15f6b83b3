//! A domain: an address space, and how many endpoints see it.

use std::sync::Arc;

use super::status::RequestError;
use crate::address::DomainId;
use crate::host::{AddressSpace, Translation};

/// Exists from the first ATTACH that names it to the last DETACH.
pub(super) struct Domain {
    id: DomainId,
    space: Space,
    /// Endpoints attached.
    pub(super) endpoints: usize,
}

enum Space {
    Bypass,
    Mapped(Arc<AddressSpace>),
}

impl Domain {
    pub(super) fn new(id: DomainId, bypass: bool) -> Self {
        let space = if bypass { Space::Bypass } else { Space::Mapped(Arc::default()) };
        Self { id, space, endpoints: 0 }
    }

    pub(super) fn is_bypass(&self) -> bool {
        matches!(self.space, Space::Bypass)
    }

    /// The mappings, which a bypass domain has not (5.13.6.5.2, 5.13.6.6.2: INVAL).
    pub(super) fn space(&self) -> Result<&Arc<AddressSpace>, RequestError> {
        match &self.space {
            Space::Mapped(space) => Ok(space),
            Space::Bypass => Err(RequestError::BypassDomain(self.id.0)),
        }
    }

    pub(super) fn mappings(&self) -> usize {
        match &self.space {
            Space::Mapped(space) => space.len(),
            Space::Bypass => 0,
        }
    }

    pub(super) fn translation(&self) -> Translation {
        match &self.space {
            Space::Bypass => Translation::Bypass,
            Space::Mapped(space) => Translation::Domain(self.id, space.clone()),
        }
    }
}
