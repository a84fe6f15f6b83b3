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
//! Each kind has a file that implements [`OpenEndpoint`] and [`RegisteredEndpoint`].

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
use crate::socket::SocketAccess;
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
                EndpointKind::Sim(path) => Box::new(SimEndpoint::open(path, access)?),
                EndpointKind::Vfio(path) => Box::new(VfioEndpoint::open(path)?),
                #[cfg(feature = "selftest")]
                EndpointKind::Mock(path) => Box::new(MockEndpoint::open(path, access)?),
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

    fn open_sim(path: &Path) -> Result<Vec<Opened>, EndpointError> {
        let config = EndpointConfig { id: ID, kind: EndpointKind::Sim(path.into()) };
        open(&[config], SocketAccess::default())
    }

    fn started(path: &Path) -> Running {
        let opened = open_sim(path).unwrap();
        let (_, registered) = register(&[], opened).unwrap();
        let limits = Limits { faults: 1, groups: 1, response_timeout: Duration::from_secs(1) };
        let faults = Arc::new(Iopf::new([ID], limits, Box::new(Silent)));
        start(registered, &faults).unwrap()
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
        let again = open_sim(&path);
        assert!(matches!(again, Err(EndpointError::Socket(SocketError::InUse(_)))));
        assert_served(&path);
    }
}
