//! The endpoints of a command line: from their sockets and devices to their faults.

mod config;
mod error;
#[cfg(feature = "selftest")]
mod mock;
mod sim;

use std::sync::Arc;

use accelerator::{Accelerator, ClientMemory, Config, Dma, FaultHandler, ThreadRole};
use vm_memory::GuestMemoryMmap;

use crate::address::{EndpointId, IovaRange};
use crate::host::backends::Backends;
#[cfg(feature = "selftest")]
use crate::host::iommufd::SetupError;
use crate::host::iommufd::{FaultReader, Iommufd, VfioFile};
use crate::host::software::Software;
use crate::host::{EndpointCapabilities, HostIommu};
use crate::iopf::Iopf;
use crate::sandbox::{Role, enter_role};
use crate::socket::{ListeningSocket, SocketAccess};
use crate::viommu::Settings;
pub use config::{EndpointConfig, EndpointKind};
pub use error::EndpointError;
#[cfg(feature = "selftest")]
use mock::MockFaults;
use sim::SimFaults;

/// An endpoint whose socket is bound, or whose file is open.
pub(crate) struct Bound {
    id: EndpointId,
    kind: BoundKind,
}

enum BoundKind {
    Sim(ListeningSocket),
    Vfio(VfioFile),
    #[cfg(feature = "selftest")]
    Mock(ListeningSocket),
}

/// An endpoint that is known to the host but does not run yet.
pub(crate) struct Idle {
    id: EndpointId,
    emulated: Option<Emulated>,
}

/// What an emulated endpoint is made of.
struct Emulated {
    socket: ListeningSocket,
    memory: ClientMemory,
    dma: Arc<dyn Dma>,
    reporter: NewReporter,
}

/// Makes what takes an emulated endpoint's faults to the fault path.
type NewReporter = Box<dyn FnOnce(&Arc<Iopf>) -> Arc<dyn FaultHandler>>;

/// All endpoints, at work. Dropping it stops them: no access is under way then, and no fault is
/// reported any more.
pub(crate) struct Running {
    /// Each with its socket, which is removed after the accelerator has stopped.
    sims: Vec<(Accelerator, ListeningSocket)>,
    readers: Vec<FaultReader>,
}

/// All sockets and files before anything else, so that a wrong path ends the start early.
pub(crate) fn bind(
    endpoints: &[EndpointConfig],
    access: SocketAccess,
) -> Result<Vec<Bound>, EndpointError> {
    endpoints.iter().map(|endpoint| bind_one(endpoint, access)).collect()
}

fn bind_one(endpoint: &EndpointConfig, access: SocketAccess) -> Result<Bound, EndpointError> {
    let kind = match &endpoint.kind {
        EndpointKind::Sim(path) => BoundKind::Sim(ListeningSocket::bind(path, access)?),
        EndpointKind::Vfio(path) => BoundKind::Vfio(VfioFile::open(path)?),
        #[cfg(feature = "selftest")]
        EndpointKind::Mock(path) => BoundKind::Mock(ListeningSocket::bind(path, access)?),
    };
    Ok(Bound { id: endpoint.id, kind })
}

/// Makes the back ends, with all endpoints.
pub(crate) fn add(
    settings: &Settings,
    bound: Vec<Bound>,
) -> Result<(Backends, Vec<Idle>), EndpointError> {
    let mut host = Backends { software: Software::new(&settings.reserved), iommufd: None };
    let idle =
        bound.into_iter().map(|bound| add_one(&mut host, bound)).collect::<Result<_, _>>()?;
    Ok((host, idle))
}

fn add_one(host: &mut Backends, Bound { id, kind }: Bound) -> Result<Idle, EndpointError> {
    let memory = ClientMemory::new(GuestMemoryMmap::new());
    let emulated = match kind {
        BoundKind::Sim(socket) => {
            let dma = host.software.add_endpoint(id, memory.clone());
            let reporter: NewReporter =
                Box::new(move |faults| Arc::new(SimFaults::new(id, faults.clone())));
            Some(Emulated { socket, memory, dma, reporter })
        }
        BoundKind::Vfio(file) => {
            iommufd_of(host)?.add_vfio(id, file)?;
            None
        }
        #[cfg(feature = "selftest")]
        BoundKind::Mock(socket) => {
            let iommufd = iommufd_of(host)?;
            let dma = iommufd.add_mock(id)?;
            let queue = iommufd.fault_queue(id).ok_or(SetupError::NoMockPageRequests(id))?;
            let device = dma.clone();
            let reporter: NewReporter = Box::new(move |faults| {
                Arc::new(MockFaults::new(id, device, queue, faults.clone()))
            });
            Some(Emulated { socket, memory, dma, reporter })
        }
    };
    Ok(Idle { id, emulated })
}

