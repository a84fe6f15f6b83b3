//! The back end for host devices: domains and mappings in the host IOMMU, through iommufd.
//!
//! ```text
//! ioctl          the system calls                 inject: failures of them, for tests
//! context        an iommufd context and its objects
//! guest_memory   the IOAS of guest memory
//! ioas           the IOAS of a domain: slices of guest memory
//! device         a device and its capabilities    vfio, mock_device: the kinds of devices
//! attachments    an endpoint: a device and the HWPTs that it is attached to
//! fault_queue    page requests and responses      fault_reader: the thread that reads them
//! ```
//!
//! A domain has an IOAS while an endpoint of this back end is attached to it. Endpoints of other
//! back ends can be attached to the domain, too. An endpoint in bypass has an IOAS with guest
//! memory at guest-physical addresses.

mod attachments;
mod context;
mod device;
mod error;
mod fault_queue;
mod fault_reader;
mod guest_memory;
#[cfg(feature = "selftest")]
pub mod inject;
mod ioas;
mod ioctl;
#[cfg(feature = "selftest")]
pub mod mock_device;
#[cfg(feature = "selftest")]
mod selftest;
mod vfio;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;

use super::{
    Access, AddressSpace, EndpointCapabilities, HostError, HostIommu, KernelError, Mapping,
    Translation,
};
use crate::address::{DomainId, EndpointId, Gpa, IovaRange, Pasid};
use attachments::Endpoint;
use context::Context;
use device::Device;
pub use error::SetupError;
pub use fault_queue::FaultQueue;
pub use fault_reader::FaultReader;
use guest_memory::{GuestMemoryIoas, RegionId};
use ioas::Ioas;
use vfio::VfioDevice;
pub use vfio::VfioFile;

/// Returns the numbers of all ioctls that this back end makes.
pub fn ioctls() -> Vec<u32> {
    #[cfg(feature = "selftest")]
    let numbers = [ioctl::NUMBERS, &[selftest::NUMBER]].concat();
    #[cfg(not(feature = "selftest"))]
    let numbers = ioctl::NUMBERS.to_vec();
    numbers
}

/// The iommufd back end.
pub struct Iommufd {
    // Dropped in this order: HWPTs before IOASs, IOASs of domains before that of guest memory.
    endpoints: BTreeMap<EndpointId, Endpoint>,
    state: Mutex<State>,
    context: Arc<Context>,
}

struct State {
    /// The IOASs that an endpoint is attached to.
    ioases: BTreeMap<IoasKey, Arc<Ioas>>,
    memory: GuestMemoryIoas,
}

/// The purpose of an IOAS.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum IoasKey {
    Domain(DomainId),
    /// An endpoint in bypass.
    Bypass(EndpointId),
}

impl Iommufd {
    /// Opens `/dev/iommu`, without endpoints.
    ///
    /// # Errors
    /// If it cannot be opened or used.
    pub fn open() -> Result<Self, SetupError> {
        let context = Context::open()?;
        let memory = GuestMemoryIoas::new(context.clone())?;
        let state = Mutex::new(State { ioases: BTreeMap::new(), memory });
        Ok(Self { endpoints: BTreeMap::new(), state, context })
    }

    /// Adds a host device. It is blocked at first.
    ///
    /// # Errors
    /// If the device cannot be bound or attached.
    pub fn add_vfio(&mut self, id: EndpointId, file: VfioFile) -> Result<(), SetupError> {
        let device = VfioDevice::bind(&self.context, file)?;
        self.add(id, Arc::new(device))
    }

    fn add(&mut self, id: EndpointId, device: Arc<dyn Device>) -> Result<(), SetupError> {
        let endpoint = Endpoint::new(&self.context, id, device)?;
        self.endpoints.insert(id, endpoint);
        Ok(())
    }

    /// Returns whether this back end serves `endpoint`.
    pub fn serves(&self, endpoint: EndpointId) -> bool {
        self.endpoints.contains_key(&endpoint)
    }

