//! Page requests, their sources and their responses.

use std::fmt;

use crate::address::{Access, Iova, Pasid};

/// A source's identifier of a page request group, unique among the outstanding groups of its
/// endpoint. The guest does not see it: it uses the group's [`GroupId`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceCookie(pub u32);

/// The guest's identifier of a page request group (`group_id` in events and in PAGE_RESP), unique
/// among the groups of an endpoint that await a page response.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct GroupId(pub u16);

/// A request to make a page accessible, for an access that the endpoint retries after the
/// response. The requests of a group have the same cookie and PASID, and get one response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The PASID of the access, if it has one.
    pub pasid: Option<Pasid>,
    /// The group of the request.
    pub cookie: SourceCookie,
    /// The address of the first byte of the page. The source determines the page size.
    pub address: Iova,
    /// The type of the access.
    pub access: Access,
    /// The access is an instruction fetch.
    pub exec: bool,
    /// The access is made in privileged mode.
    pub privileged: bool,
    /// This is the last request of the group.
    pub last: bool,
}

/// The response to a page request group (PCI Express base specification, 10.4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The pages are accessible: the endpoint retries the accesses.
    Success,
    /// The accesses are not allowed: they fail.
    Invalid,
    /// The accesses fail, and the endpoint must not make further page requests.
    Failure,
}

impl fmt::Display for Response {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Success => "SUCCESS",
            Self::Invalid => "INVALID",
            Self::Failure => "FAILURE",
        })
    }
}

/// The source of an endpoint's page requests: an emulated device, or a fault queue of the kernel.
///
/// All methods are called from any thread with the fault state of the endpoint locked: they must
/// not block and must not call the fault path.
pub trait Source: Send + Sync {
    /// Sends the response to a group. Called exactly once for each group. A source that was reset
    /// ignores responses to the groups from before the reset.
    fn respond(&self, pasid: Option<Pasid>, cookie: SourceCookie, response: Response);

    /// Returns whether a complete group still requires a response. If not, for example because
    /// the host responded on its own, the group is not delivered to the guest.
    fn expects_response(&self, _cookie: SourceCookie) -> bool {
        true
    }

    /// Notifies the source, once after each [`QueueFull`], that it can retry the page request.
    fn capacity_available(&self);
}

/// The endpoint has as many outstanding groups as its limit. The source must retry the page request
/// after [`Source::capacity_available`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("too many outstanding page request groups")]
pub struct QueueFull;

/// A page response that matches no group. It has no effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RespondError {
    /// No group with this identifier and PASID awaits a response.
    #[error("no such page request group awaits a response")]
    NoSuchGroup,
    /// The group has a PASID, and the endpoint requires it in the response.
    #[error("the response lacks the PASID of the page request group")]
    PasidMissing,
}
