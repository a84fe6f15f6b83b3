//! Events: from what the driver is to be told to the bytes that it reads.

use super::config_space::Features;
use super::wire::{fault as wire, feature, size};
use crate::address::{EndpointId, Iova, Pasid};
use crate::host::Access;
use crate::iopf::{Event, Fault, FaultReason, GroupId, PageRequest};

/// An event in the formats that a driver can be given it in.
pub struct Encoded {
    /// `struct virtio_iommu_fault`, which cannot carry page requests.
    short: Option<[u8; size::FAULT]>,
    /// The one of the extension, for a driver that takes page requests.
    long: Option<[u8; size::LONG_FAULT]>,
}

impl Encoded {
    /// The longest format that fits into a buffer of `room` bytes.
    pub fn within(&self, room: usize) -> Option<&[u8]> {
        let long = self.long.as_ref().map(|event| event.as_slice());
        let short = self.short.as_ref().map(|event| event.as_slice());
        long.filter(|event| event.len() <= room).or(short.filter(|event| event.len() <= room))
    }
}

/// Encodes an event for a driver that has accepted `features`.
pub fn encode(event: &Event, features: Features) -> Encoded {
    match event {
        Event::Fault(fault) => encode_fault(fault, features),
        Event::PageRequest { endpoint, group, request } => Encoded {
            short: None,
            long: features
                .has(feature::PAGE_REQUEST)
                .then(|| encode_request(*endpoint, *group, request)),
        },
    }
}

fn encode_fault(fault: &Fault, features: Features) -> Encoded {
    let reason = match fault.reason {
        FaultReason::Domain => wire::R_DOMAIN,
        FaultReason::Mapping => wire::R_MAPPING,
    };
    let flags = access_flags(fault.access);
    let short = common(reason, flags, fault.endpoint, None, fault.address);
    let pasid = fault.pasid.filter(|_| features.has(feature::PASID));
    let long = features.has(feature::PAGE_REQUEST).then(|| {
        let head = common(reason, flags, fault.endpoint, pasid, fault.address);
        lengthen(head, GroupId(0))
    });
    Encoded { short: Some(short), long }
}

fn encode_request(
    endpoint: EndpointId,
    group: GroupId,
    request: &PageRequest,
) -> [u8; size::LONG_FAULT] {
    let flag = |set, flag| if set { flag } else { 0 };
    let flags = wire::F_PAGE_REQ
        | wire::F_GROUP_ID
        | access_flags(request.access)
        | flag(request.exec, wire::F_EXEC)
        | flag(request.privileged, wire::F_PRIVILEGED)
        | flag(request.last, wire::F_LAST);
    let head = common(wire::R_MAPPING, flags, endpoint, request.pasid, request.address);
    lengthen(head, group)
}

/// What both formats begin with.
fn common(
    reason: u8,
    flags: u32,
    endpoint: EndpointId,
    pasid: Option<Pasid>,
    address: Iova,
) -> [u8; size::FAULT] {
    let flags = flags | wire::F_ADDRESS | if pasid.is_some() { wire::F_PASID } else { 0 };
    let mut event = [0; size::FAULT];
    event[0] = reason;
    event[4..8].copy_from_slice(&flags.to_le_bytes());
    event[8..12].copy_from_slice(&endpoint.0.to_le_bytes());
    event[12..16].copy_from_slice(&pasid.map_or(0, |pasid| pasid.0).to_le_bytes());
    event[16..24].copy_from_slice(&address.0.to_le_bytes());
    event
}

fn lengthen(head: [u8; size::FAULT], group: GroupId) -> [u8; size::LONG_FAULT] {
    let mut event = [0; size::LONG_FAULT];
    event[..size::FAULT].copy_from_slice(&head);
    event[24..26].copy_from_slice(&group.0.to_le_bytes());
    event
}

fn access_flags(access: Access) -> u32 {
    let read = if access.read { wire::F_READ } else { 0 };
    let write = if access.write { wire::F_WRITE } else { 0 };
    read | write
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::iopf::SourceCookie;

    const BOTH: Features = Features(1 << feature::PASID | 1 << feature::PAGE_REQUEST);
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
    fn a_page_request_lies_where_the_extension_says() {
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
        let encoded = encode(&event, BOTH);
        assert!(encoded.within(47).is_none());
        let bytes = encoded.within(48).unwrap();
        assert_eq!(bytes[..8], [2, 0, 0, 0, 0b0011_1101, 0b111, 0, 0]);
        assert_eq!(bytes[8..16], [1, 2, 3, 4, 0x45, 0x23, 1, 0]);
        assert_eq!(bytes[16..24], 0x7000u64.to_le_bytes());
        assert_eq!(bytes[24..26], [1, 2]);
        assert_eq!(bytes[26..], [0; 22]);
    }

    #[test]
    fn a_small_buffer_gets_the_standard_format() {
        let fault = fault();
        let encoded = encode(&Event::Fault(&fault), BOTH);
        let long = encoded.within(100).unwrap();
        assert_eq!(long.len(), 48);
        assert_eq!(long[..16], [2, 0, 0, 0, 2, 0b11, 0, 0, 1, 2, 3, 4, 0x45, 0x23, 1, 0]);
        assert_eq!(long[16..24], [1, 2, 3, 4, 5, 6, 7, 8]);
        assert_eq!(long[24..], [0; 24]);
        let short = encoded.within(47).unwrap();
        assert_eq!(short.len(), 24);
        assert_eq!(short[..16], [2, 0, 0, 0, 2, 1, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
        assert!(encoded.within(23).is_none());
    }

    #[test]
    fn what_was_not_accepted_is_not_shown() {
        let fault = fault();
        let standard = encode(&Event::Fault(&fault), Features::default());
        assert_eq!(standard.within(100).unwrap().len(), 24);
        let without_pasids = encode(&Event::Fault(&fault), Features(1 << feature::PAGE_REQUEST));
        assert_eq!(without_pasids.within(48).unwrap()[4..16], [2, 1, 0, 0, 1, 2, 3, 4, 0, 0, 0, 0]);
    }
}
