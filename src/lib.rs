//! A virtio-iommu device for QEMU, outside QEMU.
//!
//! One daemon per virtual machine. QEMU shows the guest a virtio-iommu PCI device whose back end
//! is this daemon, over a vhost-user socket. The daemon owns the translation of the endpoints
//! behind it and tells the guest of their faults.
//!
//! ```text
//! requests   guest -> request queue -> vhost (rings) -> viommu (device model) -> host (back end)
//! faults     endpoint -> iopf (per endpoint, fair) -> vhost -> event queue -> guest
//! ```
//!
//! Imports run one way: [`vhost`] -> [`viommu`] -> [`iopf`] -> [`host`] -> [`address`]; emulated
//! endpoints ([`accelerator`]) stand on [`host`]; [`daemon`] puts all together.

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
