//! A physical device that QEMU passes through with VFIO, translated by iommufd.

use std::any::Any;
use std::path::Path;
use std::sync::Arc;

use super::{EndpointError, OpenEndpoint, RegisteredEndpoint, iommufd};
use crate::address::EndpointId;
use crate::host::backends::Backends;
use crate::host::iommufd::{FaultQueue, FaultReader, VfioFile};
use crate::iopf::Iopf;

/// A physical device whose VFIO character device is open.
pub(super) struct VfioEndpoint(VfioFile);

/// A physical device that is bound to iommufd.
struct RegisteredVfio {
    id: EndpointId,
    /// Absent if the device makes no page requests.
    queue: Option<Arc<FaultQueue>>,
}

impl VfioEndpoint {
    /// Opens the VFIO character device at `path`.
    pub(super) fn open(path: &Path) -> Result<Self, EndpointError> {
        Ok(Self(VfioFile::open(path)?))
    }
}

impl OpenEndpoint for VfioEndpoint {
    fn register(
        self: Box<Self>,
        id: EndpointId,
        host: &mut Backends,
    ) -> Result<Box<dyn RegisteredEndpoint>, EndpointError> {
        let iommufd = iommufd(host)?;
        iommufd.add_vfio(id, self.0)?;
        Ok(Box::new(RegisteredVfio { id, queue: iommufd.fault_queue(id) }))
    }
}

impl RegisteredEndpoint for RegisteredVfio {
    fn start(self: Box<Self>, faults: &Arc<Iopf>) -> Result<Box<dyn Any>, EndpointError> {
        let reader = self.queue.map(|queue| FaultReader::start(self.id, queue, faults.clone()));
        Ok(Box::new(reader.transpose()?))
    }
}
