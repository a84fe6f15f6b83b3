//! Tests of the device model with a back end that can fail at any call.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Mutex;
use std::time::Duration;

use rustix::io::Errno;

use super::*;
use crate::address::{Access, Iova};
use crate::host::{AddressSpace, KernelError, Mapping, PageRequests, Translation};
use crate::iopf::{Event, EventNotifier, Limits as FaultLimits, PageRequest, Source, SourceCookie};

const PAGE: u64 = 4096;
const ENDPOINTS: [u32; 2] = [8, 16];
/// An endpoint with addresses that the back end cannot map.
const RESTRICTED: EndpointId = EndpointId(99);
/// PASID width of the first endpoint. The other one has no PASIDs.
const PASID_BITS: u8 = 8;

/// Applies translations and mappings to its own state, which [`Device::check`] compares with the
/// device model's, and fails a selected call.
///
/// Like a back end on a real IOMMU, it has a domain while an endpoint is attached to it: the first
/// attachment creates the domain with its mappings, the last detachment destroys it.
#[derive(Default)]
struct FakeHost(Mutex<FakeState>);

#[derive(Default)]
struct FakeState {
    calls: usize,
    fail_at: Option<usize>,
    domains: BTreeMap<u32, FakeDomain>,
    /// By endpoint and PASID.
    translations: BTreeMap<(u32, Option<u32>), FakeTranslation>,
}

struct FakeDomain {
    space: Arc<AddressSpace>,
    mappings: BTreeSet<(u64, u64)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum FakeTranslation {
    Blocked,
    Bypass,
    Domain(u32),
}

impl FakeHost {
    fn change(&self, change: impl FnOnce(&mut FakeState)) -> Result<(), HostError> {
        let mut state = self.0.lock().unwrap();
        state.calls += 1;
        if state.fail_at == Some(state.calls) {
            return Err(HostError::Failed(KernelError::new("call", "the fake host", Errno::IO)));
        }
        change(&mut state);
        Ok(())
    }

    /// Fails the `n`th call from now on, counted from 1.
    fn fail_nth(&self, n: usize) {
        let mut state = self.0.lock().unwrap();
        state.fail_at = Some(state.calls + n);
    }
}

impl FakeState {
    fn domain(&mut self, id: DomainId) -> &mut FakeDomain {
        self.domains.get_mut(&id.0).expect("a domain that an endpoint is attached to")
    }

    /// Attaches to a domain, which is created if nothing was attached to it before.
    fn attach(&mut self, id: DomainId, space: &Arc<AddressSpace>) -> FakeTranslation {
        match self.domains.get(&id.0) {
            Some(domain) => assert!(Arc::ptr_eq(&domain.space, space), "one address space each"),
            None => {
                assert!(space.is_empty(), "a new domain has no mappings");
                let domain = FakeDomain { space: space.clone(), mappings: BTreeSet::new() };
                self.domains.insert(id.0, domain);
            }
        }
        FakeTranslation::Domain(id.0)
    }

    fn destroy_unused_domains(&mut self) {
        let translations: Vec<_> = self.translations.values().copied().collect();
        self.domains.retain(|&id, _| translations.contains(&FakeTranslation::Domain(id)));
    }
}

impl HostIommu for FakeHost {
    fn capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        let mut capabilities = EndpointCapabilities::default();
        if endpoint.0 == ENDPOINTS[0] {
            capabilities.pasid_bits = PASID_BITS;
            capabilities.page_requests = Some(PageRequests { response_needs_pasid: true });
        }
        if endpoint == RESTRICTED {
            let ranges = [(0, 0xfdff_ffff), (0xff00_0000, (1 << 48) - 1)];
            capabilities.iova_ranges =
                ranges.map(|(first, last)| IovaRange::new(first, last).unwrap()).into();
        }
        capabilities
    }

    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let range = (mapping.range.first(), mapping.range.last());
        self.change(|state| assert!(state.domain(domain).mappings.insert(range)))
    }

    fn unmap(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        self.change(|state| {
            let FakeDomain { space, mappings } = state.domain(domain);
            for mapping in space.mappings_in(range) {
                let key = (mapping.range.first(), mapping.range.last());
                assert!(range.covers(&mapping.range));
                assert!(mappings.remove(&key));
            }
            for &(first, last) in &*mappings {
                let kept = IovaRange::new(first, last).unwrap();
                assert!(!range.overlaps(&kept), "a mapping that the address space lacks");
            }
        })
    }

    fn set_translation(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        translation: &Translation,
    ) -> Result<(), HostError> {
        self.change(|state| {
            let translation = match translation {
                Translation::Blocked => FakeTranslation::Blocked,
                Translation::Bypass => FakeTranslation::Bypass,
                Translation::Domain(id, space) => state.attach(*id, space),
            };
            state.translations.insert((endpoint.0, pasid.map(|pasid| pasid.0)), translation);
            state.destroy_unused_domains();
        })
    }
}

