//! The kernel's queue of page requests of one endpoint.
//!
//! # No stale answer
//!
//! The kernel names a group by a cookie when it is read, and frees the cookie when the group is
//! answered, to use the lowest free one for the next group read. And it answers groups itself,
//! read or not, when the attachment that they came through is detached or replaced, without a
//! word. So a cookie kept over a detach may name another group by now, and an answer meant for
//! the old one would complete the new one.
//!
//! Three things are done with a queue: a group is read (a cookie is given out), an answer is
//! written (it is given back), an attachment is changed (all of its attachment are given back).
//! [`FaultQueue`] does each of them wholly under one lock, together with its table of groups that
//! are read and not answered. By induction, whenever nobody holds the lock, the table has exactly
//! the cookies that the kernel has given out:
//!
//! - a read adds what it returns. It can return no group of an attachment that has gone: the
//!   kernel has taken those out of the queue before the change of the attachment, under this
//!   lock, returned;
//! - an answer takes its group out of the table first, and is written only if it was there. So
//!   none is written twice, and none for a cookie that was given back;
//! - a change of an attachment takes out all groups of that PASID, which are those that the
//!   kernel has answered. One that the kernel refuses has answered nothing and takes out nothing.
//!
//! Outside this module groups have names of their own ([`Handle`]), which are not used again
//! while they mean something; one that means nothing any more is ignored.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::kernel::{Extras, KernelError, Object};
use crate::address::{EndpointId, Iova, Pasid};
use crate::host::Access;

/// Bytes of `struct iommu_hwpt_pgfault`.
const RECORD: usize = 40;
/// The kernel's groups have no more requests than this: a buffer of so many takes any group.
const RECORDS: usize = 2048;

const FLAG_PASID: u32 = iommufd_bindings::iommu_hwpt_pgfault_flags_IOMMU_PGFAULT_FLAGS_PASID_VALID;
const PERM_READ: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_READ;
const PERM_WRITE: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_WRITE;
const PERM_EXEC: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_EXEC;
const PERM_PRIVILEGED: u32 = iommufd_bindings::iommu_hwpt_pgfault_perm_IOMMU_PGFAULT_PERM_PRIV;
const SUCCESS: u32 = iommufd_bindings::iommufd_page_response_code_IOMMUFD_PAGE_RESP_SUCCESS;
const INVALID: u32 = iommufd_bindings::iommufd_page_response_code_IOMMUFD_PAGE_RESP_INVALID;

/// The name of a group that was read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Handle(pub u32);

/// A group of page requests as the kernel has reported it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FaultGroup {
    /// Names it when it is answered.
    pub handle: Handle,
    /// The address space, if not the endpoint's own.
    pub pasid: Option<Pasid>,
    /// Its requests, in order, one at least.
    pub pages: Vec<FaultPage>,
}

/// One request of a group.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultPage {
    /// First byte of the page.
    pub address: Iova,
    /// What the access wants to do.
    pub access: Access,
    /// It fetches instructions.
    pub exec: bool,
    /// It is made in privileged mode.
    pub privileged: bool,
}

/// Hears of answers as the device does: for devices that are emulated. Called with the queue
/// locked.
pub(super) trait Answered: Send + Sync {
    /// The kernel has answered the group that the device called `index`.
    fn answered(&self, index: u32, success: bool);
}

/// A queue, and the groups that were read and wait for their answers.
pub struct FaultQueue {
    endpoint: EndpointId,
    table: Mutex<Table>,
    answered: OnceLock<Arc<dyn Answered>>,
    // Dropped in this order: the kernel destroys no queue that is open.
    fd: OwnedFd,
    object: Object,
}

struct Table {
    /// Read and not answered.
    waiting: BTreeMap<Handle, Waiting>,
    last: u32,
    buffer: Box<[u8; RECORD * RECORDS]>,
}

impl Default for Table {
    fn default() -> Self {
        Self { waiting: BTreeMap::new(), last: 0, buffer: Box::new([0; RECORD * RECORDS]) }
    }
}

#[derive(Clone, Copy)]
struct Waiting {
    cookie: u32,
    pasid: Option<Pasid>,
    /// What the device calls it (page request group index).
    index: u32,
}

