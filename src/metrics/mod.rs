//! Metrics of a running daemon in the OpenMetrics format.
//!
//! Each module keeps its own counters. A separate thread serves scrapes over HTTP (`server`,
//! `http`), and encodes the counters at each scrape (`families`).

mod families;
mod http;
mod server;

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::SystemTime;

use prometheus_client::encoding::text;
use prometheus_client::registry::Registry;

use crate::iopf::Iopf;
use crate::notifier::Notifier;
use crate::socket::ListeningSocket;
use crate::vhost::TransportCounters;
use crate::viommu::DeviceCounters;
use families::Families;
use server::Server;

/// Prefix of all metric names.
pub const PREFIX: &str = "vhost_user_iommu";

/// The modules whose counters are served.
#[derive(Clone)]
pub struct Sources {
    /// The device model.
    pub device: Arc<DeviceCounters>,
    /// The transport.
    pub transport: Arc<TransportCounters>,
    /// The fault path.
    pub faults: Arc<Iopf>,
}

/// The thread that serves metrics. When this is dropped, the thread ends and the socket is removed.
pub struct Metrics {
    stop: Notifier,
    server: Option<JoinHandle<()>>,
    _socket: ListeningSocket,
}

impl Metrics {
    /// Starts a thread that serves the counters of `sources` on a socket.
    ///
    /// # Errors
    /// When a thread or a file descriptor cannot be created.
    pub fn start(socket: ListeningSocket, sources: Sources) -> io::Result<Self> {
        let listener = socket.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        let stop = Notifier::new()?;
        let server = Server::new(listener, stop.clone(), encoder(sources, SystemTime::now()));
        let server = thread::Builder::new().name("metrics".into()).spawn(move || server.run())?;
        Ok(Self { stop, server: Some(server), _socket: socket })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.stop.signal();
        if self.server.take().is_some_and(|server| server.join().is_err()) {
            log::error!("the metrics thread panicked");
        }
    }
}

/// Returns a function that encodes all metrics, or returns `None` on failure.
fn encoder(sources: Sources, started: SystemTime) -> impl Fn() -> Option<String> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Families { sources, started }));
    move || {
        let mut metrics = String::new();
        text::encode(&mut metrics, &registry).ok().map(|()| metrics)
    }
}