struct NoEventQueue;

impl EventNotifier for NoEventQueue {
    fn notify(&self) {}
}

/// A source of page requests that records the responses.
#[derive(Default)]
struct RecordingSource(Mutex<Vec<(u32, Response)>>);

impl Source for RecordingSource {
    fn respond(&self, _: Option<Pasid>, cookie: SourceCookie, response: Response) {
        self.0.lock().unwrap().push((cookie.0, response));
    }

    fn capacity_available(&self) {}
}

/// A device with its back end and fault path.
struct Device {
    viommu: Viommu,
    host: Arc<FakeHost>,
    faults: Arc<Iopf>,
    source: Arc<RecordingSource>,
}

fn settings() -> Settings {
    Settings {
        page_size: PAGE,
        input_range: IovaRange::ALL,
        boot_bypass: false,
        reserved: vec![],
        limits: Limits::default(),
    }
}

fn device(settings: Settings) -> Device {
    let host = Arc::new(FakeHost::default());
    let ids = ENDPOINTS.map(EndpointId);
    let limits = FaultLimits { faults: 4, groups: 4, response_timeout: Duration::from_secs(30) };
    let faults = Arc::new(Iopf::new(ids, limits, Box::new(NoEventQueue)));
    let source = Arc::new(RecordingSource::default());
    faults.set_source(EndpointId(ENDPOINTS[0]), source.clone());
    let mut viommu = Viommu::new(settings, ids, host.clone(), faults.clone()).unwrap();
    viommu.set_features(u64::MAX);
    Device { viommu, host, faults, source }
}

impl Device {
    fn send(&mut self, words: &[&[u8]]) -> Status {
        self.viommu.handle(&words.concat(), 1024).unwrap().status
    }

    fn attach(&mut self, domain: u32, endpoint: u32, flags: u32) -> Status {
        let (domain, endpoint) = (domain.to_le_bytes(), endpoint.to_le_bytes());
        self.send(&[&[1, 0, 0, 0], &domain, &endpoint, &flags.to_le_bytes(), &[0; 4]])
    }

    fn detach(&mut self, domain: u32, endpoint: u32) -> Status {
        self.detach_pasid(domain, endpoint, 0, 0)
    }

    fn attach_pasid(&mut self, domain: u32, endpoint: u32, pasid: u32, flags: u32) -> Status {
        let words = [domain, endpoint, flags, pasid].map(u32::to_le_bytes).concat();
        self.send(&[&[1, 0, 0, 0], &words])
    }

    fn detach_pasid(&mut self, domain: u32, endpoint: u32, pasid: u32, flags: u32) -> Status {
        let words = [domain, endpoint, flags, pasid].map(u32::to_le_bytes).concat();
        self.send(&[&[2, 0, 0, 0], &words])
    }

    fn map(&mut self, domain: u32, first: u64, last: u64, phys: u64) -> Status {
        let range = [first.to_le_bytes(), last.to_le_bytes(), phys.to_le_bytes()].concat();
        self.send(&[&[3, 0, 0, 0], &domain.to_le_bytes(), &range, &3u32.to_le_bytes()])
    }

    fn unmap(&mut self, domain: u32, first: u64, last: u64) -> Status {
        let range = [first.to_le_bytes(), last.to_le_bytes()].concat();
        self.send(&[&[4, 0, 0, 0], &domain.to_le_bytes(), &range, &[0xff; 4]])
    }

    fn page_response(&mut self, endpoint: u32, flags: u32, pasid: u32, last: &[u16; 6]) -> Status {
        let words = [endpoint, flags, pasid].map(u32::to_le_bytes).concat();
        self.send(&[&[8, 0, 0, 0], &words, &last.map(u16::to_le_bytes).concat()])
    }

