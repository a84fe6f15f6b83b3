//! The files and sockets that the daemon opens first, so that a wrong path fails early.

use std::sync::Arc;

use super::front_ends::FrontEnds;
use super::signalfd::SignalFd;
use super::signals;
use crate::cli::args::DaemonArgs;
use crate::endpoint::{self, Opened};
use crate::error::Error;
use crate::service::Manager;
use crate::socket::ListeningSocket;
use crate::vhost::check_realtime;

/// All resources that depend on paths, descriptors or privileges.
pub(super) struct Resources {
    pub(super) manager: Arc<Manager>,
    pub(super) signals: SignalFd,
    pub(super) endpoints: Vec<Opened>,
    pub(super) front_ends: FrontEnds,
    pub(super) metrics: Option<ListeningSocket>,
}

impl Resources {
    /// Opens all resources. Call it before the process opens any descriptor or starts any thread.
    pub(super) fn open(args: &DaemonArgs) -> Result<Self, Error> {
        let inherited = FrontEnds::inherit(args)?;
        if args.realtime {
            check_realtime().map_err(Error::Realtime)?;
        }
        let manager = Arc::new(Manager::from_environment());
        let signals = SignalFd::new(&signals::HANDLED)?;
        let endpoints = endpoint::open(&args.endpoints, args.socket_access())?;
        let metrics = match &args.metrics_socket {
            Some(path) => Some(ListeningSocket::bind(path, args.socket_access())?),
            None => None,
        };
        // Last, so that a process which waits for this socket finds the others.
        let front_ends = inherited.map_or_else(|| FrontEnds::bind(args), Ok)?;
        Ok(Self { manager, signals, endpoints, front_ends, metrics })
    }
}
