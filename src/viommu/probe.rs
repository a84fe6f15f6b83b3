//! PROBE: the properties of an endpoint (virtio 1.4, 5.13.6.7).

use zerocopy::little_endian::U16;
use zerocopy::{Immutable, IntoBytes};

use super::wire::{self, ProbePageRequest, ProbePasid, ProbeProperty, ProbeResvMem};
use crate::host::{PageRequests, ReservedKind, ReservedRegion};

/// Properties of the page request extension, for a driver that negotiated its features.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ExtensionProperties {
    /// PASID width of the endpoint in bits.
    pub pasid_bits: Option<u8>,
    /// Page request interface of the endpoint.
    pub page_requests: Option<PageRequests>,
    /// Maximum number of outstanding page request groups.
    pub max_groups: u16,
}

/// Returns the maximum size of the properties of an endpoint, in bytes.
pub fn max_size(reserved: &[ReservedRegion]) -> usize {
    reserved.len() * size_of::<ProbeResvMem>()
        + size_of::<ProbePasid>()
        + size_of::<ProbePageRequest>()
}

/// Encodes the properties of an endpoint. Their total size is a multiple of 8 bytes.
pub fn encode(reserved: &[ReservedRegion], extension: ExtensionProperties) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(max_size(reserved));
    for region in reserved {
        bytes.extend_from_slice(reserved_memory(region).as_bytes());
    }
    if let Some(bits) = extension.pasid_bits {
        let head = head::<ProbePasid>(wire::PROBE_T_PASID);
        bytes.extend_from_slice(ProbePasid { head, bits, reserved: [0; 3] }.as_bytes());
    }
    if let Some(requests) = extension.page_requests {
        let property = page_request(requests, extension.max_groups);
        bytes.extend_from_slice(property.as_bytes());
    }
    bytes
}

fn reserved_memory(region: &ReservedRegion) -> ProbeResvMem {
    ProbeResvMem {
        head: head::<ProbeResvMem>(wire::PROBE_T_RESV_MEM),
        subtype: match region.kind {
            ReservedKind::Reserved => wire::RESV_MEM_T_RESERVED,
            ReservedKind::Msi => wire::RESV_MEM_T_MSI,
        },
        reserved: [0; 3],
        start: region.range.first().into(),
        end: region.range.last().into(),
    }
}

fn page_request(requests: PageRequests, max_groups: u16) -> ProbePageRequest {
    let needs_pasid = requests.response_needs_pasid;
    ProbePageRequest {
        head: head::<ProbePageRequest>(wire::PROBE_T_PAGE_REQUEST),
        flags: if needs_pasid { wire::PAGE_REQUEST_F_NEEDS_PASID } else { 0 },
        reserved: 0,
        max_groups: max_groups.into(),
    }
}

/// Returns the head of the property `T`, whose `length` excludes the head.
fn head<T: IntoBytes + Immutable>(property_type: u16) -> ProbeProperty {
    let length = size_of::<T>() - size_of::<ProbeProperty>();
    ProbeProperty { r#type: property_type.into(), length: U16::new(length as u16) }
}