    /// Delivers a page request group with one request of the first endpoint to the driver.
    fn request_page(&self, pasid: Option<u32>, cookie: u32) {
        let request = PageRequest {
            pasid: pasid.map(Pasid),
            cookie: SourceCookie(cookie),
            address: Iova(0x1000),
            access: Access::READ,
            exec: false,
            privileged: false,
            last: true,
        };
        self.faults.report_page_request(EndpointId(ENDPOINTS[0]), request).unwrap();
        self.faults.deliver(&mut |event| matches!(event, Event::PageRequest { .. }));
    }

    /// Returns the responses that the source has received since the last call.
    fn responses(&self) -> Vec<(u32, Response)> {
        std::mem::take(&mut self.source.0.lock().unwrap())
    }

    /// Returns the number of domains, and of mappings in all of them together.
    fn usage(&self) -> (usize, usize) {
        (self.viommu.domains.len(), self.viommu.mappings)
    }

    /// Checks that the state of the back end matches that of the device model.
    fn check(&self) {
        let state = self.host.0.lock().unwrap();
        let viommu = &self.viommu;
        let ids = viommu.domains.iter().filter(|(_, domain)| !domain.is_bypass());
        let ids: Vec<u32> = ids.map(|(id, _)| id.0).collect();
        assert_eq!(ids, state.domains.keys().copied().collect::<Vec<_>>());
        for (id, domain) in &viommu.domains {
            let attached = viommu.attachments.values().filter(|&to| to == id).count();
            assert_eq!(attached, domain.endpoints);
            assert!(attached > 0, "domain {id} without attachments");
            let in_host = state.domains.get(&id.0).map_or(0, |domain| domain.mappings.len());
            assert_eq!(domain.mappings(), in_host);
        }
        for (&(endpoint, pasid), &translation) in &state.translations {
            let target = EndpointPasid { endpoint: EndpointId(endpoint), pasid: pasid.map(Pasid) };
            let expected = match viommu.attachments.get(&target) {
                None if viommu.bypass && pasid.is_none() => FakeTranslation::Bypass,
                None => FakeTranslation::Blocked,
                Some(id) if viommu.domains[id].is_bypass() => FakeTranslation::Bypass,
                Some(id) => FakeTranslation::Domain(id.0),
            };
            assert_eq!(translation, expected, "{target}");
        }
        let total: usize = viommu.domains.values().map(Domain::mappings).sum();
        assert_eq!(viommu.mappings, total);
    }
}

/// Executes one request of a sequence that ends without attachments.
fn step(device: &mut Device, step: usize) -> Status {
    match step {
        0 => device.attach(1, 8, 0),
        1 => device.map(1, 0, PAGE - 1, 0),
        2 => device.map(1, 4 * PAGE, 8 * PAGE - 1, 0),
        3 => device.attach(1, 16, 0),
        4 => device.unmap(1, 0, PAGE - 1),
        5 => device.attach(2, 16, 0),
        6 => device.attach(3, 8, 1),
        7 => device.attach_pasid(4, 8, 5, 2),
        8 => device.attach_pasid(2, 8, 5, 2),
        9 => device.detach(3, 8),
        10 => device.detach(2, 16),
        _ => device.detach_pasid(2, 8, 5, 1),
    }
}

const STEPS: usize = 12;

#[test]
fn request_failed_by_back_end_changes_nothing() {
    for failing in 0..STEPS {
        for call in 1..=3 {
            let mut device = device(settings());
            (0..failing).for_each(|n| assert_eq!(step(&mut device, n), Status::Ok));
            device.host.fail_nth(call);
            let status = step(&mut device, failing);
            device.check();
            if status != Status::Ok {
                assert_eq!(status, Status::DevErr);
                assert_eq!(step(&mut device, failing), Status::Ok, "step {failing} repeated");
            }
            device.host.0.lock().unwrap().fail_at = None;
            (failing + 1..STEPS).for_each(|n| assert_eq!(step(&mut device, n), Status::Ok));
            device.check();
            assert_eq!(device.usage(), (0, 0));
        }
    }
}

