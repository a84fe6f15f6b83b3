//! An endpoint's device, and the HWPTs that it and its PASIDs are attached to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use super::context::{Context, HwptOptions, Object};
use super::device::{Device, probe};
use super::error::SetupError;
use super::fault_queue::FaultQueue;
use super::ioas::Ioas;
use crate::address::{EndpointId, Pasid};
use crate::host::{EndpointCapabilities, HostError, KernelError};

/// An endpoint whose device is bound to iommufd.
pub(super) struct Endpoint {
    context: Arc<Context>,
    // Dropped in this order: the kernel destroys no queue that an HWPT refers to.
    attachments: Mutex<Attachments>,
    device: Arc<dyn Device>,
    pub(super) queue: Option<Arc<FaultQueue>>,
    pub(super) capabilities: EndpointCapabilities,
}

/// HWPTs by PASID; `None` is the endpoint itself. Those that are not here are blocked.
type Attachments = BTreeMap<Option<Pasid>, Arc<Hwpt>>;

/// An HWPT of one endpoint over an IOAS. All its PASIDs with this IOAS share it.
struct Hwpt {
    // Dropped in this order: the kernel destroys no IOAS that an HWPT refers to.
    object: Object,
    ioas: Arc<Ioas>,
}

impl Endpoint {
    /// Determines the capabilities of `device`. The endpoint is blocked at first.
    pub(super) fn new(
        context: &Arc<Context>,
        id: EndpointId,
        device: Arc<dyn Device>,
    ) -> Result<Self, SetupError> {
        let queue = context
            .alloc_fault_queue()
            .map_err(|source| SetupError::FaultQueue { endpoint: id, source })?;
        let queue = FaultQueue::new(id, queue);
        let capabilities = probe(context, id, &*device, queue.id())?;
        let queue = capabilities.page_requests.map(|_| Arc::new(queue));
        if queue.is_none() {
            log::info!("endpoint {id}: the host IOMMU delivers no page requests");
        }
        let (context, attachments) = (context.clone(), Mutex::default());
        Ok(Self { context, attachments, device, queue, capabilities })
    }

    /// Attaches the endpoint or one of its PASIDs to an IOAS; `None` blocks it. After the call no
    /// access uses the previous translation, and page requests through it have their response.
    pub(super) fn set_ioas(
        &self,
        pasid: Option<Pasid>,
        ioas: Option<Arc<Ioas>>,
    ) -> Result<(), HostError> {
        let mut attachments = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        let new = ioas.map(|ioas| self.hwpt(&attachments, ioas)).transpose()?;
        let old = attachments.get(&pasid);
        // The kernel completes no page requests if the attachment stays the same.
        if new.as_ref().map(Arc::as_ptr) == old.map(Arc::as_ptr) {
            return Ok(());
        }
        let replaces = old.is_some();
        match &self.queue {
            Some(queue) => {
                queue.change_attachment(pasid, || self.attach(pasid, new.as_deref(), replaces))
            }
            None => self.attach(pasid, new.as_deref(), replaces),
        }
        .map_err(|error| HostError::new(error, HostError::Unsupported))?;
        match new {
            Some(new) => attachments.insert(pasid, new),
            None => attachments.remove(&pasid),
        };
        Ok(())
    }

    fn attach(
        &self,
        pasid: Option<Pasid>,
        hwpt: Option<&Hwpt>,
        replaces: bool,
    ) -> Result<(), KernelError> {
        match hwpt {
            Some(Hwpt { object, ioas }) => {
                self.device.attach(pasid, object, ioas.object(), replaces)
            }
            None => self.device.detach(pasid),
        }
    }

    /// Returns the endpoint's HWPT over `ioas`, which is allocated if it has none.
    fn hwpt(&self, attachments: &Attachments, ioas: Arc<Ioas>) -> Result<Arc<Hwpt>, HostError> {
        if let Some(hwpt) = attachments.values().find(|hwpt| Arc::ptr_eq(&hwpt.ioas, &ioas)) {
            return Ok(hwpt.clone());
        }
        let options = HwptOptions {
            fault_queue: self.queue.as_ref().map(|queue| queue.id()),
            pasids: self.capabilities.pasid_bits > 0,
            data: self.device.hwpt_data(),
        };
        let object = self
            .context
            .alloc_hwpt(self.device.id(), ioas.object(), &options)
            .map_err(|error| HostError::new(error, HostError::Unsupported))?;
        Ok(Arc::new(Hwpt { object, ioas }))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let attached: Vec<Option<Pasid>> = {
            let attachments = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
            // PASIDs first, as the kernel does when it closes a device.
            attachments.keys().rev().copied().collect()
        };
        for pasid in attached {
            if let Err(error) = self.set_ioas(pasid, None) {
                log::error!(
                    "cannot detach a device, it stays attached until the daemon ends: {error}"
                );
            }
        }
    }
}
