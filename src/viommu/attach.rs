//! ATTACH and DETACH, and the translation of endpoints.

use std::fmt;

use super::domain::Domain;
use super::status::RequestError;
use super::{Viommu, check_limit};
use crate::address::{DomainId, EndpointId, Pasid};
use crate::host::{HostError, Translation};
use crate::iopf::Handler;

/// An endpoint, or one of its PASIDs: each is attached to a domain independently of the others.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct EndpointPasid {
    pub(super) endpoint: EndpointId,
    pub(super) pasid: Option<Pasid>,
}

impl fmt::Display for EndpointPasid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(pasid) = self.pasid {
            write!(f, "PASID {pasid} of ")?;
        }
        write!(f, "endpoint {}", self.endpoint)
    }
}

impl Viommu {
    /// Attaches `target` to a domain (5.13.6.3), and detaches it from its previous domain.
    pub(super) fn attach(
        &mut self,
        id: DomainId,
        target: EndpointPasid,
        bypass: bool,
    ) -> Result<(), RequestError> {
        self.check_attachable(target, bypass)?;
        let previous = self.attachments.get(&target).copied();
        let translation = match self.domains.get(&id) {
            Some(domain) if domain.is_bypass() != bypass => {
                return Err(RequestError::BypassMismatch { domain: id, flag: bypass });
            }
            Some(_) if previous == Some(id) => return Ok(()),
            Some(domain) => {
                let limit = self.settings.limits.endpoints_per_domain;
                check_limit("endpoints in a domain", domain.endpoints, limit)?;
                domain.translation().clone()
            }
            None => {
                self.check_domain_limit(previous)?;
                Domain::new_translation(id, bypass)
            }
        };
        self.set_translation(target, &translation)?;
        self.domains.entry(id).or_insert_with(|| Domain::new(translation)).endpoints += 1;
        if let Some(previous) = self.attachments.insert(target, id) {
            self.leave_domain(previous);
        }
        Ok(())
    }

    /// Detaches `target` from a domain (5.13.6.4).
    pub(super) fn detach(
        &mut self,
        id: DomainId,
        target: EndpointPasid,
    ) -> Result<(), RequestError> {
        self.endpoint(target.endpoint)?;
        match (self.attachments.get(&target), target.pasid) {
            (Some(&domain), _) if domain == id => Ok(self.remove_attachment(target)?),
            (None, Some(pasid)) => Err(RequestError::PasidNotAttached(pasid)),
            _ => Err(RequestError::NotAttached(id)),
        }
    }

    /// Detaches `target` from its domain.
    pub(super) fn remove_attachment(&mut self, target: EndpointPasid) -> Result<(), HostError> {
        self.set_translation(target, &self.unattached(target))?;
        if let Some(id) = self.attachments.remove(&target) {
            self.leave_domain(id);
        }
        Ok(())
    }

    /// Removes an endpoint from a domain, and the domain with its mappings after the last one.
    fn leave_domain(&mut self, id: DomainId) {
        let Some(domain) = self.domains.get_mut(&id) else { return };
        domain.endpoints -= 1;
        if domain.endpoints == 0 {
            self.mappings -= domain.mappings();
            self.domains.remove(&id);
        }
    }

    /// Checks that `target` can be attached to some domain.
    fn check_attachable(&self, target: EndpointPasid, bypass: bool) -> Result<(), RequestError> {
        let bits = self.endpoint(target.endpoint)?.capabilities.pasid_bits;
        let Some(pasid) = target.pasid else { return Ok(()) };
        if bits == 0 {
            return Err(RequestError::NoPasids(target.endpoint));
        }
        if pasid.0 == 0 || pasid.0 >> bits != 0 {
            return Err(RequestError::PasidRange { pasid, bits });
        }
        if bypass { Err(RequestError::PasidBypass(pasid)) } else { Ok(()) }
    }

    /// Checks that a domain can be created for an endpoint or PASID that leaves `previous`.
    fn check_domain_limit(&self, previous: Option<DomainId>) -> Result<(), RequestError> {
        let previous = previous.and_then(|id| self.domains.get(&id));
        let removed = previous.is_some_and(|domain| domain.endpoints == 1);
        let used = self.domains.len() - usize::from(removed);
        check_limit("domains", used, self.settings.limits.domains)
    }

    /// Sets `bypass` of the configuration space, and the translation of unattached endpoints.
    pub(super) fn set_bypass(&mut self, bypass: bool) {
        self.bypass = bypass;
        for &endpoint in self.endpoints.keys() {
            let target = EndpointPasid { endpoint, pasid: None };
            if self.attachments.contains_key(&target) {
                continue;
            }
            if let Err(error) = self.set_translation(target, &self.unattached(target)) {
                log::error!("cannot set bypass of endpoint {endpoint} to {bypass}: {error}");
            }
        }
    }

    /// Returns the translation of `target` while it is unattached. PASIDs have no bypass mode.
    pub(super) fn unattached(&self, target: EndpointPasid) -> Translation {
        if self.bypass && target.pasid.is_none() {
            Translation::Bypass
        } else {
            Translation::Blocked
        }
    }

    /// Sets the translation of `target` and the handler of its faults.
    ///
    /// Outstanding page request groups are completed before the back end changes the translation.
    /// The kernel completes all groups itself when it detaches, and reuses their cookies: a later
    /// response could complete a different group.
    pub(super) fn set_translation(
        &self,
        target: EndpointPasid,
        translation: &Translation,
    ) -> Result<(), HostError> {
        let EndpointPasid { endpoint, pasid } = target;
        let previous = self.faults.detach(endpoint, pasid);
        let result = self.host.set_translation(endpoint, pasid, translation);
        let handler = if result.is_ok() { handler(translation) } else { previous };
        if let Some(handler) = handler {
            self.faults.attach(endpoint, pasid, handler);
        }
        result
    }
}

/// Returns the handler of faults under `translation`, or `None` if faults are those of an
/// unattached endpoint.
fn handler(translation: &Translation) -> Option<Handler> {
    match translation {
        Translation::Blocked => None,
        Translation::Bypass => Some(Handler::Direct),
        Translation::Domain(..) => Some(Handler::Queue),
    }
}
