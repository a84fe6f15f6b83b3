//! Trace points that a running daemon can be watched at, with `bpftrace`, `perf` or `gdb`.
//!
//! Each is one instruction that does nothing, until somebody puts a probe there, and a note in the
//! program that says where it is and what its arguments are (USDT, provider `vhost_user_iommu`).
//! `docs/observing.md` says how to follow a fault with them.

use probe::probe;

use crate::address::{EndpointId, Iova, Pasid};

/// The driver's request has been taken out of the ring. `kind`: its first byte, or -1.
#[inline]
pub fn request_taken(kind: Option<u8>, bytes: usize) {
    probe!(vhost_user_iommu, request_taken, number(kind), bytes);
}

/// It has been dealt with. `status`: what the driver reads, or -1.
#[inline]
pub fn request_done(kind: Option<u8>, status: Option<u8>) {
    probe!(vhost_user_iommu, request_done, number(kind), number(status));
}

/// A source has reported a fault that cannot be recovered from.
#[inline]
pub fn fault_reported(endpoint: EndpointId, pasid: Option<Pasid>, address: Iova, write: bool) {
    probe!(vhost_user_iommu, fault_reported, endpoint.0, number_of(pasid), address.0, write);
}

/// A source makes a page request: once more, where there was no room for it before. `cookie`:
/// what the source calls the group.
#[inline]
pub fn page_requested(endpoint: EndpointId, pasid: Option<Pasid>, cookie: u32, address: Iova) {
    probe!(vhost_user_iommu, page_requested, endpoint.0, number_of(pasid), cookie, address.0);
}

/// A fault has been written into the event queue.
#[inline]
pub fn fault_delivered(endpoint: EndpointId, pasid: Option<Pasid>, address: Iova) {
    probe!(vhost_user_iommu, fault_delivered, endpoint.0, number_of(pasid), address.0);
}

/// A page request has been written into the event queue. `group`: what the guest calls the group.
#[inline]
pub fn page_request_delivered(
    endpoint: EndpointId,
    pasid: Option<Pasid>,
    cookie: u32,
    group: u16,
    address: Iova,
) {
    probe!(
        vhost_user_iommu,
        page_request_delivered,
        endpoint.0,
        number_of(pasid),
        cookie,
        group,
        address.0
    );
}

/// The guest has answered a group, or has tried to. `code`: 0 success, 1 invalid, 2 failure.
#[inline]
pub fn response_received(endpoint: EndpointId, pasid: Option<Pasid>, group: u16, code: usize) {
    probe!(vhost_user_iommu, response_received, endpoint.0, number_of(pasid), group, code);
}

/// The source is told the answer to a group. `answer`: 0 to 2 as above, by the guest; by the
/// daemon 3 detached, 4 refused, 5 timed out, 6 reset, 7 withdrawn.
#[inline]
pub fn group_answered(endpoint: EndpointId, pasid: Option<Pasid>, cookie: u32, answer: usize) {
    probe!(vhost_user_iommu, group_answered, endpoint.0, number_of(pasid), cookie, answer);
}

fn number(byte: Option<u8>) -> isize {
    byte.map_or(-1, isize::from)
}

fn number_of(pasid: Option<Pasid>) -> isize {
    pasid.map_or(-1, |pasid| pasid.0 as isize)
}
