//! The n-th ioctl fails, for every n: no object is left, no range is partially mapped, and the
//! driver reads the right status.

use std::collections::BTreeMap;
use std::sync::Arc;

use accelerator::Dma;
use vhost_user_iommu::address::EndpointId;
use vhost_user_iommu::host::HostIommu;
use vhost_user_iommu::host::iommufd::mock_device::MockDevice;
use vhost_user_iommu::host::iommufd::{Iommufd, inject};

use crate::errors;
use crate::rig::{Rig, first_regions, number_pages, page_at};
use testing::memory::GuestMemory;
use testing::request::{RW, attach, attach_pasid, attach_with, detach, detach_pasid, map, unmap};
use testing::request::{Request, status};

const MIB: u64 = 1 << 20;
const ENDPOINTS: [EndpointId; 2] = [EndpointId(0x10), EndpointId(0x18)];
const EP0: u32 = ENDPOINTS[0].0;
const EP1: u32 = ENDPOINTS[1].0;
const PASID: u32 = 5;

/// Guest memory: two contiguous regions, a separate one, and one that is added later.
const REGIONS: [(u64, u64); 4] =
    [(0, 2 * MIB), (2 * MIB, 2 * MIB), (8 * MIB, 2 * MIB), (16 * MIB, 2 * MIB)];
const ALL: usize = REGIONS.len();

/// The index of an endpoint, and its PASID.
const REQUESTERS: [(usize, Option<u32>); 3] = [(0, None), (0, Some(PASID)), (1, None)];

/// Pages that are read: the first and last of each mapping below, and some others.
const CHECKED: [u64; 10] = [
    0x1000,
    0x1000_0000,
    0x103f_f000,
    0x1060_0000,
    0x107f_f000,
    0x1080_0000,
    0x2000_0000,
    0x2000_1000,
    0x3000_0000,
    0x30ff_f000,
];

#[derive(Clone, Debug)]
enum Step {
    Send(Request),
    /// The first so many regions are guest memory.
    Memory(usize),
}

fn steps() -> Vec<Step> {
    use Step::{Memory, Send};
    vec![
        Memory(3),
        Send(attach(1, EP0)),
        Send(map(1, 0x2000_0000, 0x2000_0fff, 0x5000, RW)),
        // Across two contiguous regions, a hole, and a third one.
        Send(map(1, 0x1000_0000, 0x1000_0000 + 12 * MIB - 1, 0, RW)),
        Send(attach(1, EP1)),
        Send(map(1, 0x2000_1000, 0x2000_1fff, 8 * MIB, 1)),
        Send(attach_pasid(2, EP0, PASID)),
        // To addresses without memory at first.
        Send(map(2, 0x3000_0000, 0x30ff_ffff, 8 * MIB, RW)),
        Memory(ALL),
        Send(attach_pasid(1, EP0, PASID)),
        Send(unmap(1, 0x2000_0000, 0x2000_0fff)),
        Send(attach(3, EP1)),
        Send(map(3, 0x1000, 0x1fff, 0x7000, RW)),
        Memory(1),
        Memory(ALL),
        Send(unmap(1, 0, u64::MAX)),
        Send(map(1, 0x1000_0000, 0x1000_0fff, 0x9000, RW)),
        Send(detach_pasid(1, EP0, PASID)),
        Send(attach_with(4, EP1, 1)),
        Send(detach(4, EP1)),
        Send(detach(1, EP0)),
    ]
}

/// The expected state.
#[derive(Default)]
struct Model {
    regions: usize,
    /// Domains (0: bypass) by requester.
    attached: BTreeMap<(usize, Option<u32>), u32>,
    mappings: BTreeMap<u32, Vec<(u64, u64, u64)>>,
}

impl Model {
    /// Applies a request that was accepted.
    fn apply(&mut self, request: &Request) {
        let le32 = |at: usize| u32::from_le_bytes(request.bytes[at..at + 4].try_into().unwrap());
        let le64 = |at: usize| u64::from_le_bytes(request.bytes[at..at + 8].try_into().unwrap());
        let index = |id: u32| ENDPOINTS.iter().position(|endpoint| endpoint.0 == id).unwrap();
        let domain = le32(4);
        match request.bytes[0] {
            1 => {
                let flags = le32(12);
                let pasid = (flags & 2 != 0).then(|| le32(16));
                let domain = if flags & 1 != 0 { 0 } else { domain };
                self.attached.insert((index(le32(8)), pasid), domain);
            }
            2 => {
                let pasid = (le32(12) & 1 != 0).then(|| le32(16));
                self.attached.remove(&(index(le32(8)), pasid));
            }
            3 => {
                let mapping = (le64(8), le64(16), le64(24));
                self.mappings.entry(domain).or_default().push(mapping);
            }
            4 => {
                let (first, last) = (le64(8), le64(16));
                let mappings = self.mappings.entry(domain).or_default();
                mappings.retain(|mapping| mapping.1 < first || mapping.0 > last);
            }
            kind => panic!("request {kind}"),
        }
        let attached: Vec<u32> = self.attached.values().copied().collect();
        self.mappings.retain(|domain, _| attached.contains(domain));
    }

