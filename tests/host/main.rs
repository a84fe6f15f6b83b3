//! Tests of the iommufd back end in virtual machines that are Linux hosts, with an emulated hardware
//! IOMMU, `/dev/iommu` with its selftest, and devices to assign.
//!
//! - [`host`]: the virtual machine; see also [`testing::machine`].
//! - [`chain`]: a nested guest.
//! - [`suite`]: the tests.

mod chain;
mod host;
mod suite;
