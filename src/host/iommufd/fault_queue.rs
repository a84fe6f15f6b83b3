//! The fault queue of one endpoint.
//!
//! # No stale response
//!
//! The kernel identifies a group by a [`KernelCookie`], which it allocates when the group is read
//! and frees when the group is completed. The next group that is read gets the lowest free cookie.
//! The kernel also completes groups itself, read or not and without notice, when the attachment
//! that they came through is detached or replaced. A cookie that was read before a detach can
//! therefore identify another group, which a late response would complete.
//!
//! Three operations change which cookies are allocated: reading groups, writing a response, and
//! changing an attachment. [`FaultQueue`] makes each of them, together with the update of its table
//! of pending groups, under one lock. By induction, whenever the lock is free, the table contains
//! exactly the cookies that the kernel has allocated:
//!
//! - A read adds the groups that it returns. None of them is of a previous attachment: the kernel
//!   has removed those from the queue before the change of the attachment, which was made under
//!   the lock, returned.
//! - A response removes its group from the table, and is written only if the group was there. So
//!   none is written twice, and none for a cookie that was freed.
//! - A change of an attachment removes all groups of that PASID, which are those that the kernel
//!   has completed. A change that fails has completed none, and removes none.
//!
//! Outside this module a group is identified by its [`SourceCookie`], which is not reused while
//! the group is pending. A response to a group that is not pending is ignored.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use zerocopy::{FromBytes, Immutable, IntoBytes};

use super::context::Object;
use crate::address::{EndpointId, Iova, Pasid};
use crate::host::{Access, KernelError};
use crate::iopf::{PageRequest, SourceCookie};

/// The largest number of requests in a group of the kernel. A buffer of this size holds any group.
const MAX_GROUP_LEN: usize = 2048;

const FLAG_PASID: u32 = iommufd_bindings::iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_PASID_VALID;
const PERM_READ: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_READ;
const PERM_WRITE: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_WRITE;
const PERM_EXEC: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_EXEC;
const PERM_PRIVILEGED: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_PRIV;
const SUCCESS: u32 = iommufd_bindings::iommufd_page_response_code_IOMMUFD_PAGE_RESP_SUCCESS;
const INVALID: u32 = iommufd_bindings::iommufd_page_response_code_IOMMUFD_PAGE_RESP_INVALID;

/// The kernel's identifier of a group that was read and is not completed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct KernelCookie(u32);

/// `struct iommu_hwpt_pgfault`: one page request.
#[derive(Clone, Copy, Default, FromBytes, Immutable, IntoBytes)]
#[repr(C)]
struct Pgfault {
    flags: u32,
    dev_id: u32,
    pasid: u32,
    grpid: u32,
    perm: u32,
    reserved: u32,
    addr: u64,
    length: u32,
    cookie: u32,
}

/// `struct iommu_hwpt_page_response`: the response to a group.
#[derive(Immutable, IntoBytes)]
#[repr(C)]
struct PageResponse {
    cookie: u32,
    code: u32,
}

/// Receives the responses that the kernel does not pass on to an emulated device.
pub(super) trait ResponseObserver: Send + Sync {
    /// The group with this page request group index was completed. Called with the queue locked.
    fn completed(&self, grpid: u32, success: bool);
}

/// The fault queue of an endpoint, and its groups without a response.
pub struct FaultQueue {
    endpoint: EndpointId,
    table: Mutex<Table>,
    observer: OnceLock<Arc<dyn ResponseObserver>>,
    // Dropped in this order: the kernel destroys no queue whose descriptor is open.
    fd: OwnedFd,
    object: Object,
}

struct Table {
    /// The groups that were read and have no response.
    pending: BTreeMap<SourceCookie, PendingGroup>,
    last_cookie: u32,
    buffer: Box<[Pgfault]>,
}

impl Default for Table {
    fn default() -> Self {
        let buffer = vec![Pgfault::default(); MAX_GROUP_LEN].into_boxed_slice();
        Self { pending: BTreeMap::new(), last_cookie: 0, buffer }
    }
}

#[derive(Clone, Copy, Debug)]
struct PendingGroup {
    cookie: KernelCookie,
    pasid: Option<Pasid>,
    /// The device's page request group index.
    grpid: u32,
}

