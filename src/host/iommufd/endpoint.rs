//! An endpoint that the kernel holds: its device, what it can do, what it is attached to.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use rustix::io::Errno;

use super::faults::FaultQueue;
use super::kernel::{Extras, Kernel, KernelError, Object};
use super::space::Space;
use crate::address::{EndpointId, IovaRange, Pasid};
use crate::host::{EndpointCapabilities, HostError, PageRequests};

/// A device bound to iommufd. Dropping it detaches and releases it.
pub(super) trait Device: Send + Sync {
    /// Its number in iommufd.
    fn id(&self) -> u32;

    /// What page tables for it are made with, beyond what the kernel knows by itself.
    fn driver_data(&self) -> Option<(u32, [u32; 2])> {
        None
    }

    /// Whether answers to its page requests have to name the PASID.
    fn response_needs_pasid(&self) -> bool;

    /// Sends its accesses (those of a PASID) through a page table over `ioas`, from wherever they
    /// went before, without a gap; `replaces`: they did go through a page table.
    fn attach(
        &self,
        pasid: Option<Pasid>,
        page_table: &Object,
        ioas: &Object,
        replaces: bool,
    ) -> Result<(), KernelError>;

    /// Blocks its accesses (those of a PASID).
    fn detach(&self, pasid: Option<Pasid>) -> Result<(), KernelError>;
}

/// An endpoint of the kernel's.
pub(super) struct Endpoint {
    kernel: Arc<Kernel>,
    /// Dropped in this order: nothing is attached any more when the queue goes.
    attachments: Mutex<BTreeMap<Option<Pasid>, Arc<PageTable>>>,
    pub(super) device: Arc<dyn Device>,
    pub(super) queue: Option<Arc<FaultQueue>>,
    pub(super) capabilities: EndpointCapabilities,
}

/// A page table of one device over an address space. Dropped before that.
struct PageTable {
    object: Object,
    space: Arc<Space>,
}

impl Endpoint {
    /// Finds out what `device` can do by attaching it; it is attached to nothing then.
    pub(super) fn new(
        kernel: &Arc<Kernel>,
        id: EndpointId,
        device: Arc<dyn Device>,
    ) -> Result<Self, String> {
        let queue = new_queue(kernel, id)?;
        let capabilities = probe(kernel, id, &*device, &queue)?;
        let queue = capabilities.page_requests.map(|_| Arc::new(queue));
        if queue.is_none() {
            log::info!("endpoint {id}: no page requests through this host's IOMMU");
        }
        let attachments = Mutex::default();
        Ok(Self { kernel: kernel.clone(), attachments, device, queue, capabilities })
    }

    /// Sends accesses through the mappings of `space`; `None`: blocks them. When it returns, no
    /// access goes through the translation before, and its page requests have been answered.
    pub(super) fn route(
        &self,
        pasid: Option<Pasid>,
        space: Option<Arc<Space>>,
    ) -> Result<(), HostError> {
        let mut attachments = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
        let new = match space {
            Some(space) => Some(self.page_table(&attachments, space)?),
            None => None,
        };
        let old = attachments.get(&pasid);
        if let (Some(new), Some(old)) = (&new, old)
            && Arc::ptr_eq(new, old)
        {
            // Nothing changes, and so the kernel answers nothing.
            return Ok(());
        }
        let change = || match &new {
            Some(to) => self.device.attach(pasid, &to.object, to.space.ioas(), old.is_some()),
            None if old.is_some() => self.device.detach(pasid),
            None => Ok(()),
        };
        let changed = match &self.queue {
            Some(queue) => queue.change(pasid, change),
            None => change(),
        };
        changed.map_err(|error| error.refuse(HostError::Unsupported))?;
        match new {
            Some(new) => attachments.insert(pasid, new),
            None => attachments.remove(&pasid),
        };
        Ok(())
    }

