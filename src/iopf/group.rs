//! A page request group and its completion.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{PageRequest, Response, Source, SourceCookie};
use crate::address::{EndpointId, Pasid};
use crate::trace;

/// Maximum number of requests that are kept of a group. PRI does not bound the length of a group:
/// a longer one is rejected.
const MAX_REQUESTS: usize = 2048;

/// The event that completes a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Completion {
    /// The guest sent a page response.
    Guest(Response),
    /// The attachment was removed.
    Detached,
    /// The group cannot be delivered: the endpoint is not attached, bypasses the IOMMU or was
    /// stopped by FAILURE, or the driver did not negotiate page requests.
    Rejected,
    /// The guest did not respond before the deadline.
    TimedOut,
    /// The device was reset, the front end disconnected or the daemon stops.
    Reset,
    /// The source no longer expects a response: it was reset, or the host responded.
    Withdrawn,
}

impl Completion {
    /// Returns the response to the source. Only the guest can respond with SUCCESS.
    fn response(self) -> Response {
        match self {
            Self::Guest(response) => response,
            _ => Response::Invalid,
        }
    }

    /// Returns the argument of the trace point.
    fn trace_code(self) -> usize {
        match self {
            Self::Guest(response) => response as usize,
            Self::Detached => 3,
            Self::Rejected => 4,
            Self::TimedOut => 5,
            Self::Reset => 6,
            Self::Withdrawn => 7,
        }
    }
}

impl fmt::Display for Completion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Guest(response) => write!(f, "{response} from the guest"),
            Self::Detached => write!(f, "detached"),
            Self::Rejected => write!(f, "rejected"),
            Self::TimedOut => write!(f, "timed out"),
            Self::Reset => write!(f, "reset"),
            Self::Withdrawn => write!(f, "withdrawn"),
        }
    }
}

/// An outstanding page request group.
///
/// [`complete`](Self::complete) consumes the group and sends its only response.
pub(super) struct Group {
    endpoint: EndpointId,
    source: Arc<dyn Source>,
    pub(super) pasid: Option<Pasid>,
    cookie: SourceCookie,
    pub(super) requests: Vec<PageRequest>,
    /// The deadline of the response, on the clock of the fault path.
    deadline: Duration,
    /// The time of the first request, if response times are measured.
    pub(super) started: Option<Instant>,
    completed: bool,
}

impl Group {
    /// Creates the group of `request`, without requests yet.
    pub(super) fn new(
        endpoint: EndpointId,
        source: Arc<dyn Source>,
        request: &PageRequest,
        started: Option<Instant>,
    ) -> Self {
        Self {
            endpoint,
            source,
            pasid: request.pasid,
            cookie: request.cookie,
            requests: Vec::new(),
            deadline: Duration::MAX,
            started,
            completed: false,
        }
    }

    /// Adds a request, and sets the new deadline.
    pub(super) fn push(&mut self, request: PageRequest, deadline: Duration) {
        if self.requests.len() < MAX_REQUESTS {
            self.requests.push(request);
        }
        self.deadline = deadline;
    }

    /// Returns whether the group includes `request`.
    pub(super) fn includes(&self, request: &PageRequest) -> bool {
        (self.pasid, self.cookie) == (request.pasid, request.cookie)
    }

    /// Returns whether the number of requests exceeded the limit.
    pub(super) fn is_truncated(&self) -> bool {
        self.requests.last().is_none_or(|request| !request.last)
    }

    pub(super) fn is_expired(&self, now: Duration) -> bool {
        self.deadline <= now
    }

    pub(super) fn source_expects_response(&self) -> bool {
        self.source.expects_response(self.cookie)
    }

    /// Sends the response to the source.
    pub(super) fn complete(mut self, completion: Completion) {
        self.completed = true;
        self.log(format_args!("completed: {completion}"));
        trace::group_answered(self.endpoint, self.pasid, self.cookie.0, completion.trace_code());
        self.source.respond(self.pasid, self.cookie, completion.response());
    }

    /// Logs an event of the group.
    pub(super) fn log(&self, event: impl fmt::Display) {
        log::debug!("endpoint {}: page request group {}: {event}", self.endpoint, self.cookie.0);
    }
}

/// A group without a response hangs the device. If a bug drops one, it still gets a response.
impl Drop for Group {
    fn drop(&mut self) {
        if self.completed {
            return;
        }
        log::error!(
            "endpoint {}: internal error: page request group {} dropped without a response",
            self.endpoint,
            self.cookie.0
        );
        self.source.respond(self.pasid, self.cookie, Response::Invalid);
        debug_assert!(std::thread::panicking(), "page request group dropped without a response");
    }
}
