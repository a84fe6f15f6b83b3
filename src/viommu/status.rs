//! Errors of requests, and the one table that maps them to a status.

use crate::address::{DomainId, EndpointId, IovaRange, Pasid};
use crate::host::{HostError, MappingError};
use crate::iopf::RespondError;

/// Status of a request (VIRTIO_IOMMU_S_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Success.
    Ok = 0,
    /// Virtio transport error.
    IoErr = 1,
    /// Unsupported request.
    Unsupp = 2,
    /// Internal device error.
    DevErr = 3,
    /// Invalid parameters.
    Inval = 4,
    /// Out-of-range parameters.
    Range = 5,
    /// Entry not found.
    NoEnt = 6,
    /// Bad address.
    Fault = 7,
    /// Insufficient resources.
    NoMem = 8,
}

impl Status {
    /// All statuses in the order of their numbers.
    pub const ALL: [Self; 9] = [
        Self::Ok,
        Self::IoErr,
        Self::Unsupp,
        Self::DevErr,
        Self::Inval,
        Self::Range,
        Self::NoEnt,
        Self::Fault,
        Self::NoMem,
    ];

    /// Returns the name in the specification, in lower case and without VIRTIO_IOMMU_S_.
    pub fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::IoErr => "ioerr",
            Self::Unsupp => "unsupp",
            Self::DevErr => "deverr",
            Self::Inval => "inval",
            Self::Range => "range",
            Self::NoEnt => "noent",
            Self::Fault => "fault",
            Self::NoMem => "nomem",
        }
    }
}

/// The reason for rejecting a request. The state of the device has not changed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Shorter than the device-readable part of its type.
    #[error("size {size} is too small, must be at least {required} bytes")]
    TooShort {
        /// Size in bytes.
        size: usize,
        /// Size of the device-readable part in bytes.
        required: usize,
    },
    /// Nonzero reserved field that must be zero.
    #[error("reserved field is not zero")]
    ReservedField,
    /// Undefined flags, or flags of a feature that was not negotiated.
    #[error("unknown flags {0:#x}")]
    UnknownFlags(u32),
    /// PAGE_RESP with an undefined code.
    #[error("unknown response code {0}")]
    UnknownCode(u16),
    /// Unknown endpoint.
    #[error("endpoint {0} does not exist")]
    NoEndpoint(EndpointId),
    /// Unknown domain.
    #[error("domain {0} does not exist")]
    NoDomain(DomainId),
    /// ATTACH of a PASID of an endpoint without PASIDs.
    #[error("endpoint {0} does not support PASIDs")]
    NoPasids(EndpointId),
    /// ATTACH of a PASID beyond the endpoint's PASID width, or of PASID 0.
    #[error("PASID {pasid} is out of range, must be from 1 to {max}", max = (1u32 << bits) - 1)]
    PasidRange {
        /// PASID in the request.
        pasid: Pasid,
        /// PASID width of the endpoint.
        bits: u8,
    },
    /// ATTACH of a PASID with the BYPASS flag.
    #[error("PASID {0} cannot be attached to a bypass domain")]
    PasidBypass(Pasid),
    /// DETACH of an unattached PASID.
    #[error("PASID {0} is not attached")]
    PasidNotAttached(Pasid),
    /// DETACH from a domain that the endpoint or PASID is not attached to.
    #[error("not attached to domain {0}")]
    NotAttached(DomainId),
    /// ATTACH whose BYPASS flag does not match the existing domain.
    #[error("BYPASS flag {flag} does not match existing domain {domain}")]
    BypassMismatch {
        /// Domain in the request.
        domain: DomainId,
        /// The BYPASS flag.
        flag: bool,
    },
    /// MAP or UNMAP in a bypass domain.
    #[error("domain {0} is a bypass domain")]
    BypassDomain(DomainId),
    /// `virt_end` is below `virt_start`.
    #[error("virt_end {virt_end:#x} is below virt_start {virt_start:#x}")]
    InvertedRange {
        /// First I/O virtual address.
        virt_start: u64,
        /// Last I/O virtual address.
        virt_end: u64,
    },
    /// Unaligned I/O virtual or guest-physical address.
    #[error("range {range} or guest-physical address is not aligned to {page_size:#x} bytes")]
    Unaligned {
        /// I/O virtual addresses in the request.
        range: IovaRange,
        /// Granularity of mappings in bytes.
        page_size: u64,
    },
    /// Range outside `input_range`, or guest-physical addresses beyond 2^64 - 1.
    #[error("range {0} or its guest-physical addresses are out of range")]
    OutOfRange(IovaRange),
    /// MAP over a reserved region.
    #[error("range {0} overlaps a reserved region")]
    ReservedRegion(IovaRange),
    /// MAP over a mapping, or UNMAP of a part of a mapping.
    #[error(transparent)]
    Mapping(#[from] MappingError),
    /// A limit is reached.
    #[error("limit of {limit} {resource} is reached")]
    Limit {
        /// The limited resource.
        resource: &'static str,
        /// Maximum number.
        limit: usize,
    },
    /// PROBE with too small a device-writable part.
    #[error("{size} bytes for properties are too few, must be at least {required}")]
    SmallBuffer {
        /// Size of the device-writable part without the tail, in bytes.
        size: usize,
        /// `probe_size` of the configuration space, in bytes.
        required: usize,
    },
    /// PAGE_RESP for an endpoint that makes no page requests.
    #[error("endpoint {0} makes no page requests")]
    NoPageRequests(EndpointId),
    /// PAGE_RESP that matches no page request group.
    #[error(transparent)]
    Response(#[from] RespondError),
    /// Error of the back end.
    #[error("host: {0}")]
    Host(#[from] HostError),
}

impl RequestError {
    /// Returns the status that the specification requires.
    pub fn status(&self) -> Status {
        match self {
            Self::TooShort { .. }
            | Self::ReservedField
            | Self::UnknownFlags(_)
            | Self::UnknownCode(_)
            | Self::NotAttached(_)
            | Self::BypassMismatch { .. }
            | Self::BypassDomain(_)
            | Self::InvertedRange { .. }
            | Self::ReservedRegion(_)
            | Self::Mapping(MappingError::Overlap)
            | Self::SmallBuffer { .. }
            | Self::Response(RespondError::PasidMissing)
            | Self::Host(HostError::UnmappableRange(_)) => Status::Inval,
            Self::NoEndpoint(_)
            | Self::NoDomain(_)
            | Self::PasidNotAttached(_)
            | Self::NoPageRequests(_)
            | Self::Response(RespondError::NoSuchGroup) => Status::NoEnt,
            Self::PasidRange { .. }
            | Self::Unaligned { .. }
            | Self::OutOfRange(_)
            | Self::Mapping(MappingError::Split) => Status::Range,
            Self::NoPasids(_) | Self::PasidBypass(_) | Self::Host(HostError::Unsupported(_)) => {
                Status::Unsupp
            }
            Self::Limit { .. } | Self::Host(HostError::NoMemory(_)) => Status::NoMem,
            Self::Host(HostError::Failed(_) | HostError::UnknownEndpoint(_)) => Status::DevErr,
        }
    }
}
