//! The device model: what a virtio-iommu device (virtio 1.4) answers to each request.
//!
//! [`request`] decodes, [`Viommu`] is the state machine, [`status`] names the outcome. Bytes in,
//! bytes out: nothing here knows a ring, a socket or a file descriptor.

pub mod config_space;
mod counters;
mod domain;
pub mod event;
mod probe;
pub mod request;
pub mod status;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::address::{DomainId, EndpointId, Gpa, IovaRange, Pasid};
use crate::host::{
    Access, EndpointCapabilities, HostError, HostIommu, Mapping, ReservedKind, ReservedRegion,
    Translation,
};
use crate::iopf::{GroupId, Handler, Iopf, Response};
use crate::trace;
pub use config_space::{Features, Limits, Settings};
pub use counters::{DeviceCounters, RequestCounts, RequestType};
use domain::Domain;
use probe::ExtensionProperties;
use request::Request;
use status::{RequestError, Status};
use wire::size;

/// The least room offered to properties, in bytes; what QEMU's own device offers.
const MIN_PROBE_SIZE: usize = 512;

/// The answer to one request, for whoever writes it into the guest's memory.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The status, for the tail.
    pub status: Status,
    /// Where the tail begins in the writable part of the request, in bytes.
    pub tail_offset: usize,
    /// What comes before the tail; the room that is left is zero.
    pub properties: &'a [u8],
}

/// What can be attached to a domain: an endpoint, or a PASID of one.
type Attachee = (EndpointId, Option<Pasid>);

/// The fixed properties of an endpoint.
struct Endpoint {
    capabilities: EndpointCapabilities,
    /// The addresses that it must not map.
    reserved: Vec<ReservedRegion>,
}

impl Endpoint {
    fn new(settings: &Settings, capabilities: EndpointCapabilities) -> Self {
        let reserved = reserved(settings, &capabilities);
        Self { capabilities, reserved }
    }
}

/// The state of the device: endpoints, domains, mappings.
pub struct Viommu {
    settings: Settings,
    host: Arc<dyn HostIommu>,
    faults: Arc<Iopf>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    /// Who is attached to which domain.
    attachments: BTreeMap<Attachee, DomainId>,
    domains: BTreeMap<DomainId, Domain>,
    /// Mappings over all domains.
    mappings: usize,
    /// What the driver has accepted.
    features: Features,
    /// What endpoints without a domain do (`bypass` in the configuration space).
    bypass: bool,
    properties: Vec<u8>,
    /// Room that is offered to properties, in bytes: enough for every endpoint.
    probe_size: usize,
    counters: Arc<DeviceCounters>,
}

impl Viommu {
    /// A device with `endpoints` behind it, none of them attached.
    ///
    /// # Errors
    /// When the host cannot put an endpoint into its initial state.
    pub fn new(
        settings: Settings,
        endpoints: impl IntoIterator<Item = EndpointId>,
        host: Arc<dyn HostIommu>,
        faults: Arc<Iopf>,
    ) -> Result<Self, HostError> {
        let endpoints: BTreeMap<_, _> = endpoints
            .into_iter()
            .map(|id| (id, Endpoint::new(&settings, host.capabilities(id))))
            .collect();
        let rooms = endpoints.values().map(|endpoint| probe::room(&endpoint.reserved));
        let viommu = Self {
            bypass: settings.boot_bypass,
            properties: Vec::new(),
            probe_size: rooms.fold(MIN_PROBE_SIZE, usize::max),
            endpoints,
            attachments: BTreeMap::new(),
            domains: BTreeMap::new(),
            mappings: 0,
            features: Features::default(),
            counters: Arc::default(),
            settings,
            host,
            faults,
        };
        for &endpoint in viommu.endpoints.keys() {
            viommu.route((endpoint, None), &viommu.unattached(None))?;
        }
        Ok(viommu)
    }

