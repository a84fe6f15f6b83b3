//! A virtio-iommu device for QEMU that runs in a separate process.
//!
//! One daemon per virtual machine. QEMU shows the guest a virtio-iommu PCI device whose back end
//! is this daemon, over a vhost-user socket. The daemon owns the translation of the endpoints
//! behind it and reports their faults to the guest.
//!
//! ```text
//! requests   guest -> request queue -> vhost (virtqueue) -> viommu (device model) -> host (back end)
//! faults     endpoint -> iopf (per endpoint, round robin) -> vhost -> event queue -> guest
//! ```
//!
//! Modules import lower layers only: [`vhost`] > [`viommu`] > [`host`] > [`iopf`] > [`address`].
//! [`endpoint`] connects host devices and emulated endpoints ([`accelerator`]) to [`host`] and
//! [`iopf`]; [`daemon`] creates and connects all parts.

pub mod address;
pub mod cli;
pub mod counter;
pub mod daemon;
pub mod endpoint;
pub mod error;
pub mod heartbeat;
pub mod host;
pub mod iopf;
pub mod metrics;
pub mod notifier;
pub mod sandbox;
pub mod service;
pub mod socket;
pub mod status;
pub mod trace;
pub mod vhost;
pub mod viommu;
