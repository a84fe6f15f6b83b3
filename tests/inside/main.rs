//! Tests with a real `/dev/iommu`, on the mock device of the kernel's selftest and on devices bound
//! to VFIO. They run in the virtual machine that the tests of `host` boot.
//!
//! The tests of `frontend` also run there, with endpoints on the mock device.

mod errors;
mod mock;
mod queue;
mod rig;
mod sweep;
mod vfio;
