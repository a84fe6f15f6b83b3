//! Puts the parts together and runs until told to stop.

mod endpoints;
#[cfg(feature = "selftest")]
mod mock;
mod sim;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;

use rustix::thread::CapabilitySet;
use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::address::EndpointId;
use crate::args::{DaemonArgs, EndpointKind};
use crate::host::{HostError, iommufd};
use crate::iopf::Iopf;
use crate::sandbox::{self, Needs, Role};
use crate::socket::{ListeningSocket, SocketError};
use crate::vhost::{FaultDoorbell, Server, Stop, check_realtime};
use crate::viommu::Viommu;

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
    Sandbox(#[from] sandbox::Error),
    /// Descriptors, threads, signals.
    #[error("{0}")]
    Io(#[from] io::Error),
}

impl StartError {
    /// What the process ends with; 0 is a clean end, and 2 also that of a command line that
    /// cannot be read.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Io(_) => 1,
            Self::Options(_) => 2,
            Self::Socket(_) => 3,
            Self::Endpoint(_) | Self::Host(_) => 4,
            Self::Realtime(_) => 5,
            Self::Sandbox(_) => 6,
        }
    }
}

/// Runs the daemon until SIGTERM or SIGINT.
///
/// # Errors
/// When it cannot start. Once started, whatever happens is logged and survived.
pub fn run(args: &DaemonArgs) -> Result<(), StartError> {
    let settings = args.settings().map_err(StartError::Options)?;
    let socket_path = args.socket_path.as_deref().unwrap_or(Path::new(""));
    if args.realtime {
        check_realtime().map_err(StartError::Realtime)?;
    }
    // Before any thread runs, so that none of them takes the signal.
    let signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    let sockets = endpoints::bind(args)?;
    let socket = ListeningSocket::bind(socket_path, args.socket_access())?;

    let doorbell = FaultDoorbell::new()?;
    let ids: Vec<EndpointId> =
        args.endpoints.iter().map(|endpoint| endpoint.bdf.endpoint()).collect();
    let limits = args.fault_limits();
    let faults = Arc::new(Iopf::new(ids.iter().copied(), limits, Box::new(doorbell.clone())));
    let (host, idle) = endpoints::add(&settings, sockets).map_err(StartError::Endpoint)?;
    let settings = endpoints::fit(settings, &host, &ids).map_err(StartError::Options)?;
    let host = Arc::new(host);
    let viommu = Viommu::new(settings, ids, host.clone(), faults.clone())?;

    let viommu = Arc::new(Mutex::new(viommu));
    let mut server = Server::new(
        socket.listener().try_clone()?,
        args.transport(),
        viommu,
        faults.clone(),
        doorbell,
    )?;
    // All is open and bound, and no thread runs yet.
    sandbox::enter(args.sandbox, &needs(args))?;
    #[cfg(feature = "selftest")]
    if let Some(attempts) = &args.sandbox_attempts {
        attempts.run();
        return Ok(());
    }
    let running = endpoints::start(idle, &host, &faults)?;
    obey_signals(signals, server.stop(), faults.clone())?;
    log::info!("ready: {} endpoints, waiting on {}", args.endpoints.len(), socket_path.display());
    server.run();
    drop(running);
    // What still waits to be delivered never will be.
    faults.reset();
    log_counters(&faults);
    Ok(())
}

/// What the daemon still does once it runs.
fn needs(args: &DaemonArgs) -> Needs {
    let kinds = || args.endpoints.iter().map(|endpoint| &endpoint.kind);
    let sockets = kinds().filter_map(EndpointKind::socket).chain(args.socket_path.as_deref());
    let on_host = kinds().any(EndpointKind::is_on_host);
    let kept = [
        // The kernel counts pinned memory otherwise, of which a guest has much.
        (on_host, CapabilitySet::IPC_LOCK),
        (args.realtime, CapabilitySet::SYS_NICE),
    ];
    Needs {
        removable: sockets.map(directory_of).collect(),
        ioctls: if on_host { iommufd::ioctls() } else { Vec::new() },
        capabilities: kept.iter().filter(|(needed, _)| *needed).map(|(_, one)| *one).collect(),
    }
}

fn directory_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory.into(),
        _ => ".".into(),
    }
}

/// What became of every fault, one line for each kind and endpoint.
fn log_counters(faults: &Iopf) {
    for (endpoint, faults, requests) in faults.counters() {
        log::info!("faults of endpoint {endpoint}: {faults}");
        log::info!("page requests of endpoint {endpoint}: {requests}");
    }
}

fn obey_signals(mut signals: Signals, stop: Stop, faults: Arc<Iopf>) -> io::Result<()> {
    let wait = move || {
        sandbox::enter_role(Role::Signals);
        for signal in signals.forever() {
            if signal == SIGUSR1 {
                log_counters(&faults);
            } else {
                log::info!("signal {signal}: stopping");
                stop.request();
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}
