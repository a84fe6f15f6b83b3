//! The mock device of the kernel's iommufd selftest as an endpoint. For tests.
//!
//! Accesses use an access object on the IOAS that the device is attached to, and so the kernel's
//! mappings. Page requests are made by the mock device; the kernel handles them as those of any
//! device. The kernel does not pass responses on to the mock device, so they are reported here when
//! they are written.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use accelerator::{Dma, DmaCause, DmaError};
use rustix::io::Errno;

use super::context::{Context, HwptOptions, Object};
use super::device::Device;
use super::fault_queue::ResponseObserver;
use super::selftest::{HWPT_DATA, TestAccess, TestDevice};
use super::{Iommufd, SetupError};
use crate::address::{EndpointId, Iova, Pasid};
use crate::host::dma::in_pieces;
use crate::host::{Access, KernelError};

/// Receives the response to a page request: the identifier that [`MockDevice::request_page`] was
/// called with, and whether the access is to be retried.
pub type OnResponse = Box<dyn Fn(u32, bool) + Send + Sync>;

/// A mock device.
pub struct MockDevice {
    context: Arc<Context>,
    // Dropped before the HWPT and IOAS that it is attached to.
    device: TestDevice,
    /// The HWPT of a blocked device, and its IOAS: a mock device cannot be detached.
    parking: OnceLock<(Object, Object)>,
    /// Access objects by PASID; `None` is the device itself.
    accesses: RwLock<BTreeMap<Option<Pasid>, TestAccess>>,
    requests: Mutex<Requests>,
    on_response: OnceLock<OnResponse>,
}

/// Page requests without a response.
#[derive(Default)]
struct Requests {
    /// PASID and identifier by page request group index.
    pending: BTreeMap<u32, (Option<Pasid>, u32)>,
    last_grpid: u32,
}

impl Iommufd {
    /// Adds a mock device. It is blocked at first.
    ///
    /// # Errors
    /// If the kernel has no selftest, or for lack of resources.
    pub fn add_mock(&mut self, id: EndpointId) -> Result<Arc<MockDevice>, SetupError> {
        let device = MockDevice::new(&self.context)
            .map_err(|source| SetupError::MockDevice { endpoint: id, source })?;
        let device = Arc::new(device);
        self.add(id, device.clone())?;
        if let Some(queue) = self.fault_queue(id) {
            queue.set_observer(device.clone());
        }
        Ok(device)
    }

    /// Returns the object number that the kernel would give to the next object. It is the same
    /// again when all objects that were created in between are destroyed.
    ///
    /// # Errors
    /// If no object can be created.
    pub fn next_object(&self) -> Result<u32, KernelError> {
        Ok(self.context.alloc_ioas()?.id())
    }
}

impl MockDevice {
    fn new(context: &Arc<Context>) -> Result<Self, KernelError> {
        let parking = context.alloc_ioas()?;
        let device = Self {
            context: context.clone(),
            device: TestDevice::new(context, &parking)?,
            parking: OnceLock::new(),
            accesses: RwLock::default(),
            requests: Mutex::default(),
            on_response: OnceLock::new(),
        };
        let options = HwptOptions { pasids: true, data: Some(HWPT_DATA), ..HwptOptions::default() };
        let hwpt = context.alloc_hwpt(device.device.id(), &parking, &options)?;
        device.device.replace(&hwpt)?;
        let _ = device.parking.set((hwpt, parking));
        Ok(device)
    }

    /// Sets the receiver of responses, once and before the first page request. It is called with
    /// locks held: it must neither block nor call back.
    pub fn set_on_response(&self, on_response: OnResponse) {
        let _ = self.on_response.set(on_response);
    }

    /// Makes a page request, the only one of its group, whose response has the identifier `id`.
    /// Returns whether there will be a response; there is none if the PASID is not attached.
    pub fn request_page(
        &self,
        id: u32,
        pasid: Option<Pasid>,
        address: Iova,
        access: Access,
    ) -> bool {
        // Held until the kernel has the request: a request that meets a detach in progress would
        // be lost without a response.
        let mut requests = self.requests();
        if !self.accesses.read().unwrap_or_else(PoisonError::into_inner).contains_key(&pasid) {
            return false;
        }
        requests.last_grpid = requests.last_grpid.wrapping_add(1);
        let grpid = requests.last_grpid;
        requests.pending.insert(grpid, (pasid, id));
        match self.device.trigger_iopf(pasid, grpid, address, access) {
            Ok(()) => true,
            Err(error) => {
                log::error!("cannot make a page request: {error}");
                requests.pending.remove(&grpid);
                false
            }
        }
    }

