//! Puts the parts together and runs until told to stop.

mod endpoints;
mod front_ends;
#[cfg(feature = "selftest")]
mod mock;
mod needs;
mod sim;

use std::io;
use std::sync::{Arc, Mutex};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;

use crate::address::EndpointId;
use crate::args::DaemonArgs;
use crate::daemon::front_ends::FrontEnds;
use crate::host::HostError;
use crate::iopf::Iopf;
use crate::pulse::Pulse;
use crate::sandbox::{self, Role};
use crate::service::{Manager, watch};
use crate::socket::SocketError;
use crate::vhost::{FaultDoorbell, Phase, Server, Stop, check_realtime};
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

/// Runs the daemon until SIGTERM or SIGINT, or the end of the only connection that it was started
/// with.
///
/// # Errors
/// When it cannot start. Once started, whatever happens is logged and survived.
pub fn run(args: &DaemonArgs) -> Result<(), StartError> {
    let settings = args.settings().map_err(StartError::Options)?;
    let passed = FrontEnds::take(args)?;
    let manager = Arc::new(Manager::from_environment());
    if args.realtime {
        check_realtime().map_err(StartError::Realtime)?;
    }
    // Before any thread runs, so that none of them takes the signal.
    let signals = Signals::new([SIGTERM, SIGINT, SIGUSR1])?;
    let sockets = endpoints::bind(args)?;
    let front_ends = passed.map_or_else(|| FrontEnds::bind(args), Ok)?;
    let waiting = format!("waiting for a front end on {front_ends}");

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
    let pulse = Pulse::default();
    let server = Server::new(
        front_ends.listener().try_clone()?,
        args.transport(),
        viommu,
        faults.clone(),
        doorbell,
        pulse.clone(),
    )?;
    // All is open and bound, and no thread runs yet.
    sandbox::enter(args.sandbox, &needs::of(args))?;
    #[cfg(feature = "selftest")]
    if let Some(attempts) = &args.sandbox_attempts {
        attempts.run();
        return Ok(());
    }
    let running = endpoints::start(idle, &host, &faults)?;
    obey_signals(signals, server.stop(), faults.clone())?;
    watch(manager.clone(), pulse)?;
    log::info!("ready: {} endpoints, {waiting}", args.endpoints.len());
    manager.ready();
    serve(server, front_ends, &manager, &waiting)?;
    manager.stopping();
    drop(running);
    // What still waits to be delivered never will be.
    faults.reset();
    log_counters(&faults);
    Ok(())
}

/// Serves front ends until told to stop, or until the only one has gone.
fn serve(
    mut server: Server,
    front_ends: FrontEnds,
    manager: &Manager,
    waiting: &str,
) -> io::Result<()> {
    let told = |phase| match phase {
        Phase::Waiting => manager.status(waiting),
        Phase::Connected => manager.status("front end connected"),
    };
    match front_ends {
        FrontEnds::Connected(_listener, relay) => {
            relay.start()?;
            server.run_once(&told);
        }
        FrontEnds::Own(_) | FrontEnds::Passed(_) => server.run(&told),
    }
    Ok(())
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
