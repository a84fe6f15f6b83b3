//! Decoding: from the bytes that the driver wrote to a typed request. Pure.

use super::config_space::Features;
use super::status::RequestError;
use super::wire::{self, feature, page_resp, request, size};
use crate::iopf::Response;

/// A request as the driver made it; nothing is checked but its form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Attach an endpoint to a domain.
    Attach {
        /// The domain, created when it does not exist.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// The PASID of the endpoint, where the domain is for one.
        pasid: Option<u32>,
        /// Whether it is a bypass domain.
        bypass: bool,
    },
    /// Detach an endpoint from a domain.
    Detach {
        /// The domain that it should be attached to.
        domain: u32,
        /// The endpoint.
        endpoint: u32,
        /// The PASID of the endpoint, where it is to be detached.
        pasid: Option<u32>,
    },
    /// Add a mapping to a domain.
    Map {
        /// The domain.
        domain: u32,
        /// First I/O virtual address.
        virt_start: u64,
        /// Last I/O virtual address (inclusive).
        virt_end: u64,
        /// Guest-physical address of the first byte.
        phys_start: u64,
        /// VIRTIO_IOMMU_MAP_F_*, known ones only.
        flags: u32,
    },
    /// Remove all mappings of a domain inside a range.
    Unmap {
        /// The domain.
        domain: u32,
        /// First I/O virtual address.
        virt_start: u64,
        /// Last I/O virtual address (inclusive).
        virt_end: u64,
    },
    /// Ask for the properties of an endpoint.
    Probe {
        /// The endpoint.
        endpoint: u32,
    },
    /// Answer a group of page requests.
    PageResponse {
        /// The endpoint.
        endpoint: u32,
        /// The PASID of the group.
        pasid: Option<u32>,
        /// The group.
        group: u16,
        /// The answer.
        response: Response,
    },
}

/// Decodes the driver's part of a request, for a driver that has accepted `features`. Bytes
/// beyond what the type has are ignored.
///
/// `None`: no request, or one of an unknown type, which the device leaves unwritten. What
/// belongs to a feature that was not accepted is unknown.
pub fn decode(bytes: &[u8], features: Features) -> Option<Result<Request, RequestError>> {
    let kind = *bytes.first_chunk::<{ size::HEAD }>()?.first()?;
    let body = |len| bytes.get(..len).map(Fields).ok_or(RequestError::TooShort);
    let request = match kind {
        request::ATTACH => body(size::ATTACH).and_then(|fields| attach(fields, features)),
        request::DETACH => body(size::DETACH).and_then(|fields| detach(fields, features)),
        request::MAP if features.has(feature::MAP_UNMAP) => body(size::MAP).and_then(map),
        request::UNMAP if features.has(feature::MAP_UNMAP) => body(size::UNMAP).map(unmap),
        request::PROBE if features.has(feature::PROBE) => body(size::PROBE).map(probe),
        request::PAGE_RESP if features.has(feature::PAGE_REQUEST) => {
            body(size::PAGE_RESP).and_then(page_response)
        }
        _ => return None,
    };
    Some(request)
}

fn attach(fields: Fields, features: Features) -> Result<Request, RequestError> {
    let bypass = features.flag(feature::BYPASS_CONFIG, wire::ATTACH_F_BYPASS);
    let with_pasid = features.flag(feature::PASID, wire::ATTACH_F_PASID);
    let flags = known_flags(fields.u32(12), bypass | with_pasid)?;
    let pasid = (flags & wire::ATTACH_F_PASID != 0).then(|| fields.u32(16));
    if pasid.is_none() && fields.u32(16) != 0 {
        return Err(RequestError::Reserved);
    }
    let bypass = flags & wire::ATTACH_F_BYPASS != 0;
    Ok(Request::Attach { domain: fields.u32(4), endpoint: fields.u32(8), pasid, bypass })
}

/// Without the feature the last 8 bytes are reserved, and ignored.
fn detach(fields: Fields, features: Features) -> Result<Request, RequestError> {
    let pasid = if features.has(feature::PASID) {
        let flags = known_flags(fields.u32(12), wire::DETACH_F_PASID)?;
        (flags & wire::DETACH_F_PASID != 0).then(|| fields.u32(16))
    } else {
        None
    };
    Ok(Request::Detach { domain: fields.u32(4), endpoint: fields.u32(8), pasid })
}

fn map(fields: Fields) -> Result<Request, RequestError> {
    Ok(Request::Map {
        domain: fields.u32(4),
        virt_start: fields.u64(8),
        virt_end: fields.u64(16),
        phys_start: fields.u64(24),
        flags: known_flags(fields.u32(32), wire::MAP_F_READ | wire::MAP_F_WRITE)?,
    })
}

fn unmap(fields: Fields) -> Request {
    Request::Unmap { domain: fields.u32(4), virt_start: fields.u64(8), virt_end: fields.u64(16) }
}

fn probe(fields: Fields) -> Request {
    Request::Probe { endpoint: fields.u32(4) }
}

