//! PROBE: the properties of an endpoint, as bytes.

use super::wire::{self, size};
use crate::host::{ReservedKind, ReservedRegion};

/// What [`properties`] of an endpoint may need, in bytes.
pub fn room(reserved: &[ReservedRegion]) -> usize {
    properties(reserved, Some(0)).len()
}

/// The properties of an endpoint, ready to be written. Their total is a multiple of 8.
/// `pasid_bits`: for a driver that has accepted PASIDs, if the endpoint has any.
pub fn properties(reserved: &[ReservedRegion], pasid_bits: Option<u8>) -> Vec<u8> {
    let regions = reserved.iter().flat_map(reserved_memory);
    regions.chain(pasid_bits.into_iter().flat_map(pasids)).collect()
}

/// `docs/pasid.md`, 8 bytes.
fn pasids(bits: u8) -> [u8; 8] {
    let [type_low, type_high] = wire::PROBE_T_PASID.to_le_bytes();
    [type_low, type_high, 4, 0, bits, 0, 0, 0]
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
