//! Shutdown in order.

use super::signals::log_counters;
use crate::endpoint::Running;
use crate::metrics::{Metrics, Sources};

/// Stops all parts once the transport has stopped, and completes all page request groups.
pub(super) fn shut_down(endpoints: Running, metrics: Option<Metrics>, sources: &Sources) {
    // First the sources of faults, so that none reports a fault after the reset.
    drop(endpoints);
    // Pending faults can no longer be delivered.
    sources.faults.reset();
    drop(metrics);
    log_counters(sources);
}
