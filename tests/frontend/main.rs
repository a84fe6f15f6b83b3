//! Drives the built daemon over its sockets as a VMM does, as black-box tests.
//!
//! - [`daemon`] runs the program.
//! - [`frontend`] speaks vhost-user, in QEMU's order.
//! - [`driver`] is the guest: memory, rings, requests and events, byte by byte.
//! - [`accel`] makes an emulated endpoint access memory.
//! - [`vm`] puts these together; [`suite`] is the tests.

mod accel;
mod daemon;
mod driver;
mod frontend;
mod suite;
mod vm;
mod wait;
