//! All parts, put together.

use std::io;
use std::sync::{Arc, Mutex};

use super::front_ends::FrontEnds;
use super::resources::Resources;
use super::signalfd::SignalFd;
use super::signals::{self, log_counters};
use crate::address::EndpointId;
use crate::cli::args::DaemonArgs;
use crate::endpoint::{self, Idle};
use crate::error::Error;
use crate::heartbeat::Heartbeats;
use crate::host::backends::Backends;
use crate::iopf::Iopf;
use crate::metrics::{Metrics, Sources};
use crate::service::{Manager, start_watchdog};
use crate::socket::ListeningSocket;
use crate::vhost::{FaultNotifier, Phase, Server};
use crate::viommu::{Settings, Viommu};

/// The daemon before it works: no thread runs yet, and nothing is left to open.
pub(super) struct Startup {
    manager: Arc<Manager>,
    signals: SignalFd,
    front_ends: FrontEnds,
    metrics: Option<ListeningSocket>,
    host: Arc<Backends>,
    endpoints: Vec<Idle>,
    faults: Arc<Iopf>,
    sources: Sources,
    server: Server,
    heartbeats: Heartbeats,
}

impl Startup {
    /// Makes the host's side, the fault path, the device model and the transport.
    pub(super) fn new(
        args: &DaemonArgs,
        settings: Settings,
        resources: Resources,
    ) -> Result<Self, Error> {
        let Resources { manager, signals, endpoints, front_ends, metrics } = resources;
        let doorbell = FaultNotifier::new()?;
        let ids: Vec<EndpointId> = args.endpoints.iter().map(|endpoint| endpoint.id).collect();
        let notifier = Box::new(doorbell.clone());
        let faults = Arc::new(Iopf::new(ids.iter().copied(), args.fault_limits(), notifier));
        if metrics.is_some() {
            faults.enable_response_times();
        }
        let (host, endpoints) = endpoint::add(&settings, endpoints)?;
        let settings = endpoint::fit(settings, &host, &ids)?;
        let host = Arc::new(host);
        let viommu = Viommu::new(settings, ids, host.clone(), faults.clone())?;
        let device = viommu.counters();
        let heartbeats = Heartbeats::default();
        let server = Server::new(
            front_ends.listener().try_clone()?,
            args.transport(),
            Arc::new(Mutex::new(viommu)),
            faults.clone(),
            doorbell,
            heartbeats.clone(),
        )?;
        let sources = Sources { device, transport: server.counters(), faults: faults.clone() };
        let manager = Arc::new(manager);
        Ok(Self {
            manager,
            signals,
            front_ends,
            metrics,
            host,
            endpoints,
            faults,
            sources,
            server,
            heartbeats,
        })
    }

    /// Works until told to stop, and ends in order: no fault is left without an answer.
    pub(super) fn run(self) -> Result<(), Error> {
        let running = endpoint::start(self.endpoints, &self.host, &self.faults)?;
        let serve_figures = |socket| Metrics::start(socket, self.sources.clone());
        let metrics = self.metrics.map(serve_figures).transpose()?;
        signals::start(self.signals, self.server.stop(), self.sources.clone())?;
        start_watchdog(self.manager.clone(), self.heartbeats)?;
        serve(self.server, self.front_ends, &self.manager)?;
        self.manager.stopping();
        drop(running);
        // What still waits to be delivered never will be.
        self.faults.reset();
        drop(metrics);
        log_counters(&self.sources);
        Ok(())
    }
}

/// Serves front ends until told to stop, or until the only one has gone.
fn serve(mut server: Server, front_ends: FrontEnds, manager: &Manager) -> io::Result<()> {
    let waiting = format!("waiting for a front end on {front_ends}");
    log::info!("ready: {waiting}");
    manager.ready();
    let told = |phase| match phase {
        Phase::Waiting => manager.status(&waiting),
        Phase::Connected => manager.status("front end connected"),
    };
    match front_ends {
        FrontEnds::Connected(_listener, relay) => {
            relay.start()?;
            server.run_once(&told);
        }
        FrontEnds::Bound(_) | FrontEnds::Inherited(..) => server.run(&told),
    }
    Ok(())
}