/// The kernel's back end, opened for the first endpoint that needs it.
fn iommufd_of(host: &mut Backends) -> Result<&mut Iommufd, EndpointError> {
    match &mut host.iommufd {
        Some(iommufd) => Ok(iommufd),
        none => Ok(none.insert(Iommufd::open()?)),
    }
}

/// Restricts the device to what the host's IOMMU can do for all endpoints.
pub(crate) fn fit(
    mut settings: Settings,
    host: &Backends,
    ids: &[EndpointId],
) -> Result<Settings, EndpointError> {
    for &id in ids {
        let EndpointCapabilities { iova_ranges, page_granularity, .. } = host.capabilities(id);
        if page_granularity > settings.page_size {
            log::info!("endpoint {id}: pages of {page_granularity:#x} bytes");
            settings.page_size = page_granularity;
        }
        let fitting =
            whole(&iova_ranges).and_then(|whole| whole.intersection(&settings.input_range));
        let fitting = fitting.and_then(|range| range.shrink_to_granule(settings.page_size));
        let Some(range) = fitting else {
            return Err(EndpointError::InputRange {
                endpoint: id,
                range: settings.input_range,
                mappable: iova_ranges,
            });
        };
        if range != settings.input_range {
            log::info!("endpoint {id}: addresses {range}, as the host's IOMMU has them");
            settings.input_range = range;
        }
    }
    Ok(settings)
}

/// From the lowest to the highest address of `ranges`.
fn whole(ranges: &[IovaRange]) -> Option<IovaRange> {
    IovaRange::new(ranges.first()?.first(), ranges.last()?.last())
}

/// Lets the endpoints work.
pub(crate) fn start(
    idle: Vec<Idle>,
    host: &Backends,
    faults: &Arc<Iopf>,
) -> Result<Running, EndpointError> {
    let mut running = Running { sims: Vec::new(), readers: Vec::new() };
    for Idle { id, emulated } in idle {
        let queue = host.iommufd.as_ref().and_then(|iommufd| iommufd.fault_queue(id));
        if let Some(queue) = queue {
            running.readers.push(FaultReader::start(id, queue, faults.clone())?);
        }
        if let Some(Emulated { socket, memory, dma, reporter }) = emulated {
            let config = Config {
                name: format!("endpoint {id}"),
                thread_suffix: format!("{:x}", id.0),
                memory,
                dma,
                faults: reporter(faults),
                on_thread_start: |role| match role {
                    ThreadRole::Worker => enter_role(Role::Accelerator),
                    ThreadRole::Server => enter_role(Role::VfioUser),
                },
            };
            let listener = socket.listener().try_clone()?;
            running.sims.push((Accelerator::start(listener, config)?, socket));
        }
    }
    Ok(running)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use vfio_user::Client;

    use super::*;
    use crate::iopf::{EventNotifier, Limits};
    use crate::socket::SocketError;

    const ID: EndpointId = EndpointId(0x10);

    struct Silent;

    impl EventNotifier for Silent {
        fn notify(&self) {}
    }

    fn bind(path: &Path) -> Result<ListeningSocket, SocketError> {
        ListeningSocket::bind(path, SocketAccess::default())
    }

    fn started(path: &Path) -> Running {
        let socket = bind(path).unwrap();
        let mut host = Backends { software: Software::new(&[]), iommufd: None };
        let idle = add_one(&mut host, Bound { id: ID, kind: BoundKind::Sim(socket) }).unwrap();
        let limits = Limits { faults: 1, groups: 1, response_timeout: Duration::from_secs(1) };
        let faults = Arc::new(Iopf::new([ID], limits, Box::new(Silent)));
        start(vec![idle], &host, &faults).unwrap()
    }

    fn assert_served(path: &Path) -> Client {
        let mut client = Client::new(path).unwrap();
        let mut vendor = [0; 2];
        client.region_read(7, 0, &mut vendor).unwrap();
        assert_eq!(vendor, accelerator::regs::VENDOR_ID.to_le_bytes());
        client
    }

    #[test]
    fn stop_removes_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        let running = started(&path);
        drop(assert_served(&path));
        drop(running);
        assert!(!path.exists());
    }

    #[test]
    fn stop_with_a_client_connected_removes_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        let running = started(&path);
        let mut client = assert_served(&path);
        drop(running);
        assert!(!path.exists());
        client.reset().unwrap();
    }

    #[test]
    fn socket_in_use_is_rejected_and_still_served() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        let _running = started(&path);
        assert!(matches!(bind(&path), Err(SocketError::InUse(_))));
        assert_served(&path);
    }
}
