//! The one table from what went wrong to the status that the guest reads.

use crate::host::{HostError, SpaceError};
use crate::iopf::RespondError;

/// How a request ended (VIRTIO_IOMMU_S_*).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Status {
    /// Done.
    Ok = 0,
    /// The device could not reach what it had to.
    IoErr = 1,
    /// The device cannot do this.
    Unsupp = 2,
    /// The device failed.
    DevErr = 3,
    /// The request is invalid.
    Inval = 4,
    /// An address or identifier lies outside what is allowed.
    Range = 5,
    /// The endpoint or domain does not exist.
    NoEnt = 6,
    /// The request's own memory could not be accessed.
    Fault = 7,
    /// Out of memory, or over a limit.
    NoMem = 8,
}

impl Status {
    /// All of them, each at its own number.
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

    /// Its name in the specification, without VIRTIO_IOMMU_S_ and in small letters.
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

/// Why a request was refused; nothing has been changed.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// Shorter than its type needs.
    #[error("the request is cut short")]
    TooShort,
    /// A field that has to be zero.
    #[error("a reserved field is not zero")]
    Reserved,
    /// A flag that does not exist, or was not negotiated.
    #[error("unknown flags {0:#x}")]
    UnknownFlags(u32),
    /// No such endpoint behind this IOMMU.
    #[error("no endpoint {0:#x}")]
    NoEndpoint(u32),
    /// No endpoint is attached to a domain of that number.
    #[error("no domain {0}")]
    NoDomain(u32),
    /// ATTACH of a PASID of an endpoint that has none.
    #[error("endpoint {0:#x} has no PASIDs")]
    NoPasids(u32),
    /// A PASID that the endpoint cannot use.
    #[error("PASID {0} is outside the endpoint's range")]
    PasidRange(u32),
    /// DETACH of a PASID that is not attached.
    #[error("PASID {0} is not attached")]
    PasidNotAttached(u32),
    /// PAGE_RESP with a code that does not exist.
    #[error("unknown response code {0}")]
    UnknownCode(u16),
    /// PAGE_RESP for a group that does not wait for one.
    #[error("no such group waits for an answer")]
    NoGroup,
    /// PAGE_RESP without the PASID of the group, where the endpoint needs it.
    #[error("the endpoint needs the PASID in the answer")]
    PasidMissing,
    /// ATTACH of a PASID to a bypass domain.
    #[error("a PASID cannot bypass")]
    PasidBypass,
    /// DETACH names a domain that the endpoint is not attached to.
    #[error("the endpoint is not attached to domain {0}")]
    NotAttached(u32),
    /// ATTACH with and without BYPASS to one domain.
    #[error("domain {0} is of the other kind (bypass or not)")]
    OtherKind(u32),
    /// MAP or UNMAP in a bypass domain.
    #[error("domain {0} is a bypass domain")]
    BypassDomain(u32),
    /// `virt_end` below `virt_start`.
    #[error("the range ends before it starts")]
    Backwards,
    /// Not on a boundary of the granule.
    #[error("not aligned to {0:#x} bytes")]
    Misaligned(u64),
    /// Outside `input_range`, or past 2^64 - 1 in physical memory.
    #[error("outside the address range")]
    OutOfRange,
    /// MAP over a reserved region.
    #[error("overlaps a reserved region")]
    ReservedRegion,
    /// MAP over a mapping, UNMAP of a part of one.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// A limit of the command line is reached.
    #[error("limit of {limit} {what} reached")]
    Limit {
        /// What there are too many of.
        what: &'static str,
        /// How many are allowed.
        limit: usize,
    },
    /// The properties do not fit into the buffer.
    #[error("the properties need {0} bytes")]
    SmallBuffer(usize),
    /// The host refused.
    #[error("host: {0}")]
    Host(#[from] HostError),
}

impl From<RespondError> for RequestError {
    fn from(error: RespondError) -> Self {
        match error {
            RespondError::NoSuchGroup => Self::NoGroup,
            RespondError::PasidMissing => Self::PasidMissing,
        }
    }
}

impl RequestError {
    /// The status that the specification asks for.
    pub fn status(&self) -> Status {
        match self {
            RequestError::TooShort | RequestError::Reserved | RequestError::UnknownFlags(_) => {
                Status::Inval
            }
            RequestError::NotAttached(_) | RequestError::OtherKind(_) => Status::Inval,
            RequestError::UnknownCode(_) | RequestError::PasidMissing => Status::Inval,
            RequestError::BypassDomain(_) | RequestError::Backwards => Status::Inval,
            RequestError::ReservedRegion | RequestError::SmallBuffer(_) => Status::Inval,
            RequestError::Space(SpaceError::Overlap) => Status::Inval,
            RequestError::NoEndpoint(_) | RequestError::NoDomain(_) => Status::NoEnt,
            RequestError::PasidNotAttached(_) | RequestError::NoGroup => Status::NoEnt,
            RequestError::Misaligned(_) | RequestError::OutOfRange => Status::Range,
            RequestError::PasidRange(_) => Status::Range,
            RequestError::NoPasids(_) | RequestError::PasidBypass => Status::Unsupp,
            RequestError::Space(SpaceError::Split) => Status::Range,
            RequestError::Limit { .. } => Status::NoMem,
            RequestError::Host(HostError::NoMemory(_)) => Status::NoMem,
            RequestError::Host(HostError::Refused(_)) => Status::Inval,
            RequestError::Host(HostError::Unsupported(_)) => Status::Unsupp,
            RequestError::Host(HostError::Failed(_)) => Status::DevErr,
        }
    }
}