impl FaultQueue {
    pub(super) fn new(endpoint: EndpointId, (object, fd): (Object, OwnedFd)) -> Self {
        Self { endpoint, table: Mutex::default(), observer: OnceLock::new(), fd, object }
    }

    /// Sets the observer of responses, once and before the first page request.
    #[cfg(feature = "selftest")]
    pub(super) fn set_observer(&self, observer: Arc<dyn ResponseObserver>) {
        let _ = self.observer.set(observer);
    }

    /// Returns the object number, which HWPTs refer to.
    pub(super) fn id(&self) -> u32 {
        self.object.id()
    }

    /// Reads the page requests of some of the groups in the queue, each group whole, without
    /// blocking. Returns none if the queue is empty.
    ///
    /// # Errors
    /// If the read fails. No page request is lost.
    pub fn read(&self) -> Result<Vec<PageRequest>, KernelError> {
        let mut table = self.lock();
        let buffer = table.buffer.as_mut_bytes();
        let len = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut *buffer))
            .map_err(|errno| KernelError::new("read", "the fault queue", errno))?;
        Ok(table.add_groups(len / size_of::<Pgfault>()))
    }

    /// Writes the response to a group. Does nothing if the group is not pending.
    pub fn respond(&self, cookie: SourceCookie, success: bool) {
        let mut table = self.lock();
        let Some(group) = table.pending.remove(&cookie) else { return };
        let code = if success { SUCCESS } else { INVALID };
        let response = PageResponse { cookie: group.cookie.0, code };
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, response.as_bytes())) {
            Ok(len) if len == size_of::<PageResponse>() => {}
            result => log::error!(
                "internal error: endpoint {}: the kernel rejects the response to {group:?}: \
                 {result:?}; please report it",
                self.endpoint
            ),
        }
        self.notify(&group, success);
    }

    /// Completes all groups with INVALID, read or not, because the device was reset.
    ///
    /// # Errors
    /// If a read fails. Some groups may be pending.
    #[cfg(feature = "selftest")]
    pub fn invalidate_all(&self) -> Result<(), KernelError> {
        while !self.read()?.is_empty() {}
        let pending: Vec<SourceCookie> = self.lock().pending.keys().copied().collect();
        pending.into_iter().for_each(|cookie| self.respond(cookie, false));
        Ok(())
    }

    /// Returns whether a group was read and has no response.
    pub fn is_pending(&self, cookie: SourceCookie) -> bool {
        self.lock().pending.contains_key(&cookie)
    }

    /// Calls `change`, which changes the attachment of the endpoint or of one of its PASIDs in the
    /// kernel. If that succeeds, the kernel has completed all groups of the attachment.
    pub(super) fn change_attachment<E>(
        &self,
        pasid: Option<Pasid>,
        change: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut table = self.lock();
        change()?;
        for (_, group) in table.pending.extract_if(.., |_, group| group.pasid == pasid) {
            self.notify(&group, false);
        }
        Ok(())
    }

    fn notify(&self, group: &PendingGroup, success: bool) {
        if let Some(observer) = self.observer.get() {
            observer.completed(group.grpid, success);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for FaultQueue {
    /// Readable while groups are queued.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Table {
    /// Adds the groups of the first `count` page requests in the buffer. The requests of a group
    /// are contiguous and have the same cookie.
    fn add_groups(&mut self, count: usize) -> Vec<PageRequest> {
        let faults = self.buffer[..count].to_vec();
        let mut requests = Vec::with_capacity(count);
        for group in faults.chunk_by(|one, next| one.cookie == next.cookie) {
            let cookie = self.add_group(&group[0]);
            requests.extend(group.iter().map(|fault| fault.page_request(cookie)));
            if let Some(last) = requests.last_mut() {
                last.last = true;
            }
        }
        requests
    }

    /// Adds the group of `fault` to the pending groups.
    fn add_group(&mut self, fault: &Pgfault) -> SourceCookie {
        let cookie = self.next_cookie();
        let group = PendingGroup {
            cookie: KernelCookie(fault.cookie),
            pasid: fault.pasid(),
            grpid: fault.grpid,
        };
        self.pending.insert(cookie, group);
        cookie
    }

    fn next_cookie(&mut self) -> SourceCookie {
        loop {
            self.last_cookie = self.last_cookie.wrapping_add(1);
            let cookie = SourceCookie(self.last_cookie);
            if !self.pending.contains_key(&cookie) {
                return cookie;
            }
        }
    }
}

impl Pgfault {
    /// All other flags are ignored: the kernel sets undocumented ones, and groups are read whole.
    fn pasid(&self) -> Option<Pasid> {
        (self.flags & FLAG_PASID != 0).then_some(Pasid(self.pasid))
    }

    /// Returns a page request that is not the last of its group.
    fn page_request(&self, cookie: SourceCookie) -> PageRequest {
        let read = self.perm & PERM_READ != 0;
        let write = self.perm & PERM_WRITE != 0;
        PageRequest {
            pasid: self.pasid(),
            cookie,
            address: Iova(self.addr),
            access: Access { read, write },
            exec: self.perm & PERM_EXEC != 0,
            privileged: self.perm & PERM_PRIVILEGED != 0,
            last: false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A page request as the kernel writes it, with an undocumented flag.
    fn fault(cookie: u32, pasid: Option<u32>, grpid: u32, addr: u64, perm: u32) -> Pgfault {
        let flags = 1 << 2 | pasid.map_or(0, |_| FLAG_PASID);
        let mut bytes = [0; 40];
        let fields = [(0, flags), (8, pasid.unwrap_or(0)), (12, grpid), (16, perm), (36, cookie)];
        for (offset, field) in fields {
            bytes[offset..offset + 4].copy_from_slice(&u32::to_ne_bytes(field));
        }
        bytes[24..32].copy_from_slice(&addr.to_ne_bytes());
        Pgfault::read_from_bytes(&bytes).unwrap()
    }

    impl Table {
        fn read(&mut self, faults: &[Pgfault]) -> Vec<PageRequest> {
            self.buffer[..faults.len()].copy_from_slice(faults);
            self.add_groups(faults.len())
        }
    }

    #[test]
    fn page_request_has_layout_of_kernel_header() {
        assert_eq!(size_of::<Pgfault>(), size_of::<iommufd_bindings::iommu_hwpt_pgfault>());
        let perm = PERM_WRITE | PERM_PRIVILEGED;
        let found = fault(7, Some(100), 3, 0x7f00_1234_5000, perm);
        let request = PageRequest {
            pasid: Some(Pasid(100)),
            cookie: SourceCookie(1),
            address: Iova(0x7f00_1234_5000),
            access: Access::WRITE,
            exec: false,
            privileged: true,
            last: false,
        };
        assert_eq!((found.cookie, found.pasid(), found.grpid), (7, Some(Pasid(100)), 3));
        assert_eq!(found.page_request(SourceCookie(1)), request);
        assert_eq!(fault(0, None, 0, 0, PERM_READ | PERM_EXEC).pasid(), None);
    }

    #[test]
    fn requests_with_one_cookie_form_one_group() {
        let mut table = Table::default();
        let faults = [(5, 0x1000), (5, 0x2000), (6, 0x1000), (7, 0x9000)];
        let faults = faults.map(|(cookie, address)| fault(cookie, None, 1, address, PERM_READ));
        let requests = table.read(&faults);
        let groups: Vec<_> =
            requests.iter().map(|request| (request.cookie.0, request.last)).collect();
        assert_eq!(groups, [(1, false), (1, true), (2, true), (3, true)]);
        let cookies: Vec<u32> = table.pending.values().map(|group| group.cookie.0).collect();
        assert_eq!(cookies, [5, 6, 7]);
    }

    #[test]
    fn reused_kernel_cookie_gets_new_source_cookie() {
        let mut table = Table::default();
        let first = table.read(&[fault(1, None, 1, 0, PERM_READ)]);
        let second = table.read(&[fault(1, None, 1, 0, PERM_READ)]);
        assert_ne!(first[0].cookie, second[0].cookie);
    }

    #[test]
    fn source_cookies_wrap_around_and_skip_pending_ones() {
        let mut table = Table { last_cookie: u32::MAX - 1, ..Table::default() };
        let requests = [1, 2].map(|cookie| table.read(&[fault(cookie, None, 1, 0, PERM_READ)]));
        let cookies = requests.map(|requests| requests[0].cookie);
        assert_eq!(cookies, [SourceCookie(u32::MAX), SourceCookie(0)]);
        table.last_cookie = u32::MAX - 1;
        assert_eq!(table.next_cookie(), SourceCookie(1));
    }
}