#[test]
fn domain_and_mappings_exist_until_last_detach() {
    let mut device = device(settings());
    assert_eq!(device.map(1, 0, PAGE - 1, 0), Status::NoEnt);
    assert_eq!(device.attach(1, 8, 0), Status::Ok);
    assert_eq!(device.attach(1, 16, 0), Status::Ok);
    assert_eq!(device.map(1, 0, PAGE - 1, 0), Status::Ok);
    assert_eq!(device.detach(1, 8), Status::Ok);
    assert_eq!(device.usage(), (1, 1));
    assert_eq!(device.attach(2, 16, 0), Status::Ok);
    assert_eq!(device.usage(), (1, 0));
    assert_eq!(device.unmap(1, 0, u64::MAX), Status::NoEnt);
    device.check();
}

#[test]
fn requests_beyond_a_limit_are_rejected_with_nomem() {
    let limits = Limits { domains: 1, mappings: 2, endpoints_per_domain: 1, ..Limits::default() };
    let mut device = device(Settings { limits, ..settings() });
    assert_eq!(device.attach(1, 8, 0), Status::Ok);
    assert_eq!(device.attach(1, 16, 0), Status::NoMem);
    assert_eq!(device.attach(2, 16, 0), Status::NoMem);
    // The only endpoint of the only domain moves, so the new domain replaces the old one.
    assert_eq!(device.attach(2, 8, 0), Status::Ok);
    assert_eq!(device.map(2, 0, PAGE - 1, 0), Status::Ok);
    assert_eq!(device.map(2, PAGE, 2 * PAGE - 1, 0), Status::Ok);
    assert_eq!(device.map(2, 2 * PAGE, 3 * PAGE - 1, 0), Status::NoMem);
    assert_eq!(device.unmap(2, 0, PAGE - 1), Status::Ok);
    assert_eq!(device.map(2, 2 * PAGE, 3 * PAGE - 1, 0), Status::Ok);
    device.check();
}

#[test]
fn device_reset_keeps_bypass_and_system_reset_restores_it() {
    let mut device = device(settings());
    device.attach(1, 8, 0);
    device.map(1, 0, PAGE - 1, 0);
    device.viommu.write_config(0, &[[0; 36].as_slice(), &[1, 0, 0, 0]].concat());
    device.viommu.reset();
    assert_eq!(device.viommu.config().bypass, 1);
    assert_eq!(device.usage(), (0, 0));
    device.check();
    device.viommu.system_reset();
    assert_eq!(device.viommu.config().bypass, 0);
    device.check();
}

#[test]
fn bypass_accepts_0_and_1_and_affects_unattached_endpoints_only() {
    let mut device = device(settings());
    device.attach(1, 8, 0);
    for (offset, bytes, bypass) in [
        (36, &[1][..], 1),
        (36, &[2], 1),
        (35, &[7, 0], 0),
        (0, &[1; 36], 0),
        (37, &[1; 3], 0),
        (usize::MAX, &[1], 0),
        (36, &[], 0),
    ] {
        device.viommu.write_config(offset, bytes);
        assert_eq!(device.viommu.config().bypass, bypass, "write of {bytes:?} at {offset}");
        device.check();
    }
}

#[test]
fn probe_writes_all_properties_or_none() {
    let region = |first: u64, kind| ReservedRegion {
        range: IovaRange::new(first, first + 0xfff).unwrap(),
        kind,
    };
    let reserved = vec![region(0x1000, ReservedKind::Msi), region(0x8000, ReservedKind::Reserved)];
    let mut device = device(Settings { reserved, ..settings() });
    let probe = [&[5, 0, 0, 0][..], &8u32.to_le_bytes(), &[0xff; 64]].concat();
    let reply = device.viommu.handle(&probe, 512 + 4).unwrap();
    assert_eq!((reply.status, reply.tail_offset, reply.properties.len()), (Status::Ok, 512, 64));
    assert_eq!(reply.properties[..6], [1, 0, 20, 0, 1, 0]);
    assert_eq!(reply.properties[24..30], [1, 0, 20, 0, 0, 0]);
    let reply = device.viommu.handle(&probe, 512 + 3).unwrap();
    assert_eq!(reply, Reply { status: Status::Inval, tail_offset: 511, properties: &[] });
    let unknown = [&[5, 0, 0, 0][..], &9u32.to_le_bytes(), &[0; 64]].concat();
    let reply = device.viommu.handle(&unknown, 2000).unwrap();
    assert_eq!(reply, Reply { status: Status::NoEnt, tail_offset: 512, properties: &[] });
    assert_eq!(device.viommu.handle(&probe, 3), None);
}

