//! Random requests, handled by the device model and by a literal implementation of the
//! specification. Both must have the same statuses and the same translations.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use accelerator::{ClientMemory, Dma, DmaCause};
use proptest::prelude::*;
use vhost_user_iommu::address::{EndpointId, IovaRange};
use vhost_user_iommu::host::software::{Port, Software};
use vhost_user_iommu::host::{ReservedKind, ReservedRegion};
use vhost_user_iommu::iopf::{EventNotifier, Iopf, Limits as FaultLimits};
use vhost_user_iommu::viommu::{Limits, Settings, Viommu};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const PAGE: u64 = 4096;
/// Size of guest memory in pages. The first byte of each page is its number.
const MEMORY: u64 = 32;
const ENDPOINTS: [u32; 3] = [8, 16, 24];
/// Endpoints in requests, one of which does not exist.
const REQUEST_ENDPOINTS: [u32; 4] = [8, 16, 24, 99];
const LIMITS: Limits = Limits { domains: 3, mappings: 12, endpoints_per_domain: 2, page_groups: 4 };
/// Size in pages of each of two windows, at the start and at the end of the address space.
const WINDOW: u64 = 16;
/// Reserved pages of the first window.
const RESERVED: std::ops::Range<u64> = 6..8;
/// Number of pages at the start of the first window that are outside the input range.
const BEFORE_INPUT: u64 = 1;

/// Features of the specification, without the page request extension.
const STANDARD_FEATURES: u64 = 0xff;

const OK: u8 = 0;
const INVAL: u8 = 4;
const RANGE: u8 = 5;
const NOENT: u8 = 6;
const NOMEM: u8 = 8;

#[derive(Clone, Debug)]
enum Step {
    Attach { domain: u32, endpoint: u32, flags: u32 },
    Detach { domain: u32, endpoint: u32 },
    Map { domain: u32, first: u64, last: u64, phys: u64, flags: u32 },
    Unmap { domain: u32, first: u64, last: u64 },
    SetBypass(bool),
    Reset,
}

/// A literal implementation of the specification.
#[derive(Default)]
struct Model {
    attached: BTreeMap<u32, u32>,
    domains: BTreeMap<u32, ModelDomain>,
    bypass: bool,
}

#[derive(Clone, Default)]
struct ModelDomain {
    bypass: bool,
    mappings: Vec<(u64, u64, u64, u32)>,
}

/// Result of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum AccessResult {
    Page(u8),
    NoDomain,
    NotMapped,
    NotMemory,
}

impl Model {
    fn step(&mut self, step: &Step) -> u8 {
        match *step {
            Step::Attach { domain, endpoint, flags } => self.attach(domain, endpoint, flags),
            Step::Detach { domain, endpoint } => self.detach(domain, endpoint),
            Step::Map { domain, first, last, phys, flags } => {
                self.map(domain, first, last, phys, flags)
            }
            Step::Unmap { domain, first, last } => self.unmap(domain, first, last),
            Step::SetBypass(bypass) => {
                self.bypass = bypass;
                OK
            }
            Step::Reset => {
                self.attached.clear();
                self.domains.clear();
                OK
            }
        }
    }

    fn attach(&mut self, id: u32, endpoint: u32, flags: u32) -> u8 {
        if flags & !1 != 0 {
            return INVAL;
        }
        if !ENDPOINTS.contains(&endpoint) {
            return NOENT;
        }
        let bypass = flags == 1;
        if self.domains.get(&id).is_some_and(|domain| domain.bypass != bypass) {
            return INVAL;
        }
        if self.attached.get(&endpoint) == Some(&id) {
            return OK;
        }
        let mut after = self.attached.clone();
        after.insert(endpoint, id);
        let used: std::collections::BTreeSet<_> = after.values().collect();
        let members = after.values().filter(|&&domain| domain == id).count();
        if used.len() > LIMITS.domains || members > LIMITS.endpoints_per_domain {
            return NOMEM;
        }
        self.domains.entry(id).or_insert(ModelDomain { bypass, mappings: vec![] });
        self.attached = after;
        self.drop_unused();
        OK
    }

    fn detach(&mut self, id: u32, endpoint: u32) -> u8 {
        if !ENDPOINTS.contains(&endpoint) {
            return NOENT;
        }
        if self.attached.get(&endpoint) != Some(&id) {
            return INVAL;
        }
        self.attached.remove(&endpoint);
        self.drop_unused();
        OK
    }

    fn drop_unused(&mut self) {
        let attached = &self.attached;
        self.domains.retain(|id, _| attached.values().any(|domain| domain == id));
    }

