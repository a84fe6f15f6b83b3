//! The device model: the virtio-iommu device (virtio 1.4, 5.13) without its transport.
//!
//! [`request`] decodes the bytes of a request, [`Viommu`] validates and executes it, [`Reply`]
//! encodes the reply, and [`status`] maps errors to statuses. [`event`] encodes faults and page
//! requests. Nothing here depends on virtqueues, sockets or file descriptors.
//!
//! # Examples
//! A device with one emulated endpoint handles a MAP request:
//! ```
//! use std::sync::Arc;
//! use std::time::Duration;
//!
//! use accelerator::ClientMemory;
//! use vhost_user_iommu::address::{EndpointId, IovaRange};
//! use vhost_user_iommu::host::software::Software;
//! use vhost_user_iommu::iopf::{self, Iopf};
//! use vhost_user_iommu::viommu::status::Status;
//! use vhost_user_iommu::viommu::wire::*;
//! use vhost_user_iommu::viommu::{Features, Limits, Settings, Viommu};
//! use vm_memory::GuestMemoryMmap;
//! use zerocopy::IntoBytes;
//!
//! struct NoEventQueue;
//!
//! impl iopf::EventNotifier for NoEventQueue {
//!     fn notify(&self) {}
//! }
//!
//! let endpoint = EndpointId(8);
//! let mut host = Software::new(&[]);
//! host.add_endpoint(endpoint, ClientMemory::new(GuestMemoryMmap::new()));
//! let limits = iopf::Limits { faults: 64, groups: 64, response_timeout: Duration::from_secs(10) };
//! let faults = Arc::new(Iopf::new([endpoint], limits, Box::new(NoEventQueue)));
//! let settings = Settings {
//!     page_size: 4096,
//!     input_range: IovaRange::ALL,
//!     boot_bypass: false,
//!     reserved: Vec::new(),
//!     limits: Limits::default(),
//! };
//! let mut viommu = Viommu::new(settings, [endpoint], Arc::new(host), faults).unwrap();
//! viommu.set_features(Features::OFFERED.0);
//!
//! let mut map = ReqMap {
//!     head: ReqHead { r#type: T_MAP, reserved: [0; 3] },
//!     domain: 1.into(),
//!     virt_start: 0x1000.into(),
//!     virt_end: 0x1fff.into(),
//!     phys_start: 0x8000.into(),
//!     flags: (MAP_F_READ | MAP_F_WRITE).into(),
//! };
//! let tail_size = size_of::<ReqTail>();
//! let reply = viommu.handle(map.as_bytes(), tail_size).expect("a known request type");
//! assert_eq!(reply.status, Status::NoEnt, "the domain does not exist yet");
//!
//! let attach = ReqAttach {
//!     head: ReqHead { r#type: T_ATTACH, reserved: [0; 3] },
//!     domain: 1.into(),
//!     endpoint: endpoint.0.into(),
//!     flags: 0.into(),
//!     pasid: 0.into(),
//! };
//! assert_eq!(viommu.handle(attach.as_bytes(), tail_size).unwrap().status, Status::Ok);
//! assert_eq!(viommu.handle(map.as_bytes(), tail_size).unwrap().status, Status::Ok);
//! map.virt_end = 0x1ffe.into();
//! assert_eq!(viommu.handle(map.as_bytes(), tail_size).unwrap().status, Status::Range);
//! ```

mod attach;
mod config_space;
mod counters;
mod domain;
pub mod event;
mod features;
mod map;
mod probe;
mod reply;
pub mod request;
mod settings;
pub mod status;
pub mod wire;

use std::collections::BTreeMap;
use std::sync::Arc;

use vm_memory::GuestMemoryMmap;

use crate::address::{DomainId, EndpointId, IovaRange, Pasid};
use crate::host::{EndpointCapabilities, HostError, HostIommu, ReservedKind, ReservedRegion};
use crate::iopf::{GroupId, Iopf, Response};
use crate::trace;
use attach::EndpointPasid;
pub use counters::{DeviceCounters, RequestCounts};
use domain::Domain;
pub use features::Features;
use probe::ExtensionProperties;
pub use reply::Reply;
use request::Request;
pub use request::RequestType;
pub use settings::{Limits, Settings};
use status::{RequestError, Status};
use wire::ReqTail;

/// Minimum `probe_size` in bytes, that of QEMU's virtio-iommu device.
const MIN_PROBE_SIZE: usize = 512;

/// An endpoint behind the virtual IOMMU. Its properties are fixed.
struct Endpoint {
    capabilities: EndpointCapabilities,
    reserved: Vec<ReservedRegion>,
}

