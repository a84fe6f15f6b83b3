//! Drives the built daemon over its sockets as a VMM does, as black-box tests.
//!
//! - [`daemon`] runs the program.
//! - [`frontend`] speaks vhost-user, in QEMU's order.
//! - [`driver`] is the guest: memory, rings, requests and events, byte by byte.
//! - [`accel`] makes an emulated endpoint access memory.
//! - [`vm`] puts these together, with a driver that takes page requests in [`paging`].
//! - [`counters`] reads the log, [`scrape`] the figures, [`random`] makes numbers; [`suite`] is the
//!   tests.

mod accel;
mod counters;
mod daemon;
mod driver;
mod frontend;
mod paging;
mod random;
mod scrape;
mod suite;
mod uprobe;
mod vm;
mod wait;
