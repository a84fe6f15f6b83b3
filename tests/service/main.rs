//! A machine whose init is systemd: the package is installed, and instances of the service carry
//! guests, as on a host.
//!
//! - [`machine`] is such a machine; see also [`common`].
//! - [`guest`] is a QEMU in it, with an instance as its IOMMU.
//! - [`domain`] is the one that `docs/libvirt.md` describes, for libvirt.
//! - [`suite`] is the tests.

#[path = "../common/mod.rs"]
#[allow(dead_code, reason = "other tests need more of it")]
mod common;
mod domain;
mod guest;
mod machine;
mod suite;
