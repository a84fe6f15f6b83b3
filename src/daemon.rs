//! Puts the parts together and runs until told to stop.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::thread;

use signal_hook::consts::{SIGINT, SIGTERM, SIGUSR1};
use signal_hook::iterator::Signals;
use vm_memory::GuestMemoryMmap;

use crate::address::{EndpointId, Iova, Pasid};
use crate::args::{DaemonArgs, EndpointKind};
use crate::host::Access;
use crate::host::HostError;
use crate::host::dma::DmaCause;
use crate::host::software::{EndpointMemory, Software};
use crate::iopf::{Fault, Full, Iopf, PageRequest, Reason, Source};
use crate::sim::{FaultReporter, Sim};
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
    /// The host refused an endpoint's initial state.
    #[error("{0}")]
    Host(#[from] HostError),
    /// Descriptors, threads, signals.
    #[error("{0}")]
    Io(#[from] io::Error),
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
    let sockets = bind_endpoints(args)?;
    let socket = ListeningSocket::bind(socket_path)?;

    let doorbell = FaultDoorbell::new()?;
    let ids: Vec<EndpointId> =
        args.endpoints.iter().map(|endpoint| endpoint.bdf.endpoint()).collect();
    let limits = args.fault_limits();
    let faults = Arc::new(Iopf::new(ids.iter().copied(), limits, Box::new(doorbell.clone())));
    let mut host = Software::new(&settings.reserved);
    let parts = add_endpoints(&mut host, sockets);
    let viommu = Viommu::new(settings, ids, Arc::new(host), faults.clone())?;
    let sims = start_sims(parts, &faults)?;

    let viommu = Arc::new(Mutex::new(viommu));
    let mut server = Server::new(
        socket.listener().try_clone()?,
        args.transport(),
        viommu,
        faults.clone(),
        doorbell,
    )?;
    obey_signals(signals, server.stop(), faults.clone())?;
    log::info!("ready: {} endpoints, waiting on {}", sims.len(), socket_path.display());
    server.run();
    sims.into_iter().for_each(Sim::stop);
    // What still waits to be delivered never will be.
    faults.reset();
    log_counters(&faults);
    Ok(())
}

/// What became of every fault, one line for each kind and endpoint.
fn log_counters(faults: &Iopf) {
    for (endpoint, faults, requests) in faults.counters() {
        log::info!("faults of endpoint {endpoint}: {faults}");
        log::info!("page requests of endpoint {endpoint}: {requests}");
    }
}

/// All sockets before anything else, so that a path that is taken ends the start early.
fn bind_endpoints(args: &DaemonArgs) -> Result<Vec<(EndpointId, ListeningSocket)>, StartError> {
    let bind = |arg: &crate::args::EndpointArg| {
        let EndpointKind::Sim(path) = &arg.kind;
        Ok((arg.bdf.endpoint(), ListeningSocket::bind(path)?))
    };
    args.endpoints.iter().map(bind).collect()
}

/// An endpoint that is known to the host but does not run yet.
struct Idle {
    id: EndpointId,
    socket: ListeningSocket,
    memory: EndpointMemory,
    port: Arc<crate::host::software::Port>,
}

fn add_endpoints(host: &mut Software, sockets: Vec<(EndpointId, ListeningSocket)>) -> Vec<Idle> {
    let add = |(id, socket)| {
        let memory = EndpointMemory::new(GuestMemoryMmap::new());
        let port = host.add_endpoint(id, memory.clone());
        Idle { id, socket, memory, port }
    };
    sockets.into_iter().map(add).collect()
}

fn start_sims(idle: Vec<Idle>, faults: &Arc<Iopf>) -> Result<Vec<Sim>, StartError> {
    let start = |Idle { id, socket, memory, port }| {
        let source = Arc::new(FaultSource { endpoint: id, faults: faults.clone() });
        Ok(Sim::start(id, socket, memory, port, source)?)
    };
    idle.into_iter().map(start).collect()
}

/// Where the faults of an emulated endpoint enter the fault path.
struct FaultSource {
    endpoint: EndpointId,
    faults: Arc<Iopf>,
}

impl FaultReporter for FaultSource {
    fn connect(&self, source: Arc<dyn Source>) {
        self.faults.connect(self.endpoint, source);
    }

    fn request(&self, request: PageRequest) -> Result<(), Full> {
        self.faults.request(self.endpoint, request)
    }

    fn withdraw(&self) {
        self.faults.withdraw(self.endpoint);
    }

    fn report(&self, pasid: Option<Pasid>, address: Iova, access: Access, cause: DmaCause) {
        let reason = match cause {
            DmaCause::NoDomain => Reason::Domain,
            DmaCause::NotMapped => Reason::Mapping,
            DmaCause::NotMemory => return,
        };
        self.faults.report(Fault { endpoint: self.endpoint, pasid, address, access, reason });
    }
}

fn obey_signals(mut signals: Signals, stop: Stop, faults: Arc<Iopf>) -> io::Result<()> {
    let wait = move || {
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