    /// Answers the request in `bytes`, with `room` bytes for the answer.
    ///
    /// `None`: the buffer goes back unwritten, because the type is unknown (5.13.6.2) or
    /// because there is no room for a status.
    pub fn handle(&mut self, bytes: &[u8], room: usize) -> Option<Reply<'_>> {
        let kind = RequestType::of(bytes);
        trace::request_taken(bytes.first().copied(), bytes.len());
        let status = self.status_of(bytes, room);
        trace::request_done(bytes.first().copied(), status.map(|status| status as u8));
        self.counters.count(kind, status);
        self.note_size();
        let (status, room) = (status?, room.checked_sub(size::TAIL)?);
        let probed = kind == RequestType::Probe && status == Status::Ok;
        Some(Reply {
            status,
            tail_offset: if kind == RequestType::Probe { self.probe_size.min(room) } else { 0 },
            properties: if probed { &self.properties } else { &[] },
        })
    }

    /// Does what a request asks for; `None`: the driver is not to read how that ended.
    fn status_of(&mut self, bytes: &[u8], room: usize) -> Option<Status> {
        let room = room.checked_sub(size::TAIL)?;
        let request = request::decode(bytes, self.features)?;
        let outcome = request.and_then(|request| self.execute(request, room));
        Some(match outcome {
            Ok(()) => Status::Ok,
            Err(refusal) => {
                log::debug!("request refused ({:?}): {refusal}", refusal.status());
                refusal.status()
            }
        })
    }

    /// A request of these bytes was answered with DEVERR, because [`handle`](Self::handle) has
    /// panicked.
    pub fn count_internal_error(&self, bytes: &[u8]) {
        self.counters.count(RequestType::of(bytes), Some(Status::DevErr));
    }

    /// What is counted here, for who reads it without the device's lock.
    pub fn counters(&self) -> Arc<DeviceCounters> {
        self.counters.clone()
    }

    fn note_size(&self) {
        self.counters.mappings.set(self.mappings as u64);
        self.counters.domains.set(self.domains.len() as u64);
        self.counters.attachments.set(self.attachments.len() as u64);
    }

    /// The driver has accepted `features`; bits that are not the device's own are ignored.
    pub fn set_features(&mut self, features: u64) {
        self.features = Features(features & Features::OFFERED.0);
        self.faults.enable_page_requests(self.features.has(wire::feature::PAGE_REQUEST));
    }

    /// The configuration space as the driver reads it.
    pub fn config(&self) -> [u8; size::CONFIG] {
        config_space::read(&self.settings, self.probe_size as u32, self.bypass)
    }

    /// The driver writes `bytes` at `offset` of the configuration space.
    pub fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        match config_space::written_bypass(offset, bytes) {
            Some(bypass) if bypass != self.bypass => self.set_bypass(bypass),
            _ => {}
        }
    }

    /// Guest memory is `memory` from now on.
    pub fn set_memory(&mut self, memory: &GuestMemoryMmap) {
        self.host.set_memory(memory);
    }

    /// Device reset: nothing is attached or mapped any more; `bypass` stays (5.13.4.2).
    pub fn reset(&mut self) {
        self.faults.reset();
        let attached: Vec<Attachee> = self.attachments.keys().copied().collect();
        for who in attached {
            if let Err(refusal) = self.leave(who) {
                log::error!("reset: {who:?} could not be detached: {refusal}");
            }
        }
        self.note_size();
    }

    /// System reset, or a new front end: as after start.
    pub fn restart(&mut self) {
        self.reset();
        self.set_memory(&GuestMemoryMmap::new());
        self.set_bypass(self.settings.boot_bypass);
    }

    fn execute(&mut self, request: Request, room: usize) -> Result<(), RequestError> {
        match request {
            Request::Attach { domain, endpoint, pasid, bypass } => {
                let who = self.attachee(EndpointId(endpoint), pasid, bypass)?;
                self.attach(DomainId(domain), who, bypass)
            }
            Request::Detach { domain, endpoint, pasid } => {
                self.endpoint(EndpointId(endpoint))?;
                self.detach(DomainId(domain), (EndpointId(endpoint), pasid.map(Pasid)))
            }
            Request::Map { domain, virt_start, virt_end, phys_start, flags } => {
                let mapping = self.mapping(virt_start, virt_end, phys_start, flags);
                self.map(DomainId(domain), mapping)
            }
            Request::Unmap { domain, virt_start, virt_end } => {
                self.unmap(DomainId(domain), IovaRange::new(virt_start, virt_end))
            }
            Request::Probe { endpoint } => self.probe(EndpointId(endpoint), room),
            Request::PageResponse { endpoint, pasid, group, response } => {
                self.page_response(EndpointId(endpoint), pasid, GroupId(group), response)
            }
        }
    }

    /// Checks that it can be attached to a domain, whichever that is.
    fn attachee(
        &self,
        endpoint: EndpointId,
        pasid: Option<u32>,
        bypass: bool,
    ) -> Result<Attachee, RequestError> {
        let capabilities = &self.endpoint(endpoint)?.capabilities;
        let Some(pasid) = pasid else { return Ok((endpoint, None)) };
        match capabilities.pasid_bits {
            0 => Err(RequestError::NoPasids(endpoint.0)),
            bits if pasid == 0 || pasid >> bits != 0 => Err(RequestError::PasidRange(pasid)),
            _ if bypass => Err(RequestError::PasidBypass),
            _ => Ok((endpoint, Some(Pasid(pasid)))),
        }
    }

    fn attach(&mut self, id: DomainId, who: Attachee, bypass: bool) -> Result<(), RequestError> {
        let from = self.attachments.get(&who).copied();
        if from == Some(id) {
            return self.check_kind(id, bypass);
        }
        if self.domains.contains_key(&id) {
            self.check_kind(id, bypass)?;
            self.check_endpoints(id)?;
        } else {
            self.create_domain(id, bypass, from)?;
        }
        let joined = self.join(id, who);
        self.destroy_if_unused(if joined.is_ok() { from } else { Some(id) });
        joined
    }

    fn detach(&mut self, id: DomainId, who: Attachee) -> Result<(), RequestError> {
        match (self.attachments.get(&who), who) {
            (Some(&domain), _) if domain == id => self.leave(who),
            (None, (_, Some(pasid))) => Err(RequestError::PasidNotAttached(pasid.0)),
            _ => Err(RequestError::NotAttached(id.0)),
        }
    }

    fn map(
        &mut self,
        id: DomainId,
        mapping: Result<Mapping, RequestError>,
    ) -> Result<(), RequestError> {
        let space = self.domain(id)?.space()?;
        let mapping = mapping?;
        space.check_free(mapping.range)?;
        check_limit("mappings", self.mappings, self.settings.limits.mappings)?;
        self.host.map(id, &mapping)?;
        space.insert(mapping);
        self.mappings += 1;
        Ok(())
    }

    fn unmap(&mut self, id: DomainId, range: Option<IovaRange>) -> Result<(), RequestError> {
        let space = self.domain(id)?.space()?;
        let range = range.ok_or(RequestError::Backwards)?;
        space.check_whole(range)?;
        self.host.unmap(id, range)?;
        self.mappings -= space.remove(range);
        Ok(())
    }

    fn probe(&mut self, endpoint: EndpointId, room: usize) -> Result<(), RequestError> {
        let Endpoint { capabilities, reserved } = self.endpoint(endpoint)?;
        if room < self.probe_size {
            return Err(RequestError::SmallBuffer(self.probe_size));
        }
        self.properties = probe::properties(reserved, self.abilities(capabilities));
        Ok(())
    }

    /// What the driver is told of an endpoint beyond the standard.
    fn abilities(&self, capabilities: &EndpointCapabilities) -> ExtensionProperties {
        let pasids = self.features.has(wire::feature::PASID) && capabilities.pasid_bits > 0;
        let max_groups = self.settings.limits.page_groups;
        ExtensionProperties {
            pasid_bits: pasids.then_some(capabilities.pasid_bits),
            page_requests: capabilities
                .page_requests
                .filter(|_| self.features.has(wire::feature::PAGE_REQUEST))
                .map(|requests| (requests, max_groups)),
        }
    }

    fn page_response(
        &mut self,
        endpoint: EndpointId,
        pasid: Option<u32>,
        group: GroupId,
        response: Response,
    ) -> Result<(), RequestError> {
        let capabilities = &self.endpoint(endpoint)?.capabilities;
        let requests = capabilities.page_requests.ok_or(RequestError::NoGroup)?;
        let needs_pasid = requests.response_needs_pasid;
        Ok(self.faults.respond(endpoint, group, pasid.map(Pasid), needs_pasid, response)?)
    }

    /// Checks what a MAP request says of itself (5.13.6.5.2).
    fn mapping(
        &self,
        first: u64,
        last: u64,
        phys: u64,
        flags: u32,
    ) -> Result<Mapping, RequestError> {
        let settings = &self.settings;
        let range = IovaRange::new(first, last).ok_or(RequestError::Backwards)?;
        if !range.is_aligned(settings.page_size) || phys & (settings.page_size - 1) != 0 {
            return Err(RequestError::Misaligned(settings.page_size));
        }
        if !settings.input_range.covers(&range) || phys.checked_add(range.span()).is_none() {
            return Err(RequestError::OutOfRange);
        }
        if settings.reserved.iter().any(|region| region.range.overlaps(&range)) {
            return Err(RequestError::ReservedRegion);
        }
        let access =
            Access { read: flags & wire::MAP_F_READ != 0, write: flags & wire::MAP_F_WRITE != 0 };
        Ok(Mapping { range, gpa: Gpa(phys), access })
    }

    fn endpoint(&self, id: EndpointId) -> Result<&Endpoint, RequestError> {
        self.endpoints.get(&id).ok_or(RequestError::NoEndpoint(id.0))
    }

    fn domain(&self, id: DomainId) -> Result<&Domain, RequestError> {
        self.domains.get(&id).ok_or(RequestError::NoDomain(id.0))
    }

    fn check_kind(&self, id: DomainId, bypass: bool) -> Result<(), RequestError> {
        if self.domain(id)?.is_bypass() == bypass {
            Ok(())
        } else {
            Err(RequestError::OtherKind(id.0))
        }
    }

    fn check_endpoints(&self, id: DomainId) -> Result<(), RequestError> {
        let limit = self.settings.limits.endpoints_per_domain;
        check_limit("endpoints in a domain", self.domain(id)?.endpoints, limit)
    }

    /// `leaving`: a domain that makes room if its last endpoint comes from there.
    fn create_domain(
        &mut self,
        id: DomainId,
        bypass: bool,
        leaving: Option<DomainId>,
    ) -> Result<(), RequestError> {
        let ends = leaving.and_then(|id| self.domains.get(&id)).is_some_and(|d| d.endpoints == 1);
        let domains = self.domains.len() - usize::from(ends);
        check_limit("domains", domains, self.settings.limits.domains)?;
        self.domains.insert(id, Domain::new(id, bypass));
        Ok(())
    }

    /// Moves somebody from wherever they are to an existing domain.
    fn join(&mut self, id: DomainId, who: Attachee) -> Result<(), RequestError> {
        let to = self.domain(id)?.translation();
        self.route(who, &to)?;
        self.set_attachment(who, Some(id));
        Ok(())
    }

    /// Detaches somebody from whatever they are attached to.
    fn leave(&mut self, who: Attachee) -> Result<(), RequestError> {
        self.route(who, &self.unattached(who.1))?;
        let from = self.set_attachment(who, None);
        self.destroy_if_unused(from);
        Ok(())
    }

    /// Keeps the books of an attachment; returns the one before.
    fn set_attachment(&mut self, who: Attachee, to: Option<DomainId>) -> Option<DomainId> {
        let from = match to {
            Some(id) => self.attachments.insert(who, id),
            None => self.attachments.remove(&who),
        };
        if let Some(domain) = from.and_then(|id| self.domains.get_mut(&id)) {
            domain.endpoints -= 1;
        }
        if let Some(domain) = to.and_then(|id| self.domains.get_mut(&id)) {
            domain.endpoints += 1;
        }
        from
    }

    fn destroy_if_unused(&mut self, id: Option<DomainId>) {
        let Some(id) = id else { return };
        if self.domains.get(&id).is_some_and(|domain| domain.endpoints == 0) {
            self.mappings -= self.domains.remove(&id).map_or(0, |domain| domain.mappings());
        }
    }

    fn set_bypass(&mut self, bypass: bool) {
        self.bypass = bypass;
        for &endpoint in self.endpoints.keys() {
            if self.attachments.contains_key(&(endpoint, None)) {
                continue;
            }
            if let Err(error) = self.route((endpoint, None), &self.unattached(None)) {
                log::error!("bypass {bypass}: endpoint {endpoint} keeps its old state: {error}");
            }
        }
    }

    /// What an endpoint, or a PASID of one, gets without a domain.
    fn unattached(&self, pasid: Option<Pasid>) -> Translation {
        if self.bypass && pasid.is_none() { Translation::Bypass } else { Translation::Blocked }
    }

    /// Accesses, and their faults, go another way from now on.
    ///
    /// Page requests are answered before the host knows of the change: a host that detaches
    /// answers them by itself, and a later answer could meet another group (iommufd uses the
    /// lowest cookie again).
    fn route(&self, (endpoint, pasid): Attachee, to: &Translation) -> Result<(), HostError> {
        let before = self.faults.detach(endpoint, pasid);
        let routed = self.host.set_translation(endpoint, pasid, to);
        let handler = if routed.is_ok() { handler(to) } else { before };
        if let Some(handler) = handler {
            self.faults.attach(endpoint, pasid, handler);
        }
        routed
    }
}

/// What an endpoint must not map: what the settings say, and what the host cannot.
fn reserved(settings: &Settings, capabilities: &EndpointCapabilities) -> Vec<ReservedRegion> {
    let configured = &settings.reserved;
    let hosts = capabilities.unmappable_ranges().into_iter();
    let inside = hosts.filter_map(|range| range.common(&settings.input_range));
    let new = inside.flat_map(|range| {
        configured.iter().fold(vec![range], |rest, region| {
            rest.iter().flat_map(|part| part.without(&region.range)).collect()
        })
    });
    let new = new.map(|range| ReservedRegion { range, kind: ReservedKind::Reserved });
    configured.iter().copied().chain(new).collect()
}

/// Who deals with the faults of what is translated so; `None`: as of what is not attached.
fn handler(translation: &Translation) -> Option<Handler> {
    match translation {
        Translation::Blocked => None,
        Translation::Bypass => Some(Handler::Direct),
        Translation::Domain(..) => Some(Handler::Queue),
    }
}

fn check_limit(what: &'static str, used: usize, limit: usize) -> Result<(), RequestError> {
    if used < limit { Ok(()) } else { Err(RequestError::Limit { what, limit }) }
}

#[cfg(test)]
mod tests;
