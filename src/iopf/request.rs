//! What a page request is, and who makes and takes back one.

use std::fmt;

use crate::address::{Iova, Pasid};
use crate::host::Access;

/// What a source calls a group of page requests, to know it again when it is answered: a page
/// request group index, a cookie of the kernel. Unique among its endpoint's unanswered groups.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SourceCookie(pub u32);

/// An endpoint's wish that a page be made accessible: the access waits. A group is one or more
/// requests of one cookie and one PASID; it is answered as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageRequest {
    /// The address space, if not the endpoint's own.
    pub pasid: Option<Pasid>,
    /// The group it belongs to.
    pub cookie: SourceCookie,
    /// First byte of the page; the source decides how large its pages are.
    pub address: Iova,
    /// What the access wants to do.
    pub access: Access,
    /// The access fetches instructions.
    pub exec: bool,
    /// The access is made in privileged mode.
    pub privileged: bool,
    /// This is the last request of the group.
    pub last: bool,
}

/// How a group of page requests was answered (PCI Express base specification, 10.4.2.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// The pages are there: try again.
    Success,
    /// The access cannot be allowed: give it up.
    Invalid,
    /// Something is wrong: make no more requests.
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

/// Where the page requests of an endpoint come from, and their answers go.
pub trait Source: Send + Sync {
    /// Answers a group, once. Called on any thread, with the locks of the fault path held: must
    /// neither block nor call back. A source that has forgotten the group ignores the answer.
    fn respond(&self, pasid: Option<Pasid>, cookie: SourceCookie, response: Response);

    /// Whether a group still waits for its answer. One that does not, although it was not
    /// answered here, is not passed on to the guest; called like [`respond`](Self::respond).
    fn expects_response(&self, _cookie: SourceCookie) -> bool {
        true
    }

    /// There is room again after a request found none ([`QueueFull`]); called like
    /// [`respond`](Self::respond).
    fn capacity_available(&self);
}

/// A group was not begun, because as many as an endpoint can have wait for their answers. Try
/// again after [`Source::capacity_available`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueFull;
