//! PROBE: the properties of an endpoint, as bytes.

use super::wire::{self, size};
use crate::host::{ReservedKind, ReservedRegion};

/// The properties of an endpoint, ready to be written. Their total is a multiple of 8.
pub fn properties(reserved: &[ReservedRegion]) -> Vec<u8> {
    reserved.iter().flat_map(reserved_memory).collect()
}

/// `struct virtio_iommu_probe_resv_mem`, 24 bytes; `length` excludes the head.
fn reserved_memory(region: &ReservedRegion) -> [u8; 24] {
    let mut property = [0; 24];
    let length = (property.len() - size::PROPERTY_HEAD) as u16;
    property[0..2].copy_from_slice(&wire::PROBE_T_RESV_MEM.to_le_bytes());
    property[2..4].copy_from_slice(&length.to_le_bytes());
    property[4] = match region.kind {
        ReservedKind::Reserved => wire::RESV_MEM_T_RESERVED,
        ReservedKind::Msi => wire::RESV_MEM_T_MSI,
    };
    property[8..16].copy_from_slice(&region.range.first().to_le_bytes());
    property[16..24].copy_from_slice(&region.range.last().to_le_bytes());
    property
}
