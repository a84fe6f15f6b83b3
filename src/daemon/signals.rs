//! Signals: the end, and what has been counted so far.

use std::io;
use std::thread;

use signal_hook::consts::SIGUSR1;
use signal_hook::iterator::Signals;

use crate::metrics::Sources;
use crate::sandbox::{Role, enter_role};
use crate::vhost::Stop;

/// Obeys them from now on, on a thread of its own.
pub(super) fn obey(mut signals: Signals, stop: Stop, sources: Sources) -> io::Result<()> {
    let wait = move || {
        enter_role(Role::Signals);
        for signal in signals.forever() {
            if signal == SIGUSR1 {
                log_counters(&sources);
            } else {
                log::info!("signal {signal}: stopping");
                stop.request();
            }
        }
    };
    thread::Builder::new().name("signals".into()).spawn(wait).map(drop)
}

/// What became of every fault, one line for each kind and endpoint, and of every request, one for
/// each type that there was.
pub(super) fn log_counters(sources: &Sources) {
    for read in sources.device.requests().iter().filter(|read| read.total() > 0) {
        log::info!("requests of type {}: {read}", read.request_type.name());
    }
    for (endpoint, faults, requests) in sources.faults.counters() {
        log::info!("faults of endpoint {endpoint}: {faults}");
        log::info!("page requests of endpoint {endpoint}: {requests}");
    }
}
