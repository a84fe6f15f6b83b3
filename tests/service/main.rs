//! A machine whose init is systemd: the package is installed, and instances of the service serve
//! guests, as on a host.
//!
//! - [`machine`] is the host; see also [`testing::machine`].
//! - [`guest`] is a QEMU in it, with an instance of the service as its IOMMU.
//! - [`domain`] is the libvirt domain of `docs/libvirt.md`.
//! - [`suite`] has the tests.

mod domain;
mod guest;
mod machine;
mod suite;
