//! What the tests with virtual machines share.
//!
//! - [`bed`] is what they run with: QEMU, programs, initial ram disks.
//! - [`machine`] is QEMU (told by [`qmp`]) and an [`agent`] in the guest.
//! - [`kernel_log`] knows what the guest's kernel may say, [`counters`] what the daemon counts.
//!
//! Machines are emulated and slow, so a test makes many checks in one. Nothing depends on how
//! long something takes, except that all waits end one day.

pub mod agent;
pub mod bed;
pub mod counters;
pub mod kernel_log;
pub mod machine;
pub mod qmp;
pub mod wait;
