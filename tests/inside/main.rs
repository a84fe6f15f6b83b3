//! Tests with a real `/dev/iommu`, on the mock device of the kernel's self test and on devices
//! given to VFIO. They run inside the machine that the tests of `host` boot.
//!
//! The library of the front-end tests drives the daemon here too, and all those tests that say
//! nothing of the kind of endpoint are made again, with endpoints of the kernel's.

#[path = "../frontend/accel.rs"]
mod accel;
#[path = "../frontend/counters.rs"]
mod counters;
#[path = "../frontend/daemon.rs"]
mod daemon;
#[path = "../frontend/driver/mod.rs"]
mod driver;
mod errors;
#[path = "../frontend/frontend.rs"]
mod frontend;
#[path = "../frontend/suite/mod.rs"]
mod frontend_suite;
mod mock;
#[path = "../frontend/paging.rs"]
mod paging;
mod queue;
#[path = "../frontend/random.rs"]
mod random;
mod rig;
#[path = "../frontend/scrape.rs"]
mod scrape;
mod sweep;
#[path = "../frontend/uprobe.rs"]
mod uprobe;
mod vfio;
#[path = "../frontend/vm.rs"]
mod vm;
#[path = "../frontend/wait.rs"]
mod wait;