    fn map(&mut self, id: u32, first: u64, last: u64, phys: u64, flags: u32) -> u8 {
        if flags & !3 != 0 {
            return INVAL;
        }
        let total: usize = self.domains.values().map(|domain| domain.mappings.len()).sum();
        let Some(domain) = self.domains.get_mut(&id) else { return NOENT };
        if domain.bypass || last < first {
            return INVAL;
        }
        if [first, last.wrapping_add(1), phys].iter().any(|end| !end.is_multiple_of(PAGE)) {
            return RANGE;
        }
        if first < BEFORE_INPUT * PAGE || phys.checked_add(last - first).is_none() {
            return RANGE;
        }
        let reserved = (RESERVED.start * PAGE, RESERVED.end * PAGE - 1);
        let overlaps = |&(a, b): &(u64, u64)| a <= last && first <= b;
        let mut taken = domain.mappings.iter().map(|m| (m.0, m.1)).chain([reserved]);
        if taken.any(|range| overlaps(&range)) {
            return INVAL;
        }
        if total >= LIMITS.mappings {
            return NOMEM;
        }
        domain.mappings.push((first, last, phys, flags));
        OK
    }

    fn unmap(&mut self, id: u32, first: u64, last: u64) -> u8 {
        let Some(domain) = self.domains.get_mut(&id) else { return NOENT };
        if domain.bypass || last < first {
            return INVAL;
        }
        let touches = |m: &(u64, u64, u64, u32)| m.0 <= last && first <= m.1;
        let inside = |m: &(u64, u64, u64, u32)| first <= m.0 && m.1 <= last;
        if domain.mappings.iter().any(|m| touches(m) && !inside(m)) {
            return RANGE;
        }
        domain.mappings.retain(|m| !inside(m));
        OK
    }

    fn access(&self, endpoint: u32, address: u64, flag: u32) -> AccessResult {
        if (RESERVED.start * PAGE..RESERVED.end * PAGE).contains(&address) {
            return AccessResult::NotMapped;
        }
        let domain = self.attached.get(&endpoint).map(|id| &self.domains[id]);
        let phys = match domain {
            None if !self.bypass => return AccessResult::NoDomain,
            None => Some(address),
            Some(domain) if domain.bypass => Some(address),
            Some(domain) => domain
                .mappings
                .iter()
                .find(|m| m.0 <= address && address <= m.1 && m.3 & flag != 0)
                .map(|m| m.2 + (address - m.0)),
        };
        match phys {
            None => AccessResult::NotMapped,
            Some(phys) if phys / PAGE < MEMORY => AccessResult::Page((phys / PAGE) as u8),
            Some(_) => AccessResult::NotMemory,
        }
    }
}

/// The device model, with a port to issue accesses of each endpoint.
struct Device {
    viommu: Viommu,
    ports: Vec<(u32, Arc<Port>)>,
}

struct NoEventQueue;

impl EventNotifier for NoEventQueue {
    fn notify(&self) {}
}

impl Device {
    fn new() -> Self {
        let reserved = vec![ReservedRegion {
            range: IovaRange::new(RESERVED.start * PAGE, RESERVED.end * PAGE - 1).unwrap(),
            kind: ReservedKind::Msi,
        }];
        let settings = Settings {
            page_size: PAGE,
            input_range: IovaRange::new(BEFORE_INPUT * PAGE, u64::MAX).unwrap(),
            boot_bypass: false,
            reserved,
            limits: LIMITS,
        };
        let mut host = Software::new(&settings.reserved);
        let ports = ENDPOINTS.map(|id| (id, host.add_endpoint(EndpointId(id), memory())));
        let ids = ENDPOINTS.map(EndpointId);
        let limits =
            FaultLimits { faults: 4, groups: 4, response_timeout: Duration::from_secs(30) };
        let faults = Arc::new(Iopf::new(ids, limits, Box::new(NoEventQueue)));
        let mut viommu = Viommu::new(settings, ids, Arc::new(host), faults).unwrap();
        viommu.set_features(STANDARD_FEATURES);
        Self { viommu, ports: ports.into() }
    }

    fn step(&mut self, step: &Step) -> u8 {
        match *step {
            Step::Attach { domain, endpoint, flags } => {
                self.send(1, &[&u32s(&[domain, endpoint, flags, 0])])
            }
            Step::Detach { domain, endpoint } => self.send(2, &[&u32s(&[domain, endpoint, 7, 7])]),
            Step::Map { domain, first, last, phys, flags } => {
                self.send(3, &[&u32s(&[domain]), &u64s(&[first, last, phys]), &u32s(&[flags])])
            }
            Step::Unmap { domain, first, last } => {
                self.send(4, &[&u32s(&[domain]), &u64s(&[first, last]), &u32s(&[7])])
            }
            Step::SetBypass(bypass) => {
                self.viommu.write_config(36, &[bypass.into()]);
                OK
            }
            Step::Reset => {
                self.viommu.reset();
                OK
            }
        }
    }

    fn send(&mut self, kind: u8, body: &[&[u8]]) -> u8 {
        let request = [&[kind, 9, 9, 9], &body.concat()[..]].concat();
        self.viommu.handle(&request, 4).expect("known type").status as u8
    }