/// A request out of the buffer, and whose group it belongs to.
#[derive(Debug, PartialEq, Eq)]
struct Record {
    cookie: u32,
    pasid: Option<Pasid>,
    index: u32,
    page: FaultPage,
}

impl FaultQueue {
    pub(super) fn new(endpoint: EndpointId, (object, fd): (Object, OwnedFd)) -> Self {
        Self { endpoint, table: Mutex::default(), answered: OnceLock::new(), fd, object }
    }

    /// Tells `listener` of answers. Once, and before there are any.
    #[cfg(feature = "selftest")]
    pub(super) fn tell(&self, listener: Arc<dyn Answered>) {
        let _ = self.answered.set(listener);
    }

    /// Page tables with this report into the queue.
    pub(super) fn extras(&self) -> Extras {
        Extras { fault_queue: Some(self.object.id()), ..Extras::default() }
    }

    /// Reads what waits: none, or some of the groups, each whole. Does not wait.
    ///
    /// # Errors
    /// When the kernel gives none although it may have some.
    pub fn read(&self) -> Result<Vec<FaultGroup>, KernelError> {
        let mut table = self.lock();
        let Table { buffer, .. } = &mut *table;
        let len = rustix::io::retry_on_intr(|| rustix::io::read(&self.fd, &mut buffer[..]))
            .map_err(|errno| KernelError::new("read", "of the fault queue", errno))?;
        let records: Vec<Record> = buffer[..len].chunks_exact(RECORD).map(Record::decode).collect();
        Ok(table.take_in(records.into_iter()))
    }

    /// Answers a group. Nothing is done if it does not wait any more.
    pub fn answer(&self, handle: Handle, success: bool) {
        let mut table = self.lock();
        let Some(group) = table.waiting.remove(&handle) else { return };
        let code = if success { SUCCESS } else { INVALID };
        let mut bytes = [0; 8];
        bytes[..4].copy_from_slice(&group.cookie.to_ne_bytes());
        bytes[4..].copy_from_slice(&code.to_ne_bytes());
        match rustix::io::retry_on_intr(|| rustix::io::write(&self.fd, &bytes)) {
            Ok(8) => {}
            result => log::error!(
                "defect: endpoint {}: the kernel does not take the answer to group {group:?}: \
                 {result:?}; please report it",
                self.endpoint
            ),
        }
        self.say(&group, success);
    }

    /// Answers all groups, read or not, for a device that was reset and waits for none.
    ///
    /// # Errors
    /// When the kernel gives not all of them.
    #[cfg(feature = "selftest")]
    pub fn refuse_all(&self) -> Result<(), KernelError> {
        while !self.read()?.is_empty() {}
        let all: Vec<Handle> = self.lock().waiting.keys().copied().collect();
        all.into_iter().for_each(|handle| self.answer(handle, false));
        Ok(())
    }

    /// Whether a group still waits for its answer.
    pub fn waits(&self, handle: Handle) -> bool {
        self.lock().waiting.contains_key(&handle)
    }

    /// Changes the attachment of the endpoint's own address space or of one of its PASIDs:
    /// `change` asks the kernel to. If it does, it has answered all groups of that attachment.
    pub(super) fn change<E>(
        &self,
        pasid: Option<Pasid>,
        change: impl FnOnce() -> Result<(), E>,
    ) -> Result<(), E> {
        let mut table = self.lock();
        change()?;
        let of_it = |_: &Handle, group: &mut Waiting| group.pasid == pasid;
        for (_, group) in table.waiting.extract_if(.., of_it) {
            self.say(&group, false);
        }
        Ok(())
    }

