//! Parameters of the device.

use crate::address::IovaRange;
use crate::host::ReservedRegion;

/// Parameters of the device. They are fixed while it runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Granularity of mappings in bytes, a power of two.
    pub page_size: u64,
    /// I/O virtual addresses that can be mapped.
    pub input_range: IovaRange,
    /// Initial value of `bypass` in the configuration space.
    pub boot_bypass: bool,
    /// Reserved regions of all endpoints.
    pub reserved: Vec<ReservedRegion>,
    /// Limits on what the guest can create.
    pub limits: Limits,
}

/// Limits on the state that the guest can create. A request beyond a limit is rejected with NOMEM.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Maximum number of domains.
    pub domains: usize,
    /// Maximum number of mappings in all domains together.
    pub mappings: usize,
    /// Maximum number of endpoints and PASIDs attached to one domain.
    pub endpoints_per_domain: usize,
    /// Maximum number of outstanding page request groups of one endpoint.
    pub page_groups: u16,
}

impl Default for Limits {
    fn default() -> Self {
        Self { domains: 4096, mappings: 4 << 20, endpoints_per_domain: 256, page_groups: 64 }
    }
}
