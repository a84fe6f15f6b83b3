//! What the daemon opens before anything else, so that a wrong path ends the start early.

use std::path::PathBuf;

use super::front_ends::FrontEnds;
use super::signalfd::SignalFd;
use super::signals;
use crate::cli::args::DaemonArgs;
use crate::endpoint::{self, Bound};
use crate::error::Error;
use crate::service::Manager;
use crate::socket::ListeningSocket;
use crate::vhost::check_realtime;

/// All that has a path, a number or a right that may be missing.
pub(super) struct Resources {
    pub(super) manager: Manager,
    pub(super) signals: SignalFd,
    pub(super) endpoints: Vec<Bound>,
    pub(super) front_ends: FrontEnds,
    pub(super) metrics: Option<ListeningSocket>,
}

impl Resources {
    /// To be made before the process opens anything else, and before it has threads.
    pub(super) fn new(args: &DaemonArgs) -> Result<Self, Error> {
        let passed = FrontEnds::inherit(args)?;
        if args.realtime {
            check_realtime().map_err(Error::Realtime)?;
        }
        let manager = Manager::from_environment();
        let signals = SignalFd::new(&signals::HANDLED)?;
        let endpoints = endpoint::bind(&args.endpoints, args.socket_access())?;
        let bind_metrics = |path: &PathBuf| ListeningSocket::bind(path, args.socket_access());
        let metrics = args.metrics_socket.as_ref().map(bind_metrics).transpose()?;
        // The last one: who waits for it to appear finds the others, too.
        let front_ends = passed.map_or_else(|| FrontEnds::bind(args), Ok)?;
        Ok(Self { manager, signals, endpoints, front_ends, metrics })
    }
}
