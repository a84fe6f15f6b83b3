//! Errors of setting up endpoints.

use std::io;

use crate::address::{EndpointId, IovaRange};
use crate::host::iommufd::SetupError;
use crate::socket::SocketError;

/// An endpoint that cannot be set up.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndpointError {
    /// Its vfio-user socket cannot be bound.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// Its device cannot be opened, or not be bound to iommufd.
    #[error(transparent)]
    Device(#[from] SetupError),
    /// The host IOMMU cannot map any page of the configured input range.
    #[error(
        "--input-range {range} has no page that the host IOMMU can map for endpoint {endpoint}; \
         it can map {}", list(.mappable)
    )]
    InputRange {
        /// The endpoint.
        endpoint: EndpointId,
        /// The configured range.
        range: IovaRange,
        /// The ranges that the host IOMMU can map.
        mappable: Vec<IovaRange>,
    },
    /// A thread that serves it cannot be started.
    #[error(transparent)]
    Thread(#[from] io::Error),
}

fn list(ranges: &[IovaRange]) -> String {
    ranges.iter().map(IovaRange::to_string).collect::<Vec<_>>().join(", ")
}
