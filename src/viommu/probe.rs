//! PROBE: the properties of an endpoint, as bytes.

use super::wire::{self, size};
use crate::host::{PageRequests, ReservedKind, ReservedRegion};

/// What an endpoint can do beyond the standard, for a driver that has accepted the features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtensionProperties {
    /// The width of its PASIDs, if it has any.
    pub pasid_bits: Option<u8>,
    /// Its page requests, if it makes any, and how many groups of them the device keeps.
    pub page_requests: Option<(PageRequests, u16)>,
}

/// What [`properties`] of an endpoint may need, in bytes.
pub fn room(reserved: &[ReservedRegion]) -> usize {
    let all = (PageRequests { response_needs_pasid: false }, 0);
    properties(reserved, ExtensionProperties { pasid_bits: Some(0), page_requests: Some(all) })
        .len()
}

/// The properties of an endpoint, ready to be written. Their total is a multiple of 8.
pub fn properties(reserved: &[ReservedRegion], abilities: ExtensionProperties) -> Vec<u8> {
    let regions = reserved.iter().flat_map(reserved_memory);
    let pasids = abilities.pasid_bits.into_iter().flat_map(pasids);
    let page_requests = abilities.page_requests.into_iter().flat_map(page_requests);
    regions.chain(pasids).chain(page_requests).collect()
}

/// `docs/page-requests.md`, 8 bytes.
fn page_requests((requests, max_groups): (PageRequests, u16)) -> [u8; 8] {
    let [type_low, type_high] = wire::PROBE_T_PAGE_REQUEST.to_le_bytes();
    let [max_low, max_high] = max_groups.to_le_bytes();
    let flags = if requests.response_needs_pasid { wire::PAGE_REQUEST_F_NEEDS_PASID } else { 0 };
    [type_low, type_high, 4, 0, flags, 0, max_low, max_high]
}

/// `docs/page-requests.md`, 8 bytes.
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
