//! The error that ends the program, and its exit codes.

use std::io;
use std::path::PathBuf;

use crate::cli::CliError;
use crate::endpoint::EndpointError;
use crate::host::HostError;
use crate::sandbox;
use crate::socket::SocketError;
use crate::status::StatusError;

/// An error that ends the program.
///
/// ```
/// use vhost_user_iommu::error::Error;
/// use vhost_user_iommu::socket::SocketError;
///
/// let error = Error::from(SocketError::InUse("/run/a.sock".into()));
/// assert_eq!(error.exit_code(), 3);
/// ```
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// An invalid option, configuration file or combination of options.
    #[error(transparent)]
    Cli(#[from] CliError),
    /// A socket that cannot be bound, or a passed descriptor that cannot be served.
    #[error(transparent)]
    Socket(#[from] SocketError),
    /// An endpoint that cannot be set up.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
    /// The host rejects the initial state of an endpoint.
    #[error(transparent)]
    Host(#[from] HostError),
    /// Real-time priority was requested, but is not permitted.
    #[error("--realtime: {0}; requires CAP_SYS_NICE or RLIMIT_RTPRIO of at least 1")]
    Realtime(#[source] io::Error),
    /// The sandbox cannot be entered.
    #[error("cannot enter the sandbox: {0}; --sandbox=off runs without it")]
    Sandbox(#[from] sandbox::Error),
    /// The `status` subcommand failed.
    #[error(transparent)]
    Status(#[from] StatusError),
    /// An output file cannot be written.
    #[error("cannot write {0}: {1}")]
    Write(PathBuf, #[source] io::Error),
    /// A descriptor, thread or signal handler cannot be created.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Error {
    /// Returns the exit code of the process, as listed in the README.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io(_) | Self::Write(..) | Self::Status(StatusError::Print(_)) => 1,
            Self::Endpoint(EndpointError::Thread(_)) => 1,
            Self::Cli(_) | Self::Endpoint(EndpointError::InputRange { .. }) => 2,
            Self::Socket(_) | Self::Endpoint(EndpointError::Socket(_)) | Self::Status(_) => 3,
            Self::Endpoint(EndpointError::Device(_)) | Self::Host(_) => 4,
            Self::Realtime(_) => 5,
            Self::Sandbox(_) => 6,
        }
    }
}
