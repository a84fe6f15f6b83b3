//! Decoding of requests: from the bytes that the driver wrote to a typed request. Pure functions.

use zerocopy::{FromBytes, Immutable, KnownLayout, Unaligned};

use super::features::Features;
use super::status::RequestError;
use super::wire::{self, ReqAttach, ReqDetach, ReqHead, ReqMap, ReqPageResp, ReqProbe, ReqUnmap};
use crate::address::{Access, DomainId, EndpointId, Gpa, Pasid};
use crate::iopf::{GroupId, Response};

/// Size of the longest device-readable part of a request, in bytes.
pub const MAX_REQUEST_SIZE: usize = size_of::<ReqProbe>();

/// The type of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestType {
    /// ATTACH.
    Attach,
    /// DETACH.
    Detach,
    /// MAP.
    Map,
    /// UNMAP.
    Unmap,
    /// PROBE.
    Probe,
    /// PAGE_RESP (extension).
    PageResponse,
    /// An undefined type, or a buffer too short for a head.
    Unknown,
}

impl RequestType {
    /// All request types.
    pub const ALL: [Self; 7] = [
        Self::Attach,
        Self::Detach,
        Self::Map,
        Self::Unmap,
        Self::Probe,
        Self::PageResponse,
        Self::Unknown,
    ];

    /// Returns the type of the request in `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        match ReqHead::ref_from_prefix(bytes).map(|(head, _)| head.r#type) {
            Ok(wire::T_ATTACH) => Self::Attach,
            Ok(wire::T_DETACH) => Self::Detach,
            Ok(wire::T_MAP) => Self::Map,
            Ok(wire::T_UNMAP) => Self::Unmap,
            Ok(wire::T_PROBE) => Self::Probe,
            Ok(wire::T_PAGE_RESP) => Self::PageResponse,
            _ => Self::Unknown,
        }
    }

    /// Returns the name used in log lines and metric labels.
    pub fn name(self) -> &'static str {
        match self {
            Self::Attach => "attach",
            Self::Detach => "detach",
            Self::Map => "map",
            Self::Unmap => "unmap",
            Self::Probe => "probe",
            Self::PageResponse => "page_response",
            Self::Unknown => "unknown",
        }
    }
}

/// A well-formed request. Its fields are not validated against the state of the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Attaches an endpoint, or a PASID of it, to a domain.
    Attach {
        /// The domain, created if it does not exist.
        domain: DomainId,
        /// The endpoint.
        endpoint: EndpointId,
        /// The PASID to attach instead of the endpoint itself.
        pasid: Option<Pasid>,
        /// Whether the domain is a bypass domain.
        bypass: bool,
    },
    /// Detaches an endpoint, or a PASID of it, from a domain.
    Detach {
        /// The domain.
        domain: DomainId,
        /// The endpoint.
        endpoint: EndpointId,
        /// The PASID to detach instead of the endpoint itself.
        pasid: Option<Pasid>,
    },
    /// Adds a mapping to a domain.
    Map {
        /// The domain.
        domain: DomainId,
        /// First I/O virtual address.
        virt_start: u64,
        /// Last I/O virtual address (inclusive).
        virt_end: u64,
        /// Guest-physical address that `virt_start` translates to.
        phys_start: Gpa,
        /// The accesses that the mapping allows.
        access: Access,
    },
    /// Removes all mappings of a domain in a range.
    Unmap {
        /// The domain.
        domain: DomainId,
        /// First I/O virtual address.
        virt_start: u64,
        /// Last I/O virtual address (inclusive).
        virt_end: u64,
    },
    /// Returns the properties of an endpoint.
    Probe {
        /// The endpoint.
        endpoint: EndpointId,
    },
    /// Responds to a page request group.
    PageResponse {
        /// The endpoint that made the page requests.
        endpoint: EndpointId,
        /// The PASID of the group.
        pasid: Option<Pasid>,
        /// The group.
        group: GroupId,
        /// The response.
        response: Response,
    },
}

