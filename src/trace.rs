//! Static trace points (USDT, provider `vhost_user_iommu`) for `bpftrace`, `perf` and `gdb`.
//!
//! Each trace point is a no-op instruction, which a tracer replaces by a breakpoint, and a note in
//! the ELF file with its address and the locations of its arguments. `docs/observing.md` describes
//! how to follow a fault with them.

use probe::probe;

use crate::address::{EndpointId, Iova, Pasid};

/// A request was popped from the request queue. `kind` is its first byte, -1 if it has none.
#[inline]
pub fn request_taken(kind: Option<u8>, bytes: usize) {
    probe!(vhost_user_iommu, request_taken, number(kind), bytes);
}

/// A request was completed. `status` is the one that the driver reads, -1 if none was written.
#[inline]
pub fn request_done(kind: Option<u8>, status: Option<u8>) {
    probe!(vhost_user_iommu, request_done, number(kind), number(status));
}

/// A source reported an unrecoverable fault.
#[inline]
pub fn fault_reported(endpoint: EndpointId, pasid: Option<Pasid>, address: Iova, write: bool) {
    probe!(vhost_user_iommu, fault_reported, endpoint.0, number_of(pasid), address.0, write);
}

/// A source reported a page request. A request that did not fit before is reported again.
/// `cookie` is the source's identifier of the group.
#[inline]
pub fn page_requested(endpoint: EndpointId, pasid: Option<Pasid>, cookie: u32, address: Iova) {
    probe!(vhost_user_iommu, page_requested, endpoint.0, number_of(pasid), cookie, address.0);
}

/// A fault was written into the event queue.
#[inline]
pub fn fault_delivered(endpoint: EndpointId, pasid: Option<Pasid>, address: Iova) {
    probe!(vhost_user_iommu, fault_delivered, endpoint.0, number_of(pasid), address.0);
}

/// A page request was written into the event queue. `group` is the guest's identifier of the group.
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

/// The guest sent a page response, valid or not. `code`: 0 success, 1 invalid, 2 failure.
#[inline]
pub fn response_received(endpoint: EndpointId, pasid: Option<Pasid>, group: u16, code: usize) {
    probe!(vhost_user_iommu, response_received, endpoint.0, number_of(pasid), group, code);
}

/// A group was completed and its source notified. `answer`: 0 to 2 as above if the guest responded;
/// completed by the daemon: 3 detached, 4 refused, 5 timed out, 6 reset, 7 withdrawn.
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
