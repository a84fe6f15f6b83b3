//! Tests of the built daemon over its sockets: the test is VMM, guest driver and accelerator driver
//! in one. See the crate [`testing`].

mod suite;
mod uprobe;