/// Decodes the device-readable part of a request. `features` are the negotiated features: a
/// request type or flag that belongs to another feature is unknown. Excess bytes are ignored.
///
/// Returns `None` for an unknown request type and for a buffer too short for a head, which the
/// device returns unwritten (5.13.6.2).
///
/// # Errors
/// Returns the error of a request that is too short for its type, has an unknown flag or code, or
/// has a nonzero reserved field that must be zero.
///
/// # Examples
/// ```
/// use vhost_user_iommu::address::{Access, DomainId, Gpa};
/// use vhost_user_iommu::viommu::Features;
/// use vhost_user_iommu::viommu::request::{Request, decode};
/// use vhost_user_iommu::viommu::wire::{MAP_F_READ, ReqHead, ReqMap, T_MAP};
/// use zerocopy::IntoBytes;
///
/// let map = ReqMap {
///     head: ReqHead { r#type: T_MAP, reserved: [0; 3] },
///     domain: 1.into(),
///     virt_start: 0x1000.into(),
///     virt_end: 0x1fff.into(),
///     phys_start: 0x8000.into(),
///     flags: MAP_F_READ.into(),
/// };
/// let request = decode(map.as_bytes(), Features::OFFERED).expect("a known type").unwrap();
/// assert_eq!(
///     request,
///     Request::Map {
///         domain: DomainId(1),
///         virt_start: 0x1000,
///         virt_end: 0x1fff,
///         phys_start: Gpa(0x8000),
///         access: Access::READ,
///     }
/// );
/// assert!(decode(&map.as_bytes()[..20], Features::OFFERED).unwrap().is_err());
/// assert!(decode(map.as_bytes(), Features::default()).is_none());
/// ```
pub fn decode(bytes: &[u8], features: Features) -> Option<Result<Request, RequestError>> {
    match RequestType::of(bytes) {
        RequestType::Attach => Some(attach(bytes, features)),
        RequestType::Detach => Some(detach(bytes, features)),
        RequestType::Map if features.has(wire::F_MAP_UNMAP) => Some(map(bytes)),
        RequestType::Unmap if features.has(wire::F_MAP_UNMAP) => Some(unmap(bytes)),
        RequestType::Probe if features.has(wire::F_PROBE) => Some(probe(bytes)),
        RequestType::PageResponse if features.has(wire::F_PAGE_REQUEST) => {
            Some(page_response(bytes))
        }
        _ => None,
    }
}

fn attach(bytes: &[u8], features: Features) -> Result<Request, RequestError> {
    let request: &ReqAttach = fields(bytes)?;
    let flags = known_flags(
        request.flags.get(),
        features.flag(wire::F_BYPASS_CONFIG, wire::ATTACH_F_BYPASS)
            | features.flag(wire::F_PASID, wire::ATTACH_F_PASID),
    )?;
    let pasid = (flags & wire::ATTACH_F_PASID != 0).then(|| Pasid(request.pasid.get()));
    if pasid.is_none() && request.pasid != 0 {
        return Err(RequestError::ReservedField);
    }
    Ok(Request::Attach {
        domain: DomainId(request.domain.get()),
        endpoint: EndpointId(request.endpoint.get()),
        pasid,
        bypass: flags & wire::ATTACH_F_BYPASS != 0,
    })
}

fn detach(bytes: &[u8], features: Features) -> Result<Request, RequestError> {
    let request: &ReqDetach = fields(bytes)?;
    // Without the feature, `flags` and `pasid` are reserved, and ignored.
    let flags = if features.has(wire::F_PASID) {
        known_flags(request.flags.get(), wire::DETACH_F_PASID)?
    } else {
        0
    };
    Ok(Request::Detach {
        domain: DomainId(request.domain.get()),
        endpoint: EndpointId(request.endpoint.get()),
        pasid: (flags & wire::DETACH_F_PASID != 0).then(|| Pasid(request.pasid.get())),
    })
}

