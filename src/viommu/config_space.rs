//! The configuration space (virtio 1.4, IOMMU device, `struct virtio_iommu_config`).

use super::wire::{feature, size};
use crate::address::IovaRange;
use crate::host::ReservedRegion;

/// Offset of `bypass`, the only field that a driver can write.
const BYPASS: usize = 36;

/// What the device is made with; nothing of it changes while it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The granule: mappings are made of pages of this many bytes (a power of two).
    pub page_size: u64,
    /// The addresses that can be mapped.
    pub input_range: IovaRange,
    /// What `bypass` is at start.
    pub boot_bypass: bool,
    /// What endpoints must not map.
    pub reserved: Vec<ReservedRegion>,
    /// What a guest can make at most.
    pub limits: Limits,
}

/// What a guest can make the daemon remember at most; more is answered with NOMEM.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Domains at one time.
    pub domains: usize,
    /// Mappings at one time, over all domains.
    pub mappings: usize,
    /// Endpoints attached to one domain.
    pub endpoints_per_domain: usize,
    /// Unanswered groups of page requests of one endpoint.
    pub page_groups: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { domains: 4096, mappings: 4 << 20, endpoints_per_domain: 256, page_groups: 64 }
    }
}

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// The device's own features, all of them.
    pub const OFFERED: Features = Features(
        1 << feature::INPUT_RANGE
            | 1 << feature::DOMAIN_RANGE
            | 1 << feature::MAP_UNMAP
            | 1 << feature::PROBE
            | 1 << feature::BYPASS_CONFIG
            | 1 << feature::PASID
            | 1 << feature::PAGE_REQUEST,
    );

    /// Whether the bit is set.
    pub const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// `flag`, if the feature that it belongs to is there.
    pub const fn flag(self, bit: u32, flag: u32) -> u32 {
        if self.has(bit) { flag } else { 0 }
    }
}

/// The configuration space as the driver reads it.
pub fn read(settings: &Settings, probe_size: u32, bypass: bool) -> [u8; size::CONFIG] {
    let mut space = [0; size::CONFIG];
    space[0..8].copy_from_slice(&settings.page_size.to_le_bytes());
    space[8..16].copy_from_slice(&settings.input_range.first().to_le_bytes());
    space[16..24].copy_from_slice(&settings.input_range.last().to_le_bytes());
    // domain_range: from 0, because Linux's DETACH of its identity domain always names 0.
    space[28..32].copy_from_slice(&u32::MAX.to_le_bytes());
    space[32..36].copy_from_slice(&probe_size.to_le_bytes());
    space[BYPASS] = bypass.into();
    space
}

/// What a write of `bytes` at `offset` makes of `bypass`. Everything else is read-only, and a
/// front end writes the whole space at once, so the rest is ignored.
pub fn written_bypass(offset: usize, bytes: &[u8]) -> Option<bool> {
    let byte = BYPASS.checked_sub(offset).and_then(|index| bytes.get(index))?;
    match byte {
        0 => Some(false),
        1 => Some(true),
        // The driver must write nothing else, and the field must never read as anything else.
        _ => None,
    }
}
