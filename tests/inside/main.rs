//! Tests with a real `/dev/iommu`, on the mock device of the kernel's self test and on devices
//! bound to VFIO. They run inside the machine that the tests of `host` boot.
//!
//! The tests of `frontend` run in there too, with endpoints on the mock device.

mod errors;
mod mock;
mod queue;
mod rig;
mod sweep;
mod vfio;