fn map(bytes: &[u8]) -> Result<Request, RequestError> {
    let request: &ReqMap = fields(bytes)?;
    let flags = known_flags(request.flags.get(), wire::MAP_F_READ | wire::MAP_F_WRITE)?;
    Ok(Request::Map {
        domain: DomainId(request.domain.get()),
        virt_start: request.virt_start.get(),
        virt_end: request.virt_end.get(),
        phys_start: Gpa(request.phys_start.get()),
        access: Access {
            read: flags & wire::MAP_F_READ != 0,
            write: flags & wire::MAP_F_WRITE != 0,
        },
    })
}

fn unmap(bytes: &[u8]) -> Result<Request, RequestError> {
    let request: &ReqUnmap = fields(bytes)?;
    Ok(Request::Unmap {
        domain: DomainId(request.domain.get()),
        virt_start: request.virt_start.get(),
        virt_end: request.virt_end.get(),
    })
}

fn probe(bytes: &[u8]) -> Result<Request, RequestError> {
    let request: &ReqProbe = fields(bytes)?;
    Ok(Request::Probe { endpoint: EndpointId(request.endpoint.get()) })
}

fn page_response(bytes: &[u8]) -> Result<Request, RequestError> {
    let request: &ReqPageResp = fields(bytes)?;
    let flags = known_flags(request.flags.get(), wire::PAGE_RESP_F_PASID)?;
    let pasid = (flags & wire::PAGE_RESP_F_PASID != 0).then(|| Pasid(request.pasid.get()));
    let response = match request.code.get() {
        wire::PAGE_RESP_SUCCESS => Response::Success,
        wire::PAGE_RESP_INVALID => Response::Invalid,
        wire::PAGE_RESP_FAILURE => Response::Failure,
        code => return Err(RequestError::UnknownCode(code)),
    };
    if (pasid.is_none() && request.pasid != 0) || request.reserved != [0; 8] {
        return Err(RequestError::ReservedField);
    }
    Ok(Request::PageResponse {
        endpoint: EndpointId(request.endpoint.get()),
        pasid,
        group: GroupId(request.group_id.get()),
        response,
    })
}

/// Returns the fields of a request whose type is known.
fn fields<T>(bytes: &[u8]) -> Result<&T, RequestError>
where
    T: FromBytes + Immutable + KnownLayout + Unaligned,
{
    match T::ref_from_prefix(bytes) {
        Ok((fields, _)) => Ok(fields),
        Err(_) => Err(RequestError::TooShort { size: bytes.len(), required: size_of::<T>() }),
    }
}

