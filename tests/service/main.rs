//! A machine whose init is systemd: the package is installed, and instances of the service carry
//! guests, as on a host.
//!
//! - [`machine`] is such a machine; see also [`testing::machine`].
//! - [`guest`] is a QEMU in it, with an instance as its IOMMU.
//! - [`domain`] is the one that `docs/libvirt.md` describes, for libvirt.
//! - [`suite`] is the tests.

mod domain;
mod guest;
mod machine;
mod suite;
