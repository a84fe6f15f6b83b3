//! The configuration space (virtio 1.4, 5.13.4).

use std::mem::offset_of;

use super::settings::Settings;
use super::wire::{Config, Range32, Range64};

/// Returns the configuration space as the driver reads it.
pub fn read(settings: &Settings, probe_size: u32, bypass: bool) -> Config {
    Config {
        page_size_mask: settings.page_size.into(),
        input_range: Range64 {
            start: settings.input_range.first().into(),
            end: settings.input_range.last().into(),
        },
        // Linux's DETACH from its identity domain always specifies domain 0, so 0 has to be valid.
        domain_range: Range32 { start: 0.into(), end: u32::MAX.into() },
        probe_size: probe_size.into(),
        bypass: bypass.into(),
        reserved: [0; 3],
    }
}

/// Returns the new value of `bypass` if a write of `bytes` at `offset` sets it.
///
/// All other fields are read-only. A front end writes the whole configuration space, so
/// writes to them are ignored.
pub fn written_bypass(offset: usize, bytes: &[u8]) -> Option<bool> {
    let index = offset_of!(Config, bypass).checked_sub(offset)?;
    match bytes.get(index)? {
        0 => Some(false),
        1 => Some(true),
        // The driver must not write any other value, and the field never reads as one.
        _ => None,
    }
}