fn known_flags(flags: u32, known: u32) -> Result<u32, RequestError> {
    if flags & !known == 0 { Ok(flags) } else { Err(RequestError::UnknownFlags(flags & !known)) }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Types and sizes of all requests.
    const SIZES: [(u8, usize); 6] = [
        (wire::T_ATTACH, 20),
        (wire::T_DETACH, 20),
        (wire::T_MAP, 36),
        (wire::T_UNMAP, 28),
        (wire::T_PROBE, 72),
        (wire::T_PAGE_RESP, 28),
    ];

    fn decode(bytes: &[u8]) -> Option<Result<Request, RequestError>> {
        super::decode(bytes, Features::OFFERED)
    }

    /// A request whose bytes, except its type, are their own offsets.
    fn bytes(request_type: u8, len: usize) -> Vec<u8> {
        let mut bytes: Vec<u8> = (0..len as u8).collect();
        bytes[0] = request_type;
        bytes
    }

    #[test]
    fn map_and_unmap_fields_are_at_their_offsets() {
        let mut map = bytes(wire::T_MAP, 36);
        map[32..36].copy_from_slice(&3u32.to_le_bytes());
        let (domain, virt_start) = (DomainId(0x0706_0504), 0x0f0e_0d0c_0b0a_0908);
        let virt_end = 0x1716_1514_1312_1110;
        let expected = Request::Map {
            domain,
            virt_start,
            virt_end,
            phys_start: Gpa(0x1f1e_1d1c_1b1a_1918),
            access: Access::READ_WRITE,
        };
        assert_eq!(decode(&map).unwrap().unwrap(), expected);
        let unmap = decode(&bytes(wire::T_UNMAP, 28)).unwrap().unwrap();
        assert_eq!(unmap, Request::Unmap { domain, virt_start, virt_end });
    }

    #[test]
    fn page_response_fields_are_at_their_offsets() {
        let mut response = bytes(wire::T_PAGE_RESP, 28);
        for zero in [9..12, 20..28] {
            response[zero].fill(0);
        }
        response[8] = 1;
        response[18..20].copy_from_slice(&2u16.to_le_bytes());
        let expected = Request::PageResponse {
            endpoint: EndpointId(0x0706_0504),
            pasid: Some(Pasid(0x0f0e_0d0c)),
            group: GroupId(0x1110),
            response: Response::Failure,
        };
        assert_eq!(decode(&response).unwrap().unwrap(), expected);
    }

    #[test]
    fn truncated_head_and_unknown_type_are_not_decoded() {
        for len in 0..4 {
            assert!(decode(&[wire::T_MAP; 4][..len]).is_none());
        }
        for request_type in [0, 6, 7, 9, 255] {
            assert!(decode(&bytes(request_type, MAX_REQUEST_SIZE)).is_none());
        }
    }

    #[test]
    fn truncated_request_is_rejected_and_excess_bytes_are_ignored() {
        for (request_type, size) in SIZES {
            let zeros = |len| [vec![request_type], vec![0; len - 1]].concat();
            assert!(matches!(decode(&zeros(size - 1)), Some(Err(RequestError::TooShort { .. }))));
            assert!(matches!(decode(&zeros(size)), Some(Ok(_))));
            assert!(matches!(decode(&zeros(size + 9)), Some(Ok(_))));
        }
    }

    #[test]
    fn reserved_bytes_are_ignored_in_head_and_rejected_in_attach() {
        let mut attach = [0; 20];
        attach[..4].copy_from_slice(&[wire::T_ATTACH, 1, 2, 3]);
        assert!(decode(&attach).unwrap().is_ok());
        attach[19] = 1;
        assert!(matches!(decode(&attach), Some(Err(RequestError::ReservedField))));
    }

    #[test]
    fn types_and_flags_of_features_not_negotiated_are_unknown() {
        let none = Features::default();
        for request_type in [wire::T_MAP, wire::T_UNMAP, wire::T_PROBE, wire::T_PAGE_RESP] {
            assert!(super::decode(&bytes(request_type, MAX_REQUEST_SIZE), none).is_none());
        }
        let mut attach = [0; 20];
        attach[0] = wire::T_ATTACH;
        assert!(matches!(super::decode(&attach, none), Some(Ok(_))));
        attach[12] = 1;
        assert!(matches!(super::decode(&attach, none), Some(Err(RequestError::UnknownFlags(1)))));
    }

    #[test]
    fn request_type_requires_a_complete_head() {
        assert_eq!(RequestType::of(&[wire::T_MAP, 0, 0, 0]), RequestType::Map);
        assert_eq!(RequestType::of(&[wire::T_MAP, 0, 0]), RequestType::Unknown);
        assert_eq!(RequestType::of(&[99; 40]), RequestType::Unknown);
        assert_eq!(RequestType::of(&[]), RequestType::Unknown);
    }

    proptest::proptest! {
        #[test]
        fn arbitrary_bytes_do_not_panic(bytes: Vec<u8>) {
            let _ = decode(&bytes);
        }
    }
}