    /// Returns the fault queue of an endpoint, if it can make page requests.
    pub fn fault_queue(&self, endpoint: EndpointId) -> Option<Arc<FaultQueue>> {
        self.endpoints.get(&endpoint)?.queue.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Returns the IOAS for `key`, which is created with the mappings of `address_space` if there
    /// is none.
    fn ioas(
        &mut self,
        context: &Arc<Context>,
        key: IoasKey,
        address_space: Arc<AddressSpace>,
    ) -> Result<Arc<Ioas>, HostError> {
        if let Some(ioas) = self.ioases.get(&key) {
            return Ok(ioas.clone());
        }
        let ioas = Arc::new(Ioas::new(context, &self.memory, address_space)?);
        self.ioases.insert(key, ioas.clone());
        Ok(ioas)
    }

    /// Destroys the IOASs that no endpoint is attached to.
    fn destroy_unused_ioases(&mut self) {
        self.ioases.retain(|_, ioas| Arc::strong_count(ioas) > 1);
    }

    /// Maps a region of guest memory in all IOASs with mappings that translate to it.
    fn map_region(&self, region: &RegionId) -> Result<(), KernelError> {
        self.ioases.values().try_for_each(|ioas| ioas.map_region(&self.memory, region))
    }

    /// Unmaps a region of guest memory in all IOASs.
    fn remove_region(&mut self, region: &RegionId) -> Result<(), KernelError> {
        self.ioases.values().try_for_each(|ioas| ioas.unmap_region(region))?;
        self.memory.remove_region(region)
    }
}

/// Returns an address space that maps all of `ranges` to the same guest-physical addresses.
fn identity_mapped(ranges: &[IovaRange]) -> Arc<AddressSpace> {
    let address_space = AddressSpace::default();
    for &range in ranges {
        let gpa = Gpa(range.first());
        address_space.insert(Mapping { range, gpa, access: Access::READ_WRITE });
    }
    Arc::new(address_space)
}

impl HostIommu for Iommufd {
    fn capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        let endpoint = self.endpoints.get(&endpoint);
        endpoint.map_or_else(Default::default, |endpoint| endpoint.capabilities.clone())
    }

    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let state = self.lock();
        match state.ioases.get(&IoasKey::Domain(domain)) {
            Some(ioas) => ioas.map(&state.memory, mapping),
            None => Ok(()),
        }
    }

    fn unmap(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        let state = self.lock();
        match state.ioases.get(&IoasKey::Domain(domain)) {
            Some(ioas) => ioas.unmap(&state.memory, range),
            None => Ok(()),
        }
    }

    fn set_translation(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        translation: &Translation,
    ) -> Result<(), HostError> {
        let attachments =
            self.endpoints.get(&endpoint).ok_or(HostError::UnknownEndpoint(endpoint))?;
        let mut state = self.lock();
        let ioas = match translation {
            Translation::Blocked => None,
            Translation::Bypass => {
                let address_space = identity_mapped(&attachments.capabilities.iova_ranges);
                Some(state.ioas(&self.context, IoasKey::Bypass(endpoint), address_space)?)
            }
            Translation::Domain(id, address_space) => {
                Some(state.ioas(&self.context, IoasKey::Domain(*id), address_space.clone())?)
            }
        };
        let result = attachments.set_ioas(pasid, ioas);
        state.destroy_unused_ioases();
        result
    }

    /// A region that cannot be added or removed now is tried again at the next change.
    fn set_memory(&self, memory: &GuestMemoryMmap) {
        let mut state = self.lock();
        for region in state.memory.regions_not_in(memory) {
            if let Err(error) = state.remove_region(&region) {
                log::error!("host devices can access guest memory that was removed: {error}");
            }
        }
        for region in state.memory.add_regions(memory) {
            if let Err(error) = state.map_region(&region) {
                log::error!("host devices cannot access {region} of guest memory: {error}");
                if let Err(error) = state.remove_region(&region) {
                    log::error!("cannot remove {region} of guest memory: {error}");
                }
            }
        }
    }
}
