//! Events for the guest's driver.

use super::{Fault, GroupId, PageRequest};
use crate::address::EndpointId;
use crate::trace;

/// An event for the event queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event<'a> {
    /// An unrecoverable fault.
    Fault(&'a Fault),
    /// A request of a group that awaits a response.
    PageRequest {
        /// The endpoint that issued the request.
        endpoint: EndpointId,
        /// The guest's identifier of the group.
        group: GroupId,
        /// The request.
        request: &'a PageRequest,
    },
}

impl Event<'_> {
    /// Passes the event to `put`, and traces it if `put` returns that it was delivered.
    pub(super) fn deliver(self, put: &mut dyn FnMut(Event) -> bool) -> bool {
        let delivered = put(self);
        if delivered {
            self.trace();
        }
        delivered
    }

    fn trace(self) {
        match self {
            Event::Fault(&Fault { endpoint, pasid, address, .. }) => {
                trace::fault_delivered(endpoint, pasid, address);
            }
            Event::PageRequest { endpoint, group, request } => {
                let PageRequest { pasid, cookie, address, .. } = *request;
                trace::page_request_delivered(endpoint, pasid, cookie.0, group.0, address);
            }
        }
    }
}

/// The result of a delivery of events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DeliveryStatus {
    /// No event is left. The notifier is signalled for the next one.
    Complete,
    /// Events were delivered, and more may be left.
    More,
    /// The driver has no buffer for a page request, which stays queued.
    NoBuffer,
}
