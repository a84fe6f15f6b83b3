//! A device model with the iommufd back end, without sockets: requests in, statuses out.

use std::sync::Arc;

use accelerator::{DmaError, Pasid};
use vhost_user_iommu::address::{EndpointId, IovaRange};
use vhost_user_iommu::host::HostIommu;
use vhost_user_iommu::host::iommufd::Iommufd;
use vhost_user_iommu::iopf::{EventNotifier, Iopf, Limits};
use vhost_user_iommu::viommu::{Settings, Viommu};
use vm_memory::{GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use testing::front_end::feature;
use testing::memory::{GuestMemory, PAGE};
use testing::request::Request;

/// The input range of the page tables of mock devices.
const ADDRESSES: (u64, u64) = (0, 0x3f_ffff_ffff);

struct Silent;

impl EventNotifier for Silent {
    fn notify(&self) {}
}

pub struct Rig {
    pub viommu: Viommu,
    pub iommufd: Arc<Iommufd>,
}

impl Rig {
    /// Creates a device whose driver accepts all features, and whose endpoints are blocked.
    pub fn new(iommufd: Iommufd, endpoints: &[EndpointId]) -> Self {
        let limits = Limits {
            faults: 64,
            groups: 64,
            response_timeout: std::time::Duration::from_secs(3600),
        };
        let faults = Arc::new(Iopf::new(endpoints.iter().copied(), limits, Box::new(Silent)));
        let iommufd = Arc::new(iommufd);
        let settings = Settings {
            page_size: PAGE,
            input_range: IovaRange::new(ADDRESSES.0, ADDRESSES.1).unwrap(),
            boot_bypass: false,
            reserved: Vec::new(),
            limits: Default::default(),
        };
        let host: Arc<dyn HostIommu> = iommufd.clone();
        let ids = endpoints.iter().copied();
        let mut viommu = Viommu::new(settings, ids, host, faults).unwrap();
        viommu.set_features(feature::DRIVER | feature::PASID | feature::PAGE_REQUEST);
        Self { viommu, iommufd }
    }

    pub fn status(&mut self, request: &Request) -> u8 {
        self.viommu.handle(&request.bytes, request.writable).unwrap().status as u8
    }

    #[track_caller]
    pub fn ok(&mut self, request: Request) {
        assert_eq!(self.status(&request), 0, "status of {request:x?}");
    }

    pub fn set_memory(&mut self, ram: &GuestMemory) {
        self.viommu.set_memory(&ram.0);
    }
}

/// Returns the lowest `count` regions of guest memory.
pub fn first_regions(ram: &GuestMemory, count: usize) -> GuestMemory {
    let all: Vec<GuestAddress> = ram.0.iter().map(|region| region.start_addr()).collect();
    let rest = all[count..].iter().fold(ram.0.clone(), |memory, &start| {
        let len = memory.find_region(start).unwrap().len();
        memory.remove_region(start, len).unwrap().0
    });
    GuestMemory(rest)
}

/// Writes the address of each page to the page.
pub fn number_pages(ram: &GuestMemory, regions: &[(u64, u64)]) {
    for &(first, len) in regions {
        for page in (first..first + len).step_by(PAGE as usize) {
            ram.write(page, &page.to_le_bytes());
        }
    }
}

/// Returns the guest-physical address of the page that an access of 8 bytes reads; `None` if the
/// access faults.
pub fn page_at(
    read: impl FnOnce(Option<Pasid>, &mut [u8]) -> Result<(), DmaError>,
    pasid: Option<u32>,
) -> Option<u64> {
    let mut number = [0; 8];
    read(pasid.map(Pasid), &mut number).ok().map(|()| u64::from_le_bytes(number))
}
