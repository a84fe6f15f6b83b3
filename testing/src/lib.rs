//! The peers of the daemon, for its tests, benchmarks and examples.
//!
//! Two kinds of tests start from two types:
//!
//! - [`vm::Vm`] is a virtual machine without processors: a VMM's [front end](front_end), a
//!   virtio-iommu driver ([`request`], [`event`]) with its [`virtqueue`]s in guest [`memory`], and
//!   a driver of each emulated accelerator ([`accel`]). [`paging`] adds a driver that handles page
//!   requests. Everything runs synchronously in the thread of the test.
//! - [`machine::Machine`] is QEMU with a Linux guest that runs commands. [`testbed`] locates
//!   QEMU and kernels.
//!
//! Both use the [`daemon`] under test, its [`counters`] and its [`metrics`]. [`mod@bench`] has peers without
//! checks for benchmarks.
//!
//! This crate does not depend on the daemon's library: tests use the daemon's interfaces as its
//! peers do.
//!
//! ```no_run
//! use testing::request::{RW, attach, map};
//! use testing::vm::{DATA, EP0, Vm};
//!
//! let mut vm = Vm::new("--boot-bypass off");
//! vm.ok(attach(1, EP0));
//! vm.map_home(1, 0);
//! vm.ok(map(1, 0x7000_0000, 0x7000_0fff, DATA, RW));
//! vm.ram.write(DATA, b"hello");
//! assert_eq!(vm.accel(0).read(0x7000_0000, 5).unwrap(), b"hello");
//! ```

pub mod accel;
pub mod bench;
pub mod counters;
pub mod daemon;
pub mod event;
pub mod front_end;
pub mod machine;
pub mod memory;
pub mod metrics;
pub mod paging;
pub mod random;
pub mod request;
pub mod testbed;
pub mod virtqueue;
pub mod vm;
pub mod wait;