/// The state of the device: endpoints, domains, attachments and mappings.
pub struct Viommu {
    settings: Settings,
    host: Arc<dyn HostIommu>,
    faults: Arc<Iopf>,
    endpoints: BTreeMap<EndpointId, Endpoint>,
    attachments: BTreeMap<EndpointPasid, DomainId>,
    domains: BTreeMap<DomainId, Domain>,
    /// Number of mappings in all domains together.
    mappings: usize,
    /// Negotiated features.
    features: Features,
    /// Whether unattached endpoints are in bypass mode (`bypass` in the configuration space).
    bypass: bool,
    /// The properties that the last successful PROBE request returned.
    properties: Vec<u8>,
    /// Size of the properties in a PROBE request, in bytes: sufficient for each endpoint.
    probe_size: usize,
    counters: Arc<DeviceCounters>,
}

impl Viommu {
    /// Creates a device with `endpoints` behind it, all of them unattached.
    ///
    /// # Errors
    /// Returns the error of the back end if it cannot set the initial translation of an endpoint.
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
        let probe_sizes = endpoints.values().map(|endpoint| probe::max_size(&endpoint.reserved));
        let viommu = Self {
            bypass: settings.boot_bypass,
            properties: Vec::new(),
            probe_size: probe_sizes.fold(MIN_PROBE_SIZE, usize::max),
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
            let target = EndpointPasid { endpoint, pasid: None };
            viommu.set_translation(target, &viommu.unattached(target))?;
        }
        Ok(viommu)
    }

    /// Handles a request. `bytes` is its device-readable part, `writable_size` the size of its
    /// device-writable part in bytes.
    ///
    /// Returns `None` if the buffer has to be returned unwritten: the request type is unknown
    /// (5.13.6.2), or the device-writable part is too small for the tail.
    pub fn handle(&mut self, bytes: &[u8], writable_size: usize) -> Option<Reply<'_>> {
        let request_type = RequestType::of(bytes);
        trace::request_taken(bytes.first().copied(), bytes.len());
        let size_before_tail = writable_size.checked_sub(size_of::<ReqTail>());
        let status =
            size_before_tail.and_then(|size| self.decode_and_execute(request_type, bytes, size));
        trace::request_done(bytes.first().copied(), status.map(|status| status as u8));
        self.counters.count(request_type, status);
        self.update_size_counters();
        Some(match (status?, request_type) {
            (status, RequestType::Probe) => Reply {
                status,
                tail_offset: self.probe_size.min(size_before_tail?),
                properties: if status == Status::Ok { &self.properties } else { &[] },
            },
            (status, _) => Reply { status, tail_offset: 0, properties: &[] },
        })
    }

    /// Returns the status of a request, or `None` if its buffer has to be returned unwritten.
    fn decode_and_execute(
        &mut self,
        request_type: RequestType,
        bytes: &[u8],
        size_before_tail: usize,
    ) -> Option<Status> {
        let request = request::decode(bytes, self.features)?;
        match request.and_then(|request| self.execute(request, size_before_tail)) {
            Ok(()) => Some(Status::Ok),
            Err(error) => {
                let (name, status) = (request_type.name(), error.status());
                log::debug!("{name} request rejected with status {}: {error}", status.name());
                Some(status)
            }
        }
    }

    fn execute(&mut self, request: Request, size_before_tail: usize) -> Result<(), RequestError> {
        match request {
            Request::Attach { domain, endpoint, pasid, bypass } => {
                self.attach(domain, EndpointPasid { endpoint, pasid }, bypass)
            }
            Request::Detach { domain, endpoint, pasid } => {
                self.detach(domain, EndpointPasid { endpoint, pasid })
            }
            Request::Map { domain, virt_start, virt_end, phys_start, access } => {
                self.map(domain, (virt_start, virt_end), phys_start, access)
            }
            Request::Unmap { domain, virt_start, virt_end } => {
                self.unmap(domain, (virt_start, virt_end))
            }
            Request::Probe { endpoint } => self.probe(endpoint, size_before_tail),
            Request::PageResponse { endpoint, pasid, group, response } => {
                self.page_response(endpoint, pasid, group, response)
            }
        }
    }

    fn probe(&mut self, endpoint: EndpointId, size_before_tail: usize) -> Result<(), RequestError> {
        let Endpoint { capabilities, reserved } = self.endpoint(endpoint)?;
        if size_before_tail < self.probe_size {
            return Err(RequestError::SmallBuffer {
                size: size_before_tail,
                required: self.probe_size,
            });
        }
        self.properties = probe::encode(reserved, self.extension_properties(capabilities));
        Ok(())
    }

    fn extension_properties(&self, capabilities: &EndpointCapabilities) -> ExtensionProperties {
        let pasids = self.features.has(wire::F_PASID) && capabilities.pasid_bits > 0;
        let page_requests = self.features.has(wire::F_PAGE_REQUEST);
        ExtensionProperties {
            pasid_bits: pasids.then_some(capabilities.pasid_bits),
            page_requests: capabilities.page_requests.filter(|_| page_requests),
            max_groups: self.settings.limits.page_groups,
        }
    }

    fn page_response(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        group: GroupId,
        response: Response,
    ) -> Result<(), RequestError> {
        let capabilities = &self.endpoint(endpoint)?.capabilities;
        let requests = capabilities.page_requests.ok_or(RequestError::NoPageRequests(endpoint))?;
        self.faults.respond(endpoint, group, pasid, requests.response_needs_pasid, response)?;
        Ok(())
    }

    /// Counts a request that was answered with DEVERR because [`handle`](Self::handle) panicked.
    pub fn count_internal_error(&self, bytes: &[u8]) {
        self.counters.count(RequestType::of(bytes), Some(Status::DevErr));
    }

    /// Returns the counters, which can be read without the lock of the device.
    pub fn counters(&self) -> Arc<DeviceCounters> {
        self.counters.clone()
    }

    fn update_size_counters(&self) {
        self.counters.mappings.set(self.mappings as u64);
        self.counters.domains.set(self.domains.len() as u64);
        self.counters.attachments.set(self.attachments.len() as u64);
    }

    /// Sets the negotiated features. Bits that are not device-specific are ignored.
    pub fn set_features(&mut self, features: u64) {
        self.features = Features(features & Features::OFFERED.0);
        self.faults.enable_page_requests(self.features.has(wire::F_PAGE_REQUEST));
    }

    /// Returns the configuration space as the driver reads it.
    pub fn config(&self) -> wire::Config {
        config_space::read(&self.settings, self.probe_size as u32, self.bypass)
    }

    /// Writes `bytes` at `offset` of the configuration space. Only `bypass` is writable.
    pub fn write_config(&mut self, offset: usize, bytes: &[u8]) {
        match config_space::written_bypass(offset, bytes) {
            Some(bypass) if bypass != self.bypass => self.set_bypass(bypass),
            _ => {}
        }
    }

    /// Replaces guest memory.
    pub fn set_memory(&mut self, memory: &GuestMemoryMmap) {
        self.host.set_memory(memory);
    }

    /// Resets the device: removes all attachments, domains and mappings. `bypass` keeps its value
    /// (5.13.4.2).
    pub fn reset(&mut self) {
        self.faults.reset();
        let attached: Vec<EndpointPasid> = self.attachments.keys().copied().collect();
        for target in attached {
            if let Err(error) = self.remove_attachment(target) {
                log::error!("cannot detach {target} at device reset: {error}");
            }
        }
        self.update_size_counters();
    }

    /// Returns the device to its initial state, for a system reset or a new front end.
    pub fn system_reset(&mut self) {
        self.reset();
        self.set_memory(&GuestMemoryMmap::new());
        self.set_bypass(self.settings.boot_bypass);
    }

    fn endpoint(&self, id: EndpointId) -> Result<&Endpoint, RequestError> {
        self.endpoints.get(&id).ok_or(RequestError::NoEndpoint(id))
    }
}

impl Endpoint {
    fn new(settings: &Settings, capabilities: EndpointCapabilities) -> Self {
        let mut reserved = settings.reserved.clone();
        for range in capabilities.unmappable_ranges() {
            let Some(range) = range.intersection(&settings.input_range) else { continue };
            for range in unreserved_parts(range, &settings.reserved) {
                reserved.push(ReservedRegion { range, kind: ReservedKind::Reserved });
            }
        }
        Self { capabilities, reserved }
    }
}

/// Returns the parts of `range` outside all `reserved` regions.
fn unreserved_parts(range: IovaRange, reserved: &[ReservedRegion]) -> Vec<IovaRange> {
    reserved.iter().fold(vec![range], |parts, region| {
        parts.iter().flat_map(|part| part.without(&region.range)).collect()
    })
}

/// Checks that one more `resource` stays within `limit`.
fn check_limit(resource: &'static str, used: usize, limit: usize) -> Result<(), RequestError> {
    if used < limit { Ok(()) } else { Err(RequestError::Limit { resource, limit }) }
}

#[cfg(test)]
mod tests;
