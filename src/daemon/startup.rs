//! Creates the parts of the daemon and connects them.

use std::io;
use std::sync::{Arc, Mutex};

use super::front_ends::FrontEnds;
use super::resources::Resources;
use super::shutdown::shut_down;
use super::signalfd::SignalFd;
use super::signals;
use crate::address::EndpointId;
use crate::cli::args::DaemonArgs;
use crate::endpoint::{self, Registered};
use crate::error::Error;
use crate::heartbeat::Heartbeats;
use crate::host::backends::Backends;
use crate::iopf::Iopf;
use crate::metrics::{Metrics, Sources};
use crate::service::{Manager, start_watchdog};
use crate::socket::ListeningSocket;
use crate::vhost::{FaultNotifier, Phase, Server};
use crate::viommu::{Settings, Viommu};

/// The daemon before it enters the sandbox: no thread runs yet, and all files are open.
pub(super) struct Startup {
    manager: Arc<Manager>,
    signals: SignalFd,
    front_ends: FrontEnds,
    metrics: Option<ListeningSocket>,
    host: Arc<Backends>,
    endpoints: Vec<Registered>,
    sources: Sources,
    server: Server,
    heartbeats: Heartbeats,
}

impl Startup {
    /// Creates the host back ends, the fault path, the device model and the transport.
    pub(super) fn new(
        args: &DaemonArgs,
        settings: Settings,
        resources: Resources,
    ) -> Result<Self, Error> {
        let Resources { manager, signals, endpoints, front_ends, metrics } = resources;
        let ids: Vec<EndpointId> = args.endpoints.iter().map(|endpoint| endpoint.id).collect();
        let notifier = FaultNotifier::new()?;
        let faults = fault_path(args, &ids, &notifier);
        let (host, endpoints) = endpoint::register(&settings.reserved, endpoints)?;
        let settings = endpoint::restrict_settings(settings, &host, &ids)?;
        let host = Arc::new(host);
        let viommu = Viommu::new(settings, ids, host.clone(), faults.clone())?;
        let device = viommu.counters();
        let heartbeats = Heartbeats::default();
        let server = Server::new(
            front_ends.listener().try_clone()?,
            args.transport(),
            Arc::new(Mutex::new(viommu)),
            faults.clone(),
            notifier,
            heartbeats.clone(),
        )?;
        let sources = Sources { device, transport: server.counters(), faults };
        Ok(Self {
            manager,
            signals,
            front_ends,
            metrics,
            host,
            endpoints,
            sources,
            server,
            heartbeats,
        })
    }

    /// Starts the threads, serves front ends until a stop request, and shuts down.
    pub(super) fn run(self) -> Result<(), Error> {
        let endpoints = endpoint::start(self.endpoints, &self.sources.faults)?;
        let metrics = match self.metrics {
            Some(socket) => Some(Metrics::start(socket, self.sources.clone())?),
            None => None,
        };
        signals::start(self.signals, self.server.stop(), self.sources.clone())?;
        start_watchdog(self.manager.clone(), self.heartbeats)?;
        serve(self.server, self.front_ends, &self.manager)?;
        self.manager.stopping();
        shut_down(endpoints, metrics, &self.sources);
        // The back ends outlive the reset of the fault path, which completes page requests.
        drop(self.host);
        Ok(())
    }
}

fn fault_path(args: &DaemonArgs, ids: &[EndpointId], notifier: &FaultNotifier) -> Arc<Iopf> {
    let notifier = Box::new(notifier.clone());
    let faults = Iopf::new(ids.iter().copied(), args.fault_limits(), notifier);
    if args.metrics_socket.is_some() {
        faults.enable_response_times();
    }
    Arc::new(faults)
}

/// Serves front ends until a stop request, or until the only one of an inherited connection
/// disconnects.
fn serve(mut server: Server, front_ends: FrontEnds, manager: &Manager) -> io::Result<()> {
    let waiting = format!("waiting for a front end on {front_ends}");
    log::info!("ready: {waiting}");
    manager.ready();
    let on_phase = |phase| match phase {
        Phase::Waiting => manager.status(&waiting),
        Phase::Connected => manager.status("front end connected"),
    };
    match front_ends {
        FrontEnds::Connected(_listener, relay) => {
            relay.start()?;
            server.run_once(&on_phase);
        }
        FrontEnds::Bound(_) | FrontEnds::Inherited(..) => server.run(&on_phase),
    }
    Ok(())
}
