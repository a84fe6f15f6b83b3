//! Linux guests in QEMU, with the daemon as their virtio-iommu: what a user would do, from the
//! outside.
//!
//! - [`vm`] is a machine with a [`kernel`], and the [`daemon`]; see also [`common`].
//! - [`faults`] knows how the guest's driver reports them.
//! - [`suite`] is the tests.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod common;
mod daemon;
mod faults;
mod kernel;
mod suite;
mod vm;
