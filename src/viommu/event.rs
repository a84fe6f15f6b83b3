//! Encoding of events: from a fault or page request to the bytes that the driver reads.

use zerocopy::IntoBytes;

use super::features::Features;
use super::wire::{self, ExtendedFault};
use crate::address::{Access, EndpointId, Iova, Pasid};
use crate::iopf::{Event, Fault, FaultReason, GroupId, PageRequest};

/// An event in each format that the driver can receive it in.
pub struct Encoded {
    /// Format of the specification. A page request cannot be encoded in it.
    standard: Option<wire::Fault>,
    /// Format of the extension, for a driver with page requests.
    extended: Option<ExtendedFault>,
}

impl Encoded {
    /// Returns the longest format that fits into a buffer of `size` bytes.
    pub fn within(&self, size: usize) -> Option<&[u8]> {
        match (&self.extended, &self.standard) {
            (Some(event), _) if size >= size_of::<ExtendedFault>() => Some(event.as_bytes()),
            (_, Some(event)) if size >= size_of::<wire::Fault>() => Some(event.as_bytes()),
            _ => None,
        }
    }
}

/// Encodes an event for a driver that negotiated `features`.
pub fn encode(event: &Event, features: Features) -> Encoded {
    match event {
        Event::Fault(fault) => encode_fault(fault, features),
        Event::PageRequest { endpoint, group, request } => Encoded {
            standard: None,
            extended: features
                .has(wire::F_PAGE_REQUEST)
                .then(|| encode_page_request(*endpoint, *group, request)),
        },
    }
}

fn encode_fault(fault: &Fault, features: Features) -> Encoded {
    let reason = match fault.reason {
        FaultReason::Domain => wire::FAULT_R_DOMAIN,
        FaultReason::Mapping => wire::FAULT_R_MAPPING,
    };
    let flags = access_flags(fault.access);
    let standard = base(reason, flags, fault.endpoint, None, fault.address);
    let pasid = fault.pasid.filter(|_| features.has(wire::F_PASID));
    let extended = features.has(wire::F_PAGE_REQUEST).then(|| {
        let fault = base(reason, flags, fault.endpoint, pasid, fault.address);
        extend(fault, GroupId(0))
    });
    Encoded { standard: Some(standard), extended }
}

fn encode_page_request(
    endpoint: EndpointId,
    group: GroupId,
    request: &PageRequest,
) -> ExtendedFault {
    let mut flags = wire::FAULT_F_PAGE_REQ | wire::FAULT_F_GROUP_ID | access_flags(request.access);
    for (set, flag) in [
        (request.exec, wire::FAULT_F_EXEC),
        (request.privileged, wire::FAULT_F_PRIVILEGED),
        (request.last, wire::FAULT_F_LAST),
    ] {
        flags |= if set { flag } else { 0 };
    }
    let fault = base(wire::FAULT_R_MAPPING, flags, endpoint, request.pasid, request.address);
    extend(fault, group)
}

/// Encodes the fields that both formats have.
fn base(
    reason: u8,
    flags: u32,
    endpoint: EndpointId,
    pasid: Option<Pasid>,
    address: Iova,
) -> wire::Fault {
    let pasid_flag = if pasid.is_some() { wire::FAULT_F_PASID } else { 0 };
    wire::Fault {
        reason,
        reserved: [0; 3],
        flags: (flags | wire::FAULT_F_ADDRESS | pasid_flag).into(),
        endpoint: endpoint.0.into(),
        pasid: pasid.map_or(0, |pasid| pasid.0).into(),
        address: address.0.into(),
    }
}

fn extend(fault: wire::Fault, group: GroupId) -> ExtendedFault {
    ExtendedFault { fault, group_id: group.0.into(), reserved: [0; 22] }
}

fn access_flags(access: Access) -> u32 {
    let read = if access.read { wire::FAULT_F_READ } else { 0 };
    let write = if access.write { wire::FAULT_F_WRITE } else { 0 };
    read | write
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iopf::SourceCookie;

    const EXTENSION: Features = Features(1 << wire::F_PASID | 1 << wire::F_PAGE_REQUEST);
    const ENDPOINT: EndpointId = EndpointId(0x0403_0201);

    fn fault() -> Fault {
        Fault {
            endpoint: ENDPOINT,
            pasid: Some(Pasid(0x12345)),
            address: Iova(0x0807_0605_0403_0201),
            access: Access::WRITE,
            reason: FaultReason::Mapping,
        }
    }

    #[test]
    fn page_request_fields_are_at_their_offsets() {
        let request = PageRequest {
            pasid: Some(Pasid(0x12345)),
            cookie: SourceCookie(9),
            address: Iova(0x7000),
            access: Access::READ,
            exec: true,
            privileged: true,
            last: true,
        };
        let event =
            Event::PageRequest { endpoint: ENDPOINT, group: GroupId(0x0201), request: &request };
        let encoded = encode(&event, EXTENSION);
        assert!(encoded.within(47).is_none());
        let bytes = encoded.within(48).unwrap();
        assert_eq!(bytes[..8], [2, 0, 0, 0, 0b0011_1101, 0b111, 0, 0]);
        assert_eq!(bytes[8..16], [1, 2, 3, 4, 0x45, 0x23, 1, 0]);
        assert_eq!(bytes[16..24], 0x7000u64.to_le_bytes());
        assert_eq!(bytes[24..26], [1, 2]);
        assert_eq!(bytes[26..], [0; 22]);
    }

    #[test]
    fn small_buffer_gets_standard_format() {
        let fault = fault();
        let encoded = encode(&Event::Fault(&fault), EXTENSION);
        let extended = encoded.within(100).unwrap();
        assert_eq!(extended.len(), 48);
        assert_eq!(extended[..16], [2, 0, 0, 0, 2, 0b11, 0, 0, 1, 2, 3, 4, 0x45, 0x23, 1, 0]);
        assert_eq!(extended[16..24], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(extended[24..], [0; 24]);
        let standard = encoded.within(47).unwrap();
        assert_eq!(standard.len(), 24);
        assert_eq!(standard[..16], [2, 0, 0, 0, 2, 1, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert!(encoded.within(23).is_none());
    }

    #[test]
    fn fault_format_depends_on_negotiated_features() {
        let fault = fault();
        let standard = encode(&Event::Fault(&fault), Features::default());
        assert_eq!(standard.within(100).unwrap().len(), 24);
        let without_pasid = Features(1 << wire::F_PAGE_REQUEST);
        let encoded = encode(&Event::Fault(&fault), without_pasid);
        assert_eq!(encoded.within(48).unwrap()[4..16], [2, 1, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
    }
}