#[test]
fn pasid_has_separate_address_space_until_detach_or_reset() {
    let mut device = device(settings());
    assert_eq!(device.attach(1, 8, 0), Status::Ok);
    assert_eq!(device.attach_pasid(2, 8, 5, 2), Status::Ok);
    assert_eq!(device.map(2, 0, PAGE - 1, 0), Status::Ok);
    // Detaching the endpoint does not detach its PASIDs, and vice versa.
    assert_eq!(device.detach(1, 8), Status::Ok);
    assert_eq!(device.usage(), (1, 1));
    assert_eq!(device.detach(2, 8), Status::Inval);
    assert_eq!(device.detach_pasid(1, 8, 5, 1), Status::Inval);
    assert_eq!(device.detach_pasid(2, 8, 5, 1), Status::Ok);
    assert_eq!(device.detach_pasid(2, 8, 5, 1), Status::NoEnt);
    assert_eq!(device.usage(), (0, 0));
    assert_eq!(device.attach_pasid(2, 8, 5, 2), Status::Ok);
    device.check();
    device.viommu.reset();
    assert_eq!(device.usage(), (0, 0));
    device.check();
}

#[test]
fn attach_pasid_rejects_invalid_parameters() {
    let mut device = device(settings());
    for (endpoint, pasid, flags, status) in [
        (8, 5, 0, Status::Inval),
        (8, 5, 1, Status::Inval),
        (8, 5, 4 | 2, Status::Inval),
        (99, 5, 2, Status::NoEnt),
        (16, 5, 2, Status::Unsupp),
        (8, 0, 2, Status::Range),
        (8, 1 << PASID_BITS, 2, Status::Range),
        (8, u32::MAX, 2, Status::Range),
        (8, 5, 2 | 1, Status::Unsupp),
    ] {
        let result = device.attach_pasid(1, endpoint, pasid, flags);
        assert_eq!(result, status, "endpoint {endpoint}, PASID {pasid}, flags {flags}");
    }
    assert_eq!(device.attach(1, 8, 1), Status::Ok);
    assert_eq!(device.attach_pasid(1, 8, 5, 2), Status::Inval, "existing bypass domain");
    assert_eq!(device.detach_pasid(1, 8, 5, 2), Status::Inval, "unknown flag");
    device.check();
}

#[test]
fn pasids_require_the_negotiated_feature() {
    let mut device = device(settings());
    device.viommu.set_features(!(1 << wire::F_PASID | 1 << wire::F_PAGE_REQUEST));
    assert_eq!(device.attach_pasid(1, 8, 5, 2), Status::Inval);
    assert_eq!(device.attach(1, 8, 0), Status::Ok);
    assert_eq!(device.detach_pasid(1, 8, 5, 0xffff_ffff), Status::Ok, "reserved bytes are ignored");
    let probe = [&[5, 0, 0, 0][..], &8u32.to_le_bytes(), &[0; 64]].concat();
    assert!(device.viommu.handle(&probe, 1024).unwrap().properties.is_empty());
}

#[test]
fn page_response_is_validated_in_documented_order() {
    let mut device = device(settings());
    device.attach_pasid(1, 8, 5, 2);
    device.request_page(Some(5), 70);
    let group = |code| [1, code, 0, 0, 0, 0];
    assert_eq!(device.page_response(9, 1, 5, &group(3)), Status::Inval, "code");
    assert_eq!(device.page_response(9, 2, 5, &group(0)), Status::Inval, "flag");
    assert_eq!(device.page_response(9, 0, 5, &group(0)), Status::Inval, "PASID without its flag");
    for index in 2..6 {
        let mut last = group(0);
        last[index] = 0x100;
        assert_eq!(device.page_response(9, 1, 5, &last), Status::Inval, "reserved");
    }
    assert_eq!(device.page_response(9, 1, 5, &group(0)), Status::NoEnt, "endpoint");
    assert_eq!(
        device.page_response(16, 1, 5, &group(0)),
        Status::NoEnt,
        "endpoint without page requests"
    );
    assert_eq!(device.page_response(8, 1, 5, &[2, 0, 0, 0, 0, 0]), Status::NoEnt, "group");
    assert_eq!(device.page_response(8, 1, 6, &group(0)), Status::NoEnt, "different PASID");
    assert_eq!(device.page_response(8, 0, 0, &group(0)), Status::Inval, "PASID missing");
    assert_eq!(device.responses(), []);
    assert_eq!(device.page_response(8, 1, 5, &group(0)), Status::Ok);
    assert_eq!(device.page_response(8, 1, 5, &group(0)), Status::NoEnt, "already completed");
    assert_eq!(device.responses(), [(70, Response::Success)]);
}

