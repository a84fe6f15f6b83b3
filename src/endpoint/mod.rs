//! Kinds of endpoints: the resources of each, how it is served, and the source of its faults.
//!
//! An endpoint starts in three steps, each of which consumes the result of the step before:
//!
//! ```text
//! open       opens its sockets and device files, before the process starts threads
//! register   adds it to a back end of the host IOMMU
//! start      starts its threads and connects the source of its faults
//! ```
//!
//! Each kind has a file that implements `OpenEndpoint` and `RegisteredEndpoint`.

mod config;
mod error;
#[cfg(feature = "selftest")]
mod mock;
mod sim;
mod vfio;

use std::any::Any;
use std::sync::Arc;

use crate::address::{EndpointId, IovaRange};
use crate::host::backends::Backends;
use crate::host::iommufd::Iommufd;
use crate::host::software::Software;
use crate::host::{EndpointCapabilities, HostIommu, ReservedRegion};
use crate::iopf::Iopf;
use crate::socket::{ListeningSocket, SocketAccess};
use crate::viommu::Settings;
pub use config::{EndpointConfig, EndpointKind};
pub use error::EndpointError;
#[cfg(feature = "selftest")]
use mock::MockEndpoint;
use sim::SimEndpoint;
use vfio::VfioEndpoint;

/// An endpoint whose resources are open.
trait OpenEndpoint {
    /// Adds the endpoint to its back end.
    fn register(
        self: Box<Self>,
        id: EndpointId,
        host: &mut Backends,
    ) -> Result<Box<dyn RegisteredEndpoint>, EndpointError>;
}

/// An endpoint that its back end translates for, and that has no threads yet.
trait RegisteredEndpoint {
    /// Starts the threads of the endpoint. Dropping the result stops them: no access to memory is
    /// in progress afterwards, and the endpoint reports no faults.
    fn start(self: Box<Self>, faults: &Arc<Iopf>) -> Result<Box<dyn Any>, EndpointError>;
}

/// An endpoint after [`open`].
pub(crate) struct Opened {
    id: EndpointId,
    endpoint: Box<dyn OpenEndpoint>,
}

/// An endpoint after [`register`].
pub(crate) struct Registered(Box<dyn RegisteredEndpoint>);

