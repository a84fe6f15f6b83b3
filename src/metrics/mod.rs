//! Figures of a running daemon, for Prometheus and whoever else reads OpenMetrics.
//!
//! The parts count by themselves and know nothing of this. A scrape reads what they have counted
//! (`families`), and a thread of its own answers it over HTTP (`server`, `http`).

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

/// What every name begins with.
pub const PREFIX: &str = "vhost_user_iommu";

/// Where the figures come from.
#[derive(Clone)]
pub struct Sources {
    /// The device model.
    pub device: Arc<DeviceCounters>,
    /// The transport.
    pub transport: Arc<TransportCounters>,
    /// The fault path.
    pub faults: Arc<Iopf>,
}

/// The thread that serves figures. It ends, and the socket goes away, with this.
pub struct Metrics {
    stop: Notifier,
    server: Option<JoinHandle<()>>,
    _socket: ListeningSocket,
}

impl Metrics {
    /// Serves the figures of `sources` on a socket.
    ///
    /// # Errors
    /// If the system refuses a thread or a descriptor.
    pub fn start(socket: ListeningSocket, sources: Sources) -> io::Result<Self> {
        let listener = socket.listener().try_clone()?;
        listener.set_nonblocking(true)?;
        let stop = Notifier::new()?;
        let figures = figures(sources, SystemTime::now());
        let server = Server::new(listener, stop.clone(), figures);
        let server = thread::Builder::new().name("metrics".into()).spawn(move || server.run())?;
        Ok(Self { stop, server: Some(server), _socket: socket })
    }
}

impl Drop for Metrics {
    fn drop(&mut self) {
        self.stop.signal();
        if self.server.take().is_some_and(|server| server.join().is_err()) {
            log::error!("the server of figures ended by a panic");
        }
    }
}

/// Makes the text of all figures, of a daemon that was started then.
fn figures(sources: Sources, started: SystemTime) -> impl Fn() -> Option<String> {
    let mut registry = Registry::with_prefix(PREFIX);
    registry.register_collector(Box::new(Families { sources, started }));
    move || {
        let mut figures = String::new();
        text::encode(&mut figures, &registry).ok().map(|()| figures)
    }
}
