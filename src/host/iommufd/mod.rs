//! The back end of physical endpoints: domains and mappings in the host's IOMMU, by iommufd.
//!
//! ```text
//! kernel     the calls, one function each       sys: their numbers, and what is unsafe
//! ram        guest memory, known to the kernel once
//! space      the mappings of a domain: slices of that
//! endpoint   a device, what it can do, what it is attached to      vfio: a physical one
//! faults     its page requests, and their answers
//! ```
//!
//! A domain is in the kernel while an endpoint of the kernel's is attached to it; other
//! endpoints can be attached to it as well. An endpoint that bypasses gets an address space of
//! its own, with guest memory where it is.

mod endpoint;
#[cfg(feature = "selftest")]
pub mod fail;
mod fault_reader;
mod faults;
mod kernel;
#[cfg(feature = "selftest")]
pub mod mock;
mod ram;
mod space;
mod sys;
mod vfio;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::GuestMemoryMmap;

use super::{
    Access, AddressSpace, EndpointCapabilities, HostError, HostIommu, Mapping, Translation,
};
use crate::address::{DomainId, EndpointId, Gpa, IovaRange, Pasid};
use endpoint::{Device, Endpoint};
pub use fault_reader::KernelSource;
pub use faults::{FaultGroup, FaultPage, FaultQueue, Handle};
pub use kernel::{Kernel, KernelError};
use ram::{Identity, Ram};
use space::Space;
use vfio::VfioDevice;
pub use vfio::VfioFile;

/// The numbers of all ioctls that are made here.
pub fn ioctls() -> Vec<u32> {
    #[cfg(feature = "selftest")]
    let numbers = [sys::NUMBERS, &[mock::IOCTL]].concat();
    #[cfg(not(feature = "selftest"))]
    let numbers = sys::NUMBERS.to_vec();
    numbers
}

/// The endpoints that the kernel holds.
pub struct Iommufd {
    // Dropped in this order: page tables before address spaces.
    endpoints: BTreeMap<EndpointId, Endpoint>,
    state: Mutex<State>,
    kernel: Arc<Kernel>,
}

struct State {
    /// Those that an endpoint of the kernel's is attached to.
    spaces: BTreeMap<Key, Arc<Space>>,
    ram: Ram,
}

/// What an address space in the kernel is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Key {
    Domain(DomainId),
    /// An endpoint that bypasses.
    Bypass(EndpointId),
}

impl Iommufd {
    /// No endpoints yet.
    ///
    /// # Errors
    /// When there is no iommufd to be had, in a sentence.
    pub fn open() -> Result<Self, String> {
        let kernel = Kernel::open()?;
        let ram = Ram::new(kernel.clone()).map_err(|error| error.to_string())?;
        let state = Mutex::new(State { spaces: BTreeMap::new(), ram });
        Ok(Self { endpoints: BTreeMap::new(), state, kernel })
    }

    /// Adds a physical device. It is blocked at first.
    ///
    /// # Errors
    /// Why it cannot be had, in a sentence.
    pub fn add_vfio(&mut self, id: EndpointId, file: VfioFile) -> Result<(), String> {
        let device = VfioDevice::bind(&self.kernel, file)?;
        self.add(id, Arc::new(device))
    }

    fn add(&mut self, id: EndpointId, device: Arc<dyn Device>) -> Result<(), String> {
        let endpoint = Endpoint::new(&self.kernel, id, device)?;
        self.endpoints.insert(id, endpoint);
        Ok(())
    }

    /// Whether this back end serves `endpoint`.
    pub fn serves(&self, endpoint: EndpointId) -> bool {
        self.endpoints.contains_key(&endpoint)
    }

    /// Where the page requests of an endpoint come from, if it makes any.
    pub fn fault_queue(&self, endpoint: EndpointId) -> Option<Arc<FaultQueue>> {
        self.endpoints.get(&endpoint)?.queue.clone()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// The address space for `key`; one that is not there yet is made after `books`.
    fn space(
        &mut self,
        kernel: &Arc<Kernel>,
        key: Key,
        books: impl FnOnce() -> Arc<AddressSpace>,
    ) -> Result<Arc<Space>, HostError> {
        if let Some(space) = self.spaces.get(&key) {
            return Ok(space.clone());
        }
        let space = Arc::new(Space::new(kernel, &self.ram, books())?);
        self.spaces.insert(key, space.clone());
        Ok(space)
    }

    /// Forgets the address spaces that nothing is attached to.
    fn prune(&mut self) {
        self.spaces.retain(|_, space| Arc::strong_count(space) > 1);
    }
}

/// Every address that can be mapped, mapped to itself.
fn identity(ranges: &[IovaRange]) -> Arc<AddressSpace> {
    let books = AddressSpace::default();
    for &range in ranges {
        let gpa = Gpa(range.first());
        books.insert(Mapping { range, gpa, access: Access::READ_WRITE });
    }
    Arc::new(books)
}

impl HostIommu for Iommufd {
    fn map(&self, domain: DomainId, mapping: &Mapping) -> Result<(), HostError> {
        let state = self.lock();
        match state.spaces.get(&Key::Domain(domain)) {
            Some(space) => space.map(&state.ram, mapping),
            None => Ok(()),
        }
    }

    fn unmap(&self, domain: DomainId, range: IovaRange) -> Result<(), HostError> {
        let state = self.lock();
        match state.spaces.get(&Key::Domain(domain)) {
            Some(space) => space.unmap(&state.ram, range),
            None => Ok(()),
        }
    }

    fn capabilities(&self, endpoint: EndpointId) -> EndpointCapabilities {
        let endpoint = self.endpoints.get(&endpoint);
        endpoint.map_or_else(Default::default, |endpoint| endpoint.capabilities.clone())
    }

    fn set_memory(&self, memory: &GuestMemoryMmap) {
        let State { spaces, ram } = &mut *self.lock();
        let spaces = || spaces.values();
        let forget = |ram: &mut Ram, region: &Identity| {
            spaces().try_for_each(|space| space.uncover(region)).and_then(|()| ram.remove(region))
        };
        // What cannot be done now is tried again when memory changes the next time.
        for region in ram.missing_in(memory) {
            if let Err(error) = forget(ram, &region) {
                log::error!("memory that has gone can still be reached by devices: {error}");
            }
        }
        for region in ram.add_from(memory) {
            if let Err(error) = spaces().try_for_each(|space| space.cover(ram, &region)) {
                log::error!("memory that has appeared cannot be reached by devices: {error}");
                if let Err(error) = forget(ram, &region) {
                    log::error!("nor can it be forgotten: {error}");
                }
            }
        }
    }

    fn set_translation(
        &self,
        endpoint: EndpointId,
        pasid: Option<Pasid>,
        to: &Translation,
    ) -> Result<(), HostError> {
        let Some(device) = self.endpoints.get(&endpoint) else {
            return Err(HostError::Failed(format!("the kernel has no endpoint {endpoint}")));
        };
        let mut state = self.lock();
        let space = match to {
            Translation::Blocked => None,
            Translation::Bypass => {
                let books = || identity(&device.capabilities.iova_ranges);
                Some(state.space(&self.kernel, Key::Bypass(endpoint), books)?)
            }
            Translation::Domain(id, books) => {
                Some(state.space(&self.kernel, Key::Domain(*id), || books.clone())?)
            }
        };
        let routed = device.route(pasid, space);
        state.prune();
        routed
    }
}