    /// A page table over `space`: the one that this endpoint has already, or a new one.
    fn page_table(
        &self,
        attachments: &BTreeMap<Option<Pasid>, Arc<PageTable>>,
        space: Arc<Space>,
    ) -> Result<Arc<PageTable>, HostError> {
        if let Some(there) = attachments.values().find(|there| Arc::ptr_eq(&there.space, &space)) {
            return Ok(there.clone());
        }
        let extras = Extras {
            pasids: self.capabilities.pasid_bits > 0,
            driver_data: self.device.driver_data(),
            ..self.queue.as_ref().map_or(Extras::default(), |queue| queue.extras())
        };
        let object = self
            .kernel
            .new_page_table(self.device.id(), space.ioas(), extras)
            .map_err(|error| error.refuse(HostError::Unsupported))?;
        Ok(Arc::new(PageTable { object, space }))
    }
}

impl Drop for Endpoint {
    fn drop(&mut self) {
        let attached: Vec<Option<Pasid>> = {
            let attachments = self.attachments.lock().unwrap_or_else(PoisonError::into_inner);
            // PASIDs first, as the kernel closes a device.
            attachments.keys().rev().copied().collect()
        };
        for pasid in attached {
            if let Err(error) = self.route(pasid, None) {
                log::error!("a device stays attached until the daemon ends: {error}");
            }
        }
    }
}

fn new_queue(kernel: &Arc<Kernel>, id: EndpointId) -> Result<FaultQueue, String> {
    let queue = kernel.new_fault_queue().map_err(|error| match error.errno {
        Errno::NOTTY | Errno::OPNOTSUPP => format!(
            "endpoint {id}: this kernel's iommufd has no fault queues; Linux 6.11 or newer has \
             them ({error})"
        ),
        _ => format!("endpoint {id}: {error}"),
    })?;
    Ok(FaultQueue::new(id, queue))
}

/// The kernel tells of no device whether page requests work; attaching does.
fn probe(
    kernel: &Arc<Kernel>,
    id: EndpointId,
    device: &dyn Device,
    queue: &FaultQueue,
) -> Result<EndpointCapabilities, String> {
    let bits = match kernel.pasid_bits(device.id()) {
        Ok(bits) => bits,
        Err(error) => {
            log::info!("endpoint {id}: no PASIDs: {error}");
            0
        }
    };
    let mut refusal = None;
    // Page requests matter more than PASIDs.
    for (page_requests, pasids) in [(true, true), (true, false), (false, true), (false, false)] {
        if pasids && bits == 0 {
            continue;
        }
        let faults = if page_requests { queue.extras() } else { Extras::default() };
        let extras = Extras { pasids, driver_data: device.driver_data(), ..faults };
        match try_attach(kernel, device, extras) {
            Ok((iova_ranges, page_granularity)) => {
                let response_needs_pasid = device.response_needs_pasid();
                return Ok(EndpointCapabilities {
                    pasid_bits: if pasids { bits } else { 0 },
                    page_requests: page_requests.then_some(PageRequests { response_needs_pasid }),
                    iova_ranges,
                    page_granularity,
                });
            }
            Err(error) => {
                let what = [(page_requests, "page requests"), (pasids, "PASIDs")];
                let what: Vec<&str> = what.iter().filter(|w| w.0).map(|w| w.1).collect();
                log::info!("endpoint {id}: not with [{}]: {error}", what.join(", "));
                refusal = Some(error);
            }
        }
    }
    let reason = refusal.map_or(String::new(), |error| error.to_string());
    Err(format!("endpoint {id}: the kernel attaches it to no address space: {reason}"))
}

fn try_attach(
    kernel: &Arc<Kernel>,
    device: &dyn Device,
    extras: Extras,
) -> Result<(Vec<IovaRange>, u64), KernelError> {
    let ioas = kernel.new_ioas()?;
    let page_table = kernel.new_page_table(device.id(), &ioas, extras)?;
    device.attach(None, &page_table, &ioas, false)?;
    let ranges = kernel.iova_ranges(&ioas);
    device.detach(None)?;
    ranges
}