    /// Returns the guest-physical page that an address translates to.
    fn page_at(&self, requester: (usize, Option<u32>), address: u64) -> Option<u64> {
        let gpa = match self.attached.get(&requester)? {
            0 => address,
            domain => {
                let mappings = self.mappings.get(domain)?;
                let hit = mappings.iter().find(|m| m.0 <= address && address <= m.1)?;
                hit.2 + (address - hit.0)
            }
        };
        let regions = &REGIONS[..self.regions];
        regions.iter().any(|&(first, len)| first <= gpa && gpa < first + len).then_some(gpa)
    }
}

struct Bed {
    rig: Rig,
    devices: [Arc<MockDevice>; 2],
    memories: Vec<GuestMemory>,
    model: Model,
}

impl Bed {
    fn new() -> Self {
        let mut iommufd = Iommufd::open().unwrap();
        let devices = ENDPOINTS.map(|id| iommufd.add_mock(id).unwrap());
        let ram = GuestMemory::new(&REGIONS);
        number_pages(&ram, &REGIONS);
        let memories = (0..=ALL).map(|count| first_regions(&ram, count)).collect();
        Self { rig: Rig::new(iommufd, &ENDPOINTS), devices, memories, model: Model::default() }
    }

    /// Makes a step. If an ioctl fails, the step must fail without effect, and succeed again.
    fn step(&mut self, step: &Step) {
        let armed = inject::is_armed();
        match step {
            Step::Memory(count) => {
                self.rig.set_memory(&self.memories[*count]);
                // There is no status. Regions that failed are tried again at the next change.
                if armed && !inject::is_armed() {
                    self.rig.set_memory(&self.memories[*count]);
                }
                self.model.regions = *count;
            }
            Step::Send(request) => {
                let status = self.rig.status(request);
                if status != status::OK {
                    assert_eq!(status, status::NOMEM, "{request:x?}");
                    assert!(armed && !inject::is_armed(), "no ioctl has failed: {request:x?}");
                    self.check(step);
                    // The driver repeats the request.
                    self.rig.ok(request.clone());
                }
                self.model.apply(request);
            }
        }
        self.check(step);
    }

    #[track_caller]
    fn check(&self, step: &Step) {
        for requester in REQUESTERS {
            for address in CHECKED {
                let (index, pasid) = requester;
                let device = &self.devices[index];
                let found = page_at(|pasid, buf| device.read(pasid, address, buf), pasid);
                let expected = self.model.page_at(requester, address);
                assert_eq!(found, expected, "{requester:?} at {address:#x} after {step:x?}");
            }
        }
    }

    fn run(&mut self) {
        for step in steps() {
            self.step(&step);
        }
    }

    /// Detaches everything and removes all memory. Returns the next object number, which shows
    /// whether objects are left.
    fn end(&mut self) -> u32 {
        self.rig.set_memory(&self.memories[0]);
        self.model = Model::default();
        self.rig.iommufd.next_object().unwrap()
    }
}

#[test]
fn failure_of_any_ioctl_has_no_effect() {
    let mut bed = Bed::new();
    bed.run();
    let clean = bed.end();
    let mut n = 0;
    loop {
        n += 1;
        inject::fail_nth(n);
        bed.run();
        if inject::is_armed() {
            inject::fail_nth(0);
            break;
        }
        assert_eq!(bed.end(), clean, "the failure of ioctl {n} left objects");
    }
    println!("{} ioctls failed", n - 1);
    assert!(n > 50, "only {n} ioctls");
}

#[test]
fn endpoint_that_cannot_be_added_leaves_no_objects() {
    errors::count_from_now();
    let mut n = 0;
    loop {
        let mut iommufd = Iommufd::open().unwrap();
        let clean = iommufd.next_object().unwrap();
        n += 1;
        inject::fail_nth(n);
        let device = iommufd.add_mock(ENDPOINTS[0]);
        if inject::is_armed() {
            inject::fail_nth(0);
            break;
        }
        match device {
            Ok(device) => {
                // The failed ioctl was one that probes an optional capability.
                assert!(iommufd.serves(ENDPOINTS[0]));
                drop(device);
            }
            Err(error) => {
                assert!(error.to_string().contains("0000:00:02.0"), "{error}");
                assert_eq!(iommufd.next_object().unwrap(), clean, "ioctl {n}");
            }
        }
    }
    assert!(n > 5, "only {n} ioctls");
    assert_eq!(errors::count(), 0, "errors in the log");
}

#[test]
fn memory_is_mapped_by_address_without_map_file() {
    errors::count_from_now();
    inject::pretend_unknown(Some("IOMMU_IOAS_MAP_FILE"));
    let mut bed = Bed::new();
    bed.run();
    bed.end();
    inject::pretend_unknown(None);
    assert_eq!(errors::count(), 0, "errors in the log");
}

#[test]
fn kernel_without_fault_queues_is_rejected() {
    inject::pretend_unknown(Some("IOMMU_FAULT_QUEUE_ALLOC"));
    let error = Iommufd::open().unwrap().add_mock(ENDPOINTS[0]).err();
    inject::pretend_unknown(None);
    let error = error.expect("no fault queues").to_string();
    assert!(error.contains("Linux 6.11"), "{error}");
}

#[test]
fn no_pasids_without_hw_info() {
    inject::pretend_unknown(Some("IOMMU_GET_HW_INFO"));
    let mut iommufd = Iommufd::open().unwrap();
    let added = iommufd.add_mock(ENDPOINTS[0]).map(drop);
    inject::pretend_unknown(None);
    added.unwrap();
    assert_eq!(iommufd.capabilities(ENDPOINTS[0]).pasid_bits, 0);
}
