//! Linux hosts in QEMU, with an emulated hardware IOMMU, `/dev/iommu`, its self test, and devices
//! to assign. What the daemon does on the kernel's side of the machine is tested in there.
//!
//! - [`host`] is such a machine; see also [`testing::machine`].
//! - [`chain`] is a guest in it.
//! - [`suite`] is the tests.

mod chain;
mod host;
mod suite;
