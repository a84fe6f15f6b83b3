//! All parts, put together.

use std::io;
use std::sync::{Arc, Mutex};

use super::StartError;
use super::endpoints::{self, Idle};
use super::front_ends::FrontEnds;
use super::opened::Opened;
use super::signals::{self, log_counters};
use crate::address::EndpointId;
use crate::args::DaemonArgs;
use crate::host::both::Both;
use crate::iopf::Iopf;
use crate::metrics::{Metrics, Sources};
use crate::pulse::Pulse;
use crate::service::{Manager, watch};
use crate::socket::ListeningSocket;
use crate::vhost::{FaultDoorbell, Phase, Server};
use crate::viommu::{Settings, Viommu};

/// The daemon before it works: no thread runs yet, and nothing is left to open.
pub(super) struct Assembly {
    manager: Arc<Manager>,
    signals: signal_hook::iterator::Signals,
    front_ends: FrontEnds,
    metrics: Option<ListeningSocket>,
    host: Arc<Both>,
    endpoints: Vec<Idle>,
    faults: Arc<Iopf>,
    sources: Sources,
    server: Server,
    pulse: Pulse,
}

impl Assembly {
    /// Makes the host's side, the fault path, the device model and the transport.
    pub(super) fn new(
        args: &DaemonArgs,
        settings: Settings,
        opened: Opened,
    ) -> Result<Self, StartError> {
        let Opened { manager, signals, endpoints, front_ends, metrics } = opened;
        let doorbell = FaultDoorbell::new()?;
        let ids: Vec<EndpointId> =
            args.endpoints.iter().map(|endpoint| endpoint.bdf.endpoint()).collect();
        let bell = Box::new(doorbell.clone());
        let faults = Arc::new(Iopf::new(ids.iter().copied(), args.fault_limits(), bell));
        if metrics.is_some() {
            faults.time_answers();
        }
        let (host, endpoints) =
            endpoints::add(&settings, endpoints).map_err(StartError::Endpoint)?;
        let settings = endpoints::fit(settings, &host, &ids).map_err(StartError::Options)?;
        let host = Arc::new(host);
        let viommu = Viommu::new(settings, ids, host.clone(), faults.clone())?;
        let device = viommu.tally();
        let pulse = Pulse::default();
        let server = Server::new(
            front_ends.listener().try_clone()?,
            args.transport(),
            Arc::new(Mutex::new(viommu)),
            faults.clone(),
            doorbell,
            pulse.clone(),
        )?;
        let sources = Sources { device, transport: server.tally(), faults: faults.clone() };
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
            pulse,
        })
    }

    /// Works until told to stop, and ends in order: no fault is left without an answer.
    pub(super) fn run(self) -> Result<(), StartError> {
        let running = endpoints::start(self.endpoints, &self.host, &self.faults)?;
        let serve_figures = |socket| Metrics::start(socket, self.sources.clone());
        let metrics = self.metrics.map(serve_figures).transpose()?;
        signals::obey(self.signals, self.server.stop(), self.sources.clone())?;
        watch(self.manager.clone(), self.pulse)?;
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
        FrontEnds::Own(_) | FrontEnds::Passed(..) => server.run(&told),
    }
    Ok(())
}
