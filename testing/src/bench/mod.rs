//! Peers of the daemon for benchmarks: a driver that behaves like Linux (event index, a kick only when
//! the device requests it) without the checks of tests, and measurements.

mod cores;
mod driver;
mod requests;
mod times;

use std::sync::Arc;

use crate::daemon::Daemon;
use crate::front_end::{FrontEnd, REALIZE, START, Start, feature};
use crate::memory::GuestMemory;
use crate::virtqueue::Virtqueue;

pub use cores::{Cores, Placement};
pub use driver::Driver;
pub use requests::Requests;
pub use times::Times;

/// Longer than any benchmark runs, in seconds.
const LIFETIME: u32 = 3600;

/// Features of a driver that maps and unmaps.
pub const FEATURES: u64 = feature::VERSION_1
    | feature::EVENT_IDX
    | feature::MAP_UNMAP
    | feature::DOMAIN_RANGE
    | feature::INPUT_RANGE;

/// Starts the daemon with emulated endpoints, at most 240.
pub fn start_daemon(endpoints: u32, args: &str) -> Daemon {
    let builder = Daemon::builder().with_default_sandbox().lifetime(LIFETIME);
    let builder = builder.args(args).args("--log-level error");
    let bdfs = (0..endpoints).map(endpoint_id);
    let bdfs = bdfs.map(|id| format!("00:{:02x}.{}", id >> 3, id & 7));
    bdfs.fold(builder, |builder, bdf| builder.endpoint(&bdf)).start()
}

/// Returns the ID of endpoint `index`: functions from 00:02.0 on.
pub fn endpoint_id(index: u32) -> u32 {
    0x10 + index
}

/// Connects a front end and starts a driver that acknowledges `features`.
pub fn start_driver(
    daemon: &mut Daemon,
    ram: &Arc<GuestMemory>,
    features: u64,
    queues: [&Virtqueue; 2],
) -> FrontEnd {
    let mut front_end = FrontEnd::connect(daemon);
    front_end.request_replies = false;
    let start = Start { features, memory: ram.regions(), queues, bases: [0; 2] };
    front_end.send_all(&REALIZE, &start);
    assert_eq!(front_end.features & features, features, "the device lacks required features");
    front_end.send_all(&START, &start);
    front_end
}