    fn say(&self, group: &Waiting, success: bool) {
        if let Some(listener) = self.answered.get() {
            listener.answered(group.index, success);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl AsFd for FaultQueue {
    /// Readable while there are groups to read.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl std::fmt::Debug for Waiting {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { cookie, pasid, index } = self;
        write!(f, "{index} (cookie {cookie}, {pasid:?})")
    }
}

impl Table {
    /// Records of one group follow each other and have its cookie.
    fn take_in(&mut self, records: impl Iterator<Item = Record>) -> Vec<FaultGroup> {
        let mut groups: Vec<FaultGroup> = Vec::new();
        let mut cookie = None;
        for record in records {
            match groups.last_mut() {
                Some(group) if cookie == Some(record.cookie) => group.pages.push(record.page),
                _ => {
                    cookie = Some(record.cookie);
                    groups.push(self.begin(record));
                }
            }
        }
        groups
    }

    fn begin(&mut self, Record { cookie, pasid, index, page }: Record) -> FaultGroup {
        let handle = self.next_handle();
        self.waiting.insert(handle, Waiting { cookie, pasid, index });
        FaultGroup { handle, pasid, pages: vec![page] }
    }

    fn next_handle(&mut self) -> Handle {
        loop {
            self.last = self.last.wrapping_add(1);
            if !self.waiting.contains_key(&Handle(self.last)) {
                return Handle(self.last);
            }
        }
    }
}

impl Record {
    /// From `struct iommu_hwpt_pgfault`. Of its flags only that of the PASID counts: the kernel
    /// shows some that its header does not have, and groups come whole.
    fn decode(bytes: &[u8]) -> Self {
        let word = |at| u32::from_ne_bytes(std::array::from_fn(|byte| bytes[at + byte]));
        let (flags, permissions) = (word(0), word(16));
        let has = |bit: u32| permissions & bit != 0;
        let address = u64::from_ne_bytes(std::array::from_fn(|byte| bytes[24 + byte]));
        Self {
            cookie: word(36),
            pasid: (flags & FLAG_PASID != 0).then_some(Pasid(word(8))),
            index: word(12),
            page: FaultPage {
                address: Iova(address),
                access: Access { read: has(PERM_READ), write: has(PERM_WRITE) },
                exec: has(PERM_EXEC),
                privileged: has(PERM_PRIVILEGED),
            },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record as the kernel writes it, with a flag that no header has.
    fn record(cookie: u32, pasid: Option<u32>, index: u32, address: u64, perm: u32) -> Record {
        let mut bytes = [0; RECORD];
        let flags = 1 << 2 | pasid.map_or(0, |_| FLAG_PASID);
        let words = [(0, flags), (8, pasid.unwrap_or(0)), (12, index), (16, perm), (36, cookie)];
        for (at, word) in words {
            bytes[at..at + 4].copy_from_slice(&u32::to_ne_bytes(word));
        }
        bytes[24..32].copy_from_slice(&address.to_ne_bytes());
        Record::decode(&bytes)
    }

    #[test]
    fn a_record_is_read_as_the_header_describes_it() {
        let found = record(7, Some(100), 3, 0x7f00_1234_5000, PERM_WRITE | PERM_PRIVILEGED);
        let page = FaultPage {
            address: Iova(0x7f00_1234_5000),
            access: Access::WRITE,
            exec: false,
            privileged: true,
        };
        assert_eq!(found, Record { cookie: 7, pasid: Some(Pasid(100)), index: 3, page });
        assert_eq!(record(0, None, 0, 0, PERM_READ | PERM_EXEC).pasid, None);
    }

    #[test]
    fn records_of_one_cookie_are_one_group() {
        let mut table = Table::default();
        let records = [(5, 0x1000), (5, 0x2000), (6, 0x1000), (7, 0x9000)];
        let records = records.map(|(cookie, address)| record(cookie, None, 1, address, PERM_READ));
        let groups = table.take_in(records.into_iter());
        let pages: Vec<usize> = groups.iter().map(|group| group.pages.len()).collect();
        assert_eq!(pages, [2, 1, 1]);
        let cookies: Vec<u32> = table.waiting.values().map(|group| group.cookie).collect();
        assert_eq!(cookies, [5, 6, 7]);
    }

    #[test]
    fn a_cookie_that_is_used_again_gets_another_handle() {
        let mut table = Table::default();
        let mut read = || table.take_in([record(1, None, 1, 0, PERM_READ)].into_iter())[0].handle;
        assert_ne!(read(), read());
    }

    #[test]
    fn handles_go_round_without_meeting_one_that_waits() {
        let mut table = Table { last: u32::MAX - 1, ..Table::default() };
        let mut read =
            |cookie| table.take_in([record(cookie, None, 1, 0, PERM_READ)].into_iter())[0].handle;
        let first = read(1);
        assert_eq!((first, read(2)), (Handle(u32::MAX), Handle(0)));
        table.last = u32::MAX - 1;
        assert_eq!(table.next_handle(), Handle(1));
    }
}
