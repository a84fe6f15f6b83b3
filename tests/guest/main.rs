//! Linux guests in QEMU, with the daemon as their virtio-iommu: what a user would do, from the
//! outside.
//!
//! - [`bed`] is what the tests run with: QEMU, kernels, initial ram disks.
//! - [`vm`] is a machine: the [`daemon`], QEMU (told by [`qmp`]) and an [`agent`] in the guest.
//! - [`kernel_log`] knows what the guest's kernel may say.
//! - [`suite`] is the tests.
//!
//! Machines are emulated and slow, so a test makes many checks in one. Nothing depends on how
//! long something takes, except that all waits end one day.

mod agent;
mod bed;
mod daemon;
mod kernel_log;
mod qmp;
mod suite;
mod vm;
mod wait;