fn page_response(fields: Fields) -> Result<Request, RequestError> {
    let flags = known_flags(fields.u32(8), wire::PAGE_RESP_F_PASID)?;
    let pasid = (flags & wire::PAGE_RESP_F_PASID != 0).then(|| fields.u32(12));
    let response = match fields.u16(18) {
        page_resp::SUCCESS => Response::Success,
        page_resp::INVALID => Response::Invalid,
        page_resp::FAILURE => Response::Failure,
        code => return Err(RequestError::UnknownCode(code)),
    };
    let unused_pasid = pasid.is_none() && fields.u32(12) != 0;
    if unused_pasid || fields.u64(20) != 0 {
        return Err(RequestError::Reserved);
    }
    Ok(Request::PageResponse { endpoint: fields.u32(4), pasid, group: fields.u16(16), response })
}

fn known_flags(flags: u32, known: u32) -> Result<u32, RequestError> {
    if flags & !known == 0 { Ok(flags) } else { Err(RequestError::UnknownFlags(flags & !known)) }
}

/// Bytes of a request; offsets come from the tables of the specification and lie inside.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.bytes(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.bytes(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.bytes(offset))
    }

    fn bytes<const N: usize>(&self, offset: usize) -> [u8; N] {
        let mut bytes = [0; N];
        bytes.copy_from_slice(&self.0[offset..offset + N]);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn decode(bytes: &[u8]) -> Option<Result<Request, RequestError>> {
        super::decode(bytes, Features::OFFERED)
    }

    fn bytes(kind: u8, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len as u8).collect();
        bytes[0] = kind;
        bytes
    }

    #[test]
    fn every_field_is_read_from_its_offset() {
        let mut map = bytes(request::MAP, size::MAP);
        map[32..36].copy_from_slice(&3u32.to_le_bytes());
        let expected = Request::Map {
            domain: 0x0706_0504,
            virt_start: 0x0f0e_0d0c_0b0a_0908,
            virt_end: 0x1716_1514_1312_1110,
            phys_start: 0x1f1e_1d1c_1b1a_1918,
            flags: 3,
        };
        assert_eq!(decode(&map).unwrap().unwrap(), expected);
        let unmap = decode(&bytes(request::UNMAP, size::UNMAP)).unwrap().unwrap();
        let (virt_start, virt_end) = (0x0f0e_0d0c_0b0a_0908, 0x1716_1514_1312_1110);
        assert_eq!(unmap, Request::Unmap { domain: 0x0706_0504, virt_start, virt_end });
    }

    #[test]
    fn every_field_of_a_page_response_is_read_from_its_offset() {
        let mut response = bytes(request::PAGE_RESP, size::PAGE_RESP);
        for zero in [9..12, 20..28] {
            response[zero].fill(0);
        }
        response[8] = 1;
        response[18..20].copy_from_slice(&2u16.to_le_bytes());
        let expected = Request::PageResponse {
            endpoint: 0x0706_0504,
            pasid: Some(0x0f0e_0d0c),
            group: 0x1110,
            response: Response::Failure,
        };
        assert_eq!(decode(&response).unwrap().unwrap(), expected);
    }

    #[test]
    fn no_head_or_an_unknown_type_is_no_request() {
        for len in 0..size::HEAD {
            assert!(decode(&[request::MAP; size::HEAD][..len]).is_none());
        }
        for kind in [0, 6, 7, 9, 255] {
            assert!(decode(&bytes(kind, size::MAX)).is_none());
        }
    }

    #[test]
    fn each_type_is_refused_when_a_byte_is_missing_and_taken_when_there_are_more() {
        let sizes = [
            (request::ATTACH, size::ATTACH),
            (request::DETACH, size::DETACH),
            (request::MAP, size::MAP),
            (request::UNMAP, size::UNMAP),
            (request::PROBE, size::PROBE),
            (request::PAGE_RESP, size::PAGE_RESP),
        ];
        for (kind, size) in sizes {
            let zeros = |len| [vec![kind], vec![0; len - 1]].concat();
            assert!(matches!(decode(&zeros(size - 1)), Some(Err(RequestError::TooShort))));
            assert!(matches!(decode(&zeros(size)), Some(Ok(_))));
            assert!(matches!(decode(&zeros(size + 9)), Some(Ok(_))));
        }
    }

    #[test]
    fn reserved_bytes_of_the_head_are_ignored_and_those_of_attach_are_not() {
        let mut attach = vec![0; size::ATTACH];
        attach[..4].copy_from_slice(&[request::ATTACH, 1, 2, 3]);
        assert!(decode(&attach).unwrap().is_ok());
        attach[19] = 1;
        assert!(matches!(decode(&attach), Some(Err(RequestError::Reserved))));
    }

    #[test]
    fn what_belongs_to_a_feature_that_was_not_accepted_is_unknown() {
        let none = Features::default();
        for kind in [request::MAP, request::UNMAP, request::PROBE, request::PAGE_RESP] {
            assert!(super::decode(&bytes(kind, size::MAX), none).is_none());
        }
        let mut attach = vec![0; size::ATTACH];
        attach[0] = request::ATTACH;
        assert!(matches!(super::decode(&attach, none), Some(Ok(_))));
        attach[12] = 1;
        assert!(matches!(super::decode(&attach, none), Some(Err(RequestError::UnknownFlags(1)))));
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_make_decoding_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
