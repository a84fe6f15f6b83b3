//! Feature bits of the device.

use super::wire;

/// A set of feature bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub u64);

impl Features {
    /// The device-specific features that are offered.
    pub const OFFERED: Features = Features(
        1 << wire::F_INPUT_RANGE
            | 1 << wire::F_DOMAIN_RANGE
            | 1 << wire::F_MAP_UNMAP
            | 1 << wire::F_PROBE
            | 1 << wire::F_BYPASS_CONFIG
            | 1 << wire::F_PASID
            | 1 << wire::F_PAGE_REQUEST,
    );

    /// Returns whether the feature `bit` is in the set.
    pub const fn has(self, bit: u32) -> bool {
        self.0 >> bit & 1 == 1
    }

    /// Returns `flag` if the feature `bit` that defines it is in the set, otherwise 0.
    pub const fn flag(self, bit: u32, flag: u32) -> u32 {
        if self.has(bit) { flag } else { 0 }
    }
}
