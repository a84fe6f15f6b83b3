//! A device in iommufd, and its capabilities.

use std::sync::Arc;

use super::context::{Context, HwptOptions, Object};
use super::error::SetupError;
use crate::address::{EndpointId, Pasid};
use crate::host::{EndpointCapabilities, KernelError, PageRequests};

/// A device that is bound to iommufd. Dropping it detaches and releases it.
pub(super) trait Device: Send + Sync {
    /// Returns the device's object number.
    fn id(&self) -> u32;

    /// Returns the data for the IOMMU driver that each HWPT of the device requires: its type and
    /// contents.
    fn hwpt_data(&self) -> Option<(u32, [u32; 2])> {
        None
    }

    /// Returns whether responses to its page requests have to name the PASID.
    fn response_needs_pasid(&self) -> bool;

    /// Attaches the device, or one of its PASIDs, to an HWPT over `ioas`. `replaces`: it is
    /// attached to another HWPT, which is replaced without an interval in which DMA is blocked.
    fn attach(
        &self,
        pasid: Option<Pasid>,
        hwpt: &Object,
        ioas: &Object,
        replaces: bool,
    ) -> Result<(), KernelError>;

    /// Detaches the device, or one of its PASIDs, so that its DMA is blocked.
    fn detach(&self, pasid: Option<Pasid>) -> Result<(), KernelError>;
}

/// Determines the capabilities of a device. The kernel does not report whether page requests work,
/// so this attaches the device to HWPTs with fewer and fewer options, until one is accepted.
/// Afterwards it is detached.
pub(super) fn probe(
    context: &Arc<Context>,
    endpoint: EndpointId,
    device: &dyn Device,
    fault_queue: u32,
) -> Result<EndpointCapabilities, SetupError> {
    let pasid_bits = context.pasid_bits(device.id()).unwrap_or_else(|error| {
        log::info!("endpoint {endpoint}: no PASIDs: {error}");
        0
    });
    // Page requests are more important than PASIDs.
    for (page_requests, pasids) in [(true, true), (true, false), (false, true)] {
        if pasids && pasid_bits == 0 {
            continue;
        }
        match try_attach(context, device, page_requests.then_some(fault_queue), pasids) {
            Ok(capabilities) if pasids => {
                return Ok(EndpointCapabilities { pasid_bits, ..capabilities });
            }
            Ok(capabilities) => return Ok(capabilities),
            Err(error) => log::info!(
                "endpoint {endpoint}: cannot attach {} page requests, {} PASIDs: {error}",
                with(page_requests),
                with(pasids)
            ),
        }
    }
    try_attach(context, device, None, false)
        .map_err(|source| SetupError::Attach { endpoint, source })
}

fn with(option: bool) -> &'static str {
    if option { "with" } else { "without" }
}

/// Attaches and detaches the device. Returns its capabilities with these options, without PASIDs.
fn try_attach(
    context: &Arc<Context>,
    device: &dyn Device,
    fault_queue: Option<u32>,
    pasids: bool,
) -> Result<EndpointCapabilities, KernelError> {
    let options = HwptOptions { fault_queue, pasids, data: device.hwpt_data() };
    let ioas = context.alloc_ioas()?;
    let hwpt = context.alloc_hwpt(device.id(), &ioas, &options)?;
    device.attach(None, &hwpt, &ioas, false)?;
    let ranges = context.iova_ranges(&ioas);
    device.detach(None)?;
    let (iova_ranges, page_granularity) = ranges?;
    let response_needs_pasid = device.response_needs_pasid();
    Ok(EndpointCapabilities {
        pasid_bits: 0,
        page_requests: fault_queue.map(|_| PageRequests { response_needs_pasid }),
        iova_ranges,
        page_granularity,
    })
}
