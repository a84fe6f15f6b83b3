//! The signals that the daemon handles: SIGTERM and SIGINT stop it, SIGUSR1 logs the counters.

use std::io;
use std::thread;

use libc::{SIGINT, SIGTERM, SIGUSR1};

use super::signalfd::SignalFd;
use crate::metrics::Sources;
use crate::sandbox::{Role, enter_role};
use crate::vhost::Stop;

/// All handled signals.
pub(super) const HANDLED: [i32; 3] = [SIGTERM, SIGINT, SIGUSR1];

/// Starts the thread that handles signals, including those that arrived before.
pub(super) fn start(mut signals: SignalFd, stop: Stop, sources: Sources) -> io::Result<()> {
    thread::Builder::new().name("signals".into()).spawn(move || {
        enter_role(Role::Signals);
        if let Err(error) = handle(&mut signals, &stop, &sources) {
            log::error!("cannot read signals, which are ignored from now on: {error}");
        }
    })?;
    Ok(())
}

fn handle(signals: &mut SignalFd, stop: &Stop, sources: &Sources) -> io::Result<()> {
    loop {
        match signals.wait()? {
            SIGUSR1 => log_counters(sources),
            signal => {
                log::info!("signal {signal}: stopping");
                stop.request();
            }
        }
    }
}

/// Logs the requests of each type that occurred, by status, and the faults and page requests of
/// each endpoint, by outcome.
pub(super) fn log_counters(sources: &Sources) {
    for read in sources.device.requests().iter().filter(|read| read.total() > 0) {
        log::info!("requests of type {}: {read}", read.request_type.name());
    }
    for (endpoint, faults, requests) in sources.faults.counters() {
        log::info!("faults of endpoint {endpoint}: {faults}");
        log::info!("page requests of endpoint {endpoint}: {requests}");
    }
}