/// The endpoints after [`start`]. Dropping it stops them.
pub(crate) struct Running(#[expect(dead_code, reason = "held until dropped")] Vec<Box<dyn Any>>);

/// Opens the resources of the endpoints.
///
/// # Errors
/// For the first endpoint with a socket that cannot be bound or a device that cannot be opened.
pub(crate) fn open(
    endpoints: &[EndpointConfig],
    access: SocketAccess,
) -> Result<Vec<Opened>, EndpointError> {
    endpoints
        .iter()
        .map(|EndpointConfig { id, kind }| {
            let endpoint: Box<dyn OpenEndpoint> = match kind {
                EndpointKind::Sim(path) => {
                    Box::new(SimEndpoint(ListeningSocket::bind(path, access)?))
                }
                EndpointKind::Vfio(path) => Box::new(VfioEndpoint::open(path)?),
                #[cfg(feature = "selftest")]
                EndpointKind::Mock(path) => {
                    Box::new(MockEndpoint(ListeningSocket::bind(path, access)?))
                }
            };
            Ok(Opened { id: *id, endpoint })
        })
        .collect()
}

/// Creates the back ends and registers the endpoints. `reserved`: regions that are never memory.
///
/// # Errors
/// For the first endpoint that its back end rejects.
pub(crate) fn register(
    reserved: &[ReservedRegion],
    opened: Vec<Opened>,
) -> Result<(Backends, Vec<Registered>), EndpointError> {
    let mut host = Backends { software: Software::new(reserved), iommufd: None };
    let mut registered = Vec::new();
    for Opened { id, endpoint } in opened {
        registered.push(Registered(endpoint.register(id, &mut host)?));
    }
    Ok((host, registered))
}

/// Starts the endpoints.
///
/// # Errors
/// If a thread or a file descriptor cannot be created.
pub(crate) fn start(
    registered: Vec<Registered>,
    faults: &Arc<Iopf>,
) -> Result<Running, EndpointError> {
    let running = registered.into_iter().map(|Registered(endpoint)| endpoint.start(faults));
    Ok(Running(running.collect::<Result<_, _>>()?))
}

/// Returns the iommufd back end; opens it for the first endpoint.
fn iommufd(host: &mut Backends) -> Result<&mut Iommufd, EndpointError> {
    match &mut host.iommufd {
        Some(iommufd) => Ok(iommufd),
        none => Ok(none.insert(Iommufd::open()?)),
    }
}

/// Restricts the page size and the input range to what the host IOMMU supports for all endpoints.
///
/// # Errors
/// If the host IOMMU cannot map any page of the input range for an endpoint.
pub(crate) fn restrict_settings(
    mut settings: Settings,
    host: &Backends,
    ids: &[EndpointId],
) -> Result<Settings, EndpointError> {
    for &id in ids {
        let EndpointCapabilities { iova_ranges, page_granularity, .. } = host.capabilities(id);
        if page_granularity > settings.page_size {
            log::info!("endpoint {id}: page size raised to {page_granularity:#x} bytes");
            settings.page_size = page_granularity;
        }
        let range = hull(&iova_ranges)
            .and_then(|hull| hull.intersection(&settings.input_range))
            .and_then(|range| range.shrink_to_granule(settings.page_size));
        let Some(range) = range else {
            return Err(EndpointError::InputRange {
                endpoint: id,
                range: settings.input_range,
                mappable: iova_ranges,
            });
        };
        if range != settings.input_range {
            log::info!(
                "endpoint {id}: input range reduced to {range}, the range of the host IOMMU"
            );
            settings.input_range = range;
        }
    }
    Ok(settings)
}

/// Returns the range from the lowest to the highest address of `ranges`.
fn hull(ranges: &[IovaRange]) -> Option<IovaRange> {
    IovaRange::new(ranges.first()?.first(), ranges.last()?.last())
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;
    use std::path::Path;
    use std::time::Duration;

    use accelerator::regs::{Descriptor, FLAG_COMPLETION, FLAG_INTERRUPT, OP_COPY};
    use rustix::event::{EventfdFlags, eventfd};
    use testing::accel::Accel;
    use testing::memory::GuestMemory;
    use testing::wait;

    use super::*;
    use crate::host::Translation;
    use crate::iopf::{EventNotifier, Limits};
    use crate::socket::SocketError;

    const ID: EndpointId = EndpointId(0x10);

    /// Guest-physical address of the accelerator's rings.
    const HOME: u64 = 0;
    const SOURCE: u64 = BUFFER;
    const TARGET: u64 = 2 * BUFFER;
    /// Size of source and target, in bytes.
    const BUFFER: u64 = 64 << 20;

    struct Silent;

    impl EventNotifier for Silent {
        fn notify(&self) {}
    }

    fn open_sim(path: &Path) -> Result<Vec<Opened>, EndpointError> {
        let config = EndpointConfig { id: ID, kind: EndpointKind::Sim(path.into()) };
        open(&[config], SocketAccess::default())
    }

    /// Starts an endpoint whose accesses bypass the IOMMU.
    fn started(path: &Path) -> Running {
        let opened = open_sim(path).unwrap();
        let (host, registered) = register(&[], opened).unwrap();
        host.set_translation(ID, None, &Translation::Bypass).unwrap();
        let limits = Limits { faults: 1, groups: 1, response_timeout: Duration::from_secs(1) };
        let faults = Arc::new(Iopf::new([ID], limits, Box::new(Silent)));
        start(registered, &faults).unwrap()
    }

    fn guest_memory() -> Arc<GuestMemory> {
        GuestMemory::new(&[(0, 3 * BUFFER)])
    }

    /// Connects a client, maps memory, and copies with an interrupt.
    fn assert_copies(path: &Path) {
        let ram = guest_memory();
        ram.write(SOURCE, b"over the socket");
        let mut accel = Accel::connect(path, &ram, HOME);
        let interrupt = eventfd(0, EventfdFlags::NONBLOCK).unwrap();
        accel.enable_interrupt(interrupt.as_fd());
        let descriptor = Descriptor {
            opcode: OP_COPY,
            flags: FLAG_COMPLETION | FLAG_INTERRUPT,
            source: SOURCE,
            destination: TARGET,
            length: 15,
            completion: accel.record(0),
            ..Default::default()
        };
        accel.start(0, &[descriptor]);
        wait::readable(&interrupt, "interrupt");
        assert_eq!(accel.outcome(0), Some(Ok(())));
        assert_eq!(ram.read(TARGET, 15), b"over the socket");
    }

    #[test]
    fn stop_removes_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        let running = started(&path);
        assert_copies(&path);
        drop(running);
        assert!(!path.exists());
    }

    #[test]
    fn stop_during_dma_of_a_client_removes_the_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        let running = started(&path);
        let ram = guest_memory();
        ram.write(SOURCE, b"x");
        let mut accel = Accel::connect(&path, &ram, HOME);
        let (source, destination, length) = (SOURCE, TARGET, BUFFER);
        let copy =
            Descriptor { opcode: OP_COPY, source, destination, length, ..Default::default() };
        // More than 100 GiB.
        for channel in 0..Accel::CHANNELS {
            accel.start(channel, &[copy; Accel::RING_ENTRIES as usize - 1]);
        }
        wait::until("the first piece", || (ram.read(TARGET, 1) == b"x").then_some(()));
        drop(running);
        assert!(!path.exists());
        assert!(accel.is_busy(), "the work ended before the stop");
        // The connection stays open, and its requests are handled.
        accel.unmap_memory();
        accel.reset();
    }

    #[test]
    fn socket_in_use_is_rejected_and_still_served() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        let _running = started(&path);
        let again = open_sim(&path);
        assert!(matches!(again, Err(EndpointError::Socket(SocketError::InUse(_)))));
        assert_copies(&path);
    }
}