#[test]
fn page_response_requires_the_negotiated_feature() {
    let mut device = device(settings());
    device.viommu.set_features(!(1 << wire::F_PAGE_REQUEST));
    assert_eq!(device.viommu.handle(&[8; 28], 4), None);
}

#[test]
fn detach_and_reset_complete_pending_groups() {
    let changes: [fn(&mut Device) -> Status; 4] = [
        |device| device.detach_pasid(1, 8, 5, 1),
        |device| device.attach_pasid(2, 8, 5, 2),
        |device| {
            device.viommu.reset();
            Status::Ok
        },
        |device| {
            device.viommu.system_reset();
            Status::Ok
        },
    ];
    for change in changes {
        let mut device = device(settings());
        device.attach_pasid(1, 8, 5, 2);
        device.request_page(Some(5), 70);
        assert_eq!(change(&mut device), Status::Ok);
        assert_eq!(device.responses(), [(70, Response::Invalid)]);
        assert_eq!(device.page_response(8, 1, 5, &[1, 0, 0, 0, 0, 0]), Status::NoEnt);
    }
}

#[test]
fn attach_to_same_domain_and_detach_of_other_keep_groups() {
    let mut device = device(settings());
    device.attach(1, 8, 0);
    device.attach_pasid(1, 8, 5, 2);
    device.request_page(Some(5), 70);
    assert_eq!(device.attach_pasid(1, 8, 5, 2), Status::Ok, "same domain");
    assert_eq!(device.detach(1, 8), Status::Ok);
    assert_eq!(device.responses(), []);
    assert_eq!(device.page_response(8, 1, 5, &[1, 0, 0, 0, 0, 0]), Status::Ok);
}

#[test]
fn failed_detach_keeps_delivering_page_requests() {
    let mut device = device(settings());
    device.attach_pasid(1, 8, 5, 2);
    device.host.fail_nth(1);
    assert_eq!(device.detach_pasid(1, 8, 5, 1), Status::DevErr);
    device.request_page(Some(5), 70);
    assert_eq!(device.responses(), []);
    assert_eq!(device.page_response(8, 1, 5, &[1, 0, 0, 0, 0, 0]), Status::Ok);
}

#[test]
fn extension_properties_require_negotiated_features() {
    let mut device = device(settings());
    let mut properties = |features, endpoint: u8| {
        device.viommu.set_features(features);
        let bytes = [&[5, 0, 0, 0, endpoint][..], &[0; 67]].concat();
        device.viommu.handle(&bytes, 1024).unwrap().properties.to_vec()
    };
    let pasid = [0x01, 0x08, 4, 0, PASID_BITS, 0, 0, 0];
    let page_request = [0x02, 0x08, 4, 0, 1, 0, 64, 0];
    assert_eq!(properties(u64::MAX, 8), [pasid, page_request].concat());
    assert!(properties(u64::MAX, 16).is_empty());
    assert_eq!(properties(!(1 << 20), 8), page_request);
    assert_eq!(properties(!(1 << 21), 8), pasid);
}

#[test]
fn unmappable_ranges_outside_reserved_regions_are_reserved() {
    let range = |first, last| IovaRange::new(first, last).unwrap();
    let msi = range(0xfee0_0000, 0xfeef_ffff);
    let settings = Settings {
        input_range: range(0, (1 << 48) - 1),
        reserved: vec![ReservedRegion { range: msi, kind: ReservedKind::Msi }],
        ..settings()
    };
    let around = [range(0xfe00_0000, 0xfedf_ffff), range(0xfef0_0000, 0xfeff_ffff)]
        .map(|range| ReservedRegion { range, kind: ReservedKind::Reserved });
    let host = FakeHost::default();
    let restricted = Endpoint::new(&settings, host.capabilities(RESTRICTED));
    assert_eq!(restricted.reserved, [settings.reserved.as_slice(), &around].concat());
    let unrestricted = Endpoint::new(&settings, host.capabilities(EndpointId(8)));
    assert_eq!(unrestricted.reserved, settings.reserved);
}
