//! The iommufd back end of the daemon: a domain with an endpoint on a mock device.

use std::sync::Arc;
use std::time::{Duration, Instant};

use accelerator::Dma;
use vhost_user_iommu::address::{DomainId, EndpointId, Gpa, IovaRange};
use vhost_user_iommu::host::iommufd::mock_device::MockDevice;
use vhost_user_iommu::host::iommufd::{FaultQueue, Iommufd};
use vhost_user_iommu::host::{Access, AddressSpace, HostIommu, Mapping, Translation};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

use super::{Side, Slot};

const DOMAIN: DomainId = DomainId(1);
const ENDPOINT: EndpointId = EndpointId(8);

pub struct Copying {
    iommufd: Iommufd,
    pub device: Arc<MockDevice>,
    pub queue: Arc<FaultQueue>,
    space: Arc<AddressSpace>,
}

impl Copying {
    pub fn new(memory: &GuestMemoryMmap) -> Self {
        let mut iommufd = Iommufd::open().expect("iommufd");
        let device = iommufd.add_mock(ENDPOINT).expect("a mock device");
        let queue = iommufd.fault_queue(ENDPOINT).expect("the mock makes page requests");
        iommufd.set_memory(memory);
        let space = Arc::new(AddressSpace::default());
        let domain = Translation::Domain(DOMAIN, space.clone());
        iommufd.set_translation(ENDPOINT, None, &domain).expect("attached");
        Self { iommufd, device, queue, space }
    }

    /// Checks that the device reads the memory that is mapped.
    pub fn assert_translates(&self, slot: Slot, memory: &GuestMemoryMmap) {
        let mut found = [0; 8];
        self.device.read(None, slot.iova, &mut found).expect("mapped");
        let expected: u64 = memory.read_obj(GuestAddress(slot.offset)).expect("memory");
        assert_eq!(u64::from_ne_bytes(found), expected, "bytes that the device reads");
    }
}

impl Side for Copying {
    fn map(&self, slot: Slot) -> Duration {
        let gpa = Gpa(slot.offset);
        let mapping = Mapping { range: range(slot), gpa, access: Access::READ_WRITE };
        let start = Instant::now();
        self.iommufd.map(DOMAIN, &mapping).expect("MAP");
        let taken = start.elapsed();
        self.space.insert(mapping);
        taken
    }

    fn unmap(&self, slot: Slot) -> Duration {
        let range = range(slot);
        let start = Instant::now();
        self.iommufd.unmap(DOMAIN, range).expect("UNMAP");
        let taken = start.elapsed();
        self.space.remove(range);
        taken
    }
}

fn range(slot: Slot) -> IovaRange {
    IovaRange::new(slot.iova, slot.iova + (slot.len - 1)).expect("not empty")
}