    /// Resets the device: it expects no responses to earlier requests.
    pub fn reset(&self) {
        self.requests().pending.clear();
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn notify(&self, id: u32, success: bool) {
        if let Some(on_response) = self.on_response.get() {
            on_response(id, success);
        }
    }

    /// Calls `change`, which changes an attachment, while no access is in progress and no page
    /// request is made. The kernel completes the requests of the previous attachment.
    fn change_attachment(
        &self,
        pasid: Option<Pasid>,
        access: Option<TestAccess>,
        change: impl FnOnce() -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let mut requests = self.requests();
        let mut accesses = self.accesses.write().unwrap_or_else(PoisonError::into_inner);
        change()?;
        match access {
            Some(access) => accesses.insert(pasid, access),
            None => accesses.remove(&pasid),
        };
        let completed: Vec<_> =
            requests.pending.extract_if(.., |_, (requester, _)| *requester == pasid).collect();
        drop((accesses, requests));
        completed.into_iter().for_each(|(_, (_, id))| self.notify(id, false));
        Ok(())
    }

    /// Makes one piece of an access.
    fn access(
        &self,
        pasid: Option<Pasid>,
        access: impl FnOnce(&TestAccess) -> Result<(), Errno>,
    ) -> Result<(), DmaCause> {
        let accesses = self.accesses.read().unwrap_or_else(PoisonError::into_inner);
        match access(accesses.get(&pasid).ok_or(DmaCause::NoDomain)?) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::PERM | Errno::OVERFLOW) => Err(DmaCause::NotMapped),
            Err(errno) => {
                log::warn!("the kernel cannot access guest memory: {errno}");
                Err(DmaCause::NotMemory)
            }
        }
    }
}

impl Device for MockDevice {
    fn id(&self) -> u32 {
        self.device.id()
    }

    fn hwpt_data(&self) -> Option<(u32, [u32; 2])> {
        Some(HWPT_DATA)
    }

    /// As the PRI capability of the accelerator in front of it states.
    fn response_needs_pasid(&self) -> bool {
        true
    }

    fn attach(
        &self,
        pasid: Option<Pasid>,
        hwpt: &Object,
        ioas: &Object,
        replaces: bool,
    ) -> Result<(), KernelError> {
        let access = TestAccess::new(&self.context, ioas)?;
        self.change_attachment(pasid, Some(access), || match pasid {
            None => self.device.replace(hwpt),
            Some(pasid) => self.device.attach_pasid(pasid, hwpt, replaces),
        })
    }

    fn detach(&self, pasid: Option<Pasid>) -> Result<(), KernelError> {
        self.change_attachment(pasid, None, || match (pasid, self.parking.get()) {
            (Some(pasid), _) => self.device.detach_pasid(pasid),
            (None, Some((hwpt, _))) => self.device.replace_without_injection(hwpt),
            (None, None) => Ok(()),
        })
    }
}

impl ResponseObserver for MockDevice {
    fn completed(&self, grpid: u32, success: bool) {
        // Not pending after a reset, or when a change of its attachment has completed it.
        let request = self.requests().pending.remove(&grpid);
        if let Some((_, id)) = request {
            self.notify(id, success);
        }
    }
}

impl Dma for MockDevice {
    fn read(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        buf: &mut [u8],
    ) -> Result<(), DmaError> {
        let pasid = pasid.map(Pasid::from);
        in_pieces(address, buf.len(), |address, offset, len| {
            let piece = &mut buf[offset..offset + len];
            self.access(pasid, |access| access.read(&self.context, address, piece)).map(|()| len)
        })
    }

    fn write(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        buf: &[u8],
    ) -> Result<(), DmaError> {
        let pasid = pasid.map(Pasid::from);
        in_pieces(address, buf.len(), |address, offset, len| {
            let piece = &buf[offset..offset + len];
            self.access(pasid, |access| access.write(&self.context, address, piece)).map(|()| len)
        })
    }
}
