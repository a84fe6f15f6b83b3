//! Puts the parts together and runs until told to stop.

mod front_ends;
mod resources;
mod sandbox;
mod signalfd;
mod signals;
mod startup;

use std::io;

use crate::cli::args::DaemonArgs;
use crate::host::HostError;
use crate::socket::SocketError;
use crate::status::StatusError;
use resources::Resources;
use startup::Startup;

/// Why the daemon could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Options that contradict each other.
    #[error("{0}")]
    Options(String),
    /// The vhost-user socket, or that of an endpoint.
    #[error("{0}")]
    Socket(#[from] SocketError),
    /// Real-time priority was asked for and is not granted.
    #[error("--realtime: {0}; it needs CAP_SYS_NICE or a limit on RTPRIO of at least 1")]
    Realtime(io::Error),
    /// An endpoint of the host that cannot be had.
    #[error("{0}")]
    Endpoint(String),
    /// The host refused an endpoint's initial state.
    #[error("{0}")]
    Host(#[from] HostError),
    /// The kernel refuses the sandbox.
    #[error("no sandbox: {0}; --sandbox=off does without")]
    Sandbox(#[from] crate::sandbox::Error),
    /// The figures of a daemon cannot be shown.
    #[error("{0}")]
    Status(#[from] StatusError),
    /// Descriptors, threads, signals.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StartError {
    /// What the process ends with; 0 is a clean end, and 2 also that of a command line that
    /// cannot be read.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io(_) | Self::Status(StatusError::Print(_)) => 1,
            Self::Options(_) => 2,
            Self::Socket(_) | Self::Status(_) => 3,
            Self::Endpoint(_) | Self::Host(_) => 4,
            Self::Realtime(_) => 5,
            Self::Sandbox(_) => 6,
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT, or the end of the only connection that it was started
/// with.
///
/// # Errors
/// When it cannot start. Once started, whatever happens is logged and survived.
pub fn run(args: &DaemonArgs) -> Result<(), StartError> {
    let settings = args.settings().map_err(StartError::Options)?;
    let resources = Resources::new(args)?;
    let startup = Startup::new(args, settings, resources)?;
    crate::sandbox::enter(args.sandbox, &sandbox::requirements(args))?;
    #[cfg(feature = "selftest")]
    if let Some(attempts) = &args.sandbox_attempts {
        attempts.run();
        return Ok(());
    }
    startup.run()
}