    fn access(&self, endpoint: u32, address: u64, flag: u32) -> AccessResult {
        let (_, port) = self.ports.iter().find(|(id, _)| *id == endpoint).unwrap();
        let mut byte = [0];
        let result = match flag {
            1 => port.read(None, address, &mut byte),
            // The write changes the number of the page, which is restored afterwards.
            _ => port.write(None, address, &[0xff]).map(|()| {
                byte[0] = self.restore(endpoint);
            }),
        };
        match result.map_err(|error| error.cause) {
            Ok(()) => AccessResult::Page(byte[0]),
            Err(DmaCause::NoDomain) => AccessResult::NoDomain,
            Err(DmaCause::NotMapped) => AccessResult::NotMapped,
            Err(DmaCause::NotMemory) => AccessResult::NotMemory,
        }
    }

    /// Restores the number of the page that a write has changed, and returns it.
    fn restore(&self, endpoint: u32) -> u8 {
        let (_, port) = self.ports.iter().find(|(id, _)| *id == endpoint).unwrap();
        let memory = port.memory();
        let changed = (0..MEMORY)
            .find(|page| memory.read_obj::<u8>(GuestAddress(page * PAGE)).unwrap() == 0xff);
        let page = changed.expect("successful write changes memory");
        memory.write_obj(page as u8, GuestAddress(page * PAGE)).unwrap();
        page as u8
    }
}

fn memory() -> ClientMemory {
    let size = (MEMORY * PAGE) as usize;
    let memory = GuestMemoryMmap::<()>::from_ranges(&[(GuestAddress(0), size)]).unwrap();
    for page in 0..MEMORY {
        memory.write_obj(page as u8, GuestAddress(page * PAGE)).unwrap();
    }
    ClientMemory::new(memory)
}

fn u32s(values: &[u32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

fn u64s(values: &[u64]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Returns the first address of a page in one of the windows.
fn page(number: u64) -> u64 {
    if number < WINDOW { number * PAGE } else { u64::MAX - (2 * WINDOW - number) * PAGE + 1 }
}

fn pages() -> impl Strategy<Value = (u64, u64)> {
    // Mostly short aligned ranges, sometimes long, unaligned or inverted ones.
    let aligned = (0..2 * WINDOW, 0..4u64).prop_map(|(first, more)| {
        (page(first), page((first + more).min(2 * WINDOW - 1)) + (PAGE - 1))
    });
    let any = (0..2 * WINDOW, 0..2 * WINDOW, 0..3u64, 0..3u64)
        .prop_map(|(a, b, c, d)| (page(a) + c, (page(b) + (PAGE - 1)) - d));
    prop_oneof![8 => aligned, 1 => any, 1 => Just((0, u64::MAX))]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let domain = 0..5u32;
    let endpoint = prop::sample::select(&REQUEST_ENDPOINTS[..]);
    let flags = prop_oneof![8 => Just(3u32), 1 => Just(1), 1 => Just(2), 1 => 0..8u32];
    let phys = prop_oneof![
        8 => (0..MEMORY + 2).prop_map(|page| page * PAGE),
        1 => Just(u64::MAX - (PAGE - 1)),
        1 => 0..MEMORY * PAGE
    ];
    let attach_flags = prop_oneof![8 => Just(0u32), 3 => Just(1), 1 => 2..4u32];
    let attach = (domain.clone(), endpoint.clone(), attach_flags)
        .prop_map(|(domain, endpoint, flags)| Step::Attach { domain, endpoint, flags });
    let detach =
        (domain.clone(), endpoint).prop_map(|(domain, endpoint)| Step::Detach { domain, endpoint });
    let map =
        (domain.clone(), pages(), phys, flags).prop_map(|(domain, (first, last), phys, flags)| {
            Step::Map { domain, first, last, phys, flags }
        });
    let unmap =
        (domain, pages()).prop_map(|(domain, (first, last))| Step::Unmap { domain, first, last });
    let step = prop_oneof![
        6 => attach,
        2 => detach,
        16 => map,
        6 => unmap,
        1 => any::<bool>().prop_map(Step::SetBypass),
        1 => Just(Step::Reset),
    ];
    prop::collection::vec(step, 1..80)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: crate::cases(400), ..ProptestConfig::default() })]

    #[test]
    fn device_model_matches_specification(steps in steps()) {
        let (mut model, mut device) = (Model::default(), Device::new());
        for (number, step) in steps.iter().enumerate() {
            prop_assert_eq!(device.step(step), model.step(step), "status of step {}: {:?}", number, step);
        }
        for endpoint in ENDPOINTS {
            for address in (0..2 * WINDOW).map(page) {
                for flag in [1, 2] {
                    let (result, expected) =
                        (device.access(endpoint, address, flag), model.access(endpoint, address, flag));
                    prop_assert_eq!(result, expected, "endpoint {} at {:#x}", endpoint, address);
                }
            }
        }
    }
}
