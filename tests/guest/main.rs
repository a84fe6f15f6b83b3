//! End-to-end tests: Linux guests in QEMU with the daemon as their virtio-iommu.
//!
//! - [`vm`] is a machine with a [`kernel`] and a [`daemon`]; see also [`testing::machine`].
//! - [`faults`] are the reports of the guest's driver.
//! - [`suite`] has the tests.

mod daemon;
mod faults;
mod kernel;
mod suite;
mod vm;
