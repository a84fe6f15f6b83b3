//! The mock device of the kernel's own self test of iommufd (CONFIG_IOMMUFD_TEST,
//! `drivers/iommu/iommufd/iommufd_test.h`), as an endpoint whose translation and page requests
//! are the kernel's. For tests.
//!
//! An access goes through an access object on the address space that the device is attached to,
//! and so through the kernel's mappings. A page request is made by telling the mock device to
//! fault; the kernel takes it from there as from any device. The mock does not hear of answers,
//! so it is told here when the kernel has taken one.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use accelerator::{Dma, DmaCause, DmaError};
use rustix::io::Errno;

use super::Iommufd;
use super::endpoint::Device;
use super::faults::Answered;
use super::kernel::{Extras, Kernel, KernelError, Object};
use super::sys::{self, Argument};
use crate::address::{EndpointId, Iova, Pasid};
use crate::host::Access;
use crate::host::dma::in_pieces;

const DATA_SELFTEST: u32 = 0xdead;
const PAGE_TABLE_HUGE: u32 = 1;
const DEVICE_HAS_PASIDS: u32 = 1 << 2;
const RW_WRITE: u32 = 1 << 0;

const OP_CREATE_ACCESS: u32 = 5;
const OP_ACCESS_RW: u32 = 8;
const OP_MOCK_DOMAIN_REPLACE: u32 = 10;
const OP_MOCK_DOMAIN_FLAGS: u32 = 12;
const OP_TRIGGER_IOPF: u32 = 15;
const OP_PASID_ATTACH: u32 = 18;
const OP_PASID_REPLACE: u32 = 19;
const OP_PASID_DETACH: u32 = 20;

/// The one ioctl of the self test.
pub(super) const IOCTL: u32 = sys::iommufd_number(iommufd_bindings::IOMMUFD_CMD_BASE + 32);

/// `struct iommu_test_cmd`. The fields of all operations used here fit into `words`.
#[repr(C, align(8))]
#[derive(Default)]
struct TestCommand {
    size: u32,
    op: u32,
    id: u32,
    reserved: u32,
    words: [u32; 12],
    last: u32,
}

// SAFETY: IOMMU_TEST_CMD takes this structure, of the size that its first field tells.
unsafe impl Argument for TestCommand {
    const NAME: &'static str = "IOMMU_TEST_CMD";
    const NUMBER: u32 = IOCTL;

    fn size(&mut self) -> &mut u32 {
        &mut self.size
    }
}

impl TestCommand {
    fn run(kernel: &Kernel, op: u32, id: u32, words: &[u32]) -> Result<Self, KernelError> {
        let mut command = Self::new(op, id, words);
        kernel.call(&mut command, || format!("operation {op} on {id}, {words:x?}"))?;
        Ok(command)
    }

    /// Runs what fails only by a defect, and is no call that a test lets fail.
    fn run_surely(kernel: &Kernel, op: u32, id: u32, words: &[u32]) -> Result<(), Errno> {
        sys::ioctl_surely(kernel, &mut Self::new(op, id, words))
    }

    fn new(op: u32, id: u32, words: &[u32]) -> Self {
        let mut command = Self { op, id, ..Self::default() };
        command.words[..words.len()].copy_from_slice(words);
        command
    }
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

/// Hears how a page request was answered: what [`MockDevice::ask`] was told to call it, and
/// whether the access is to be tried again.
pub type Listener = Box<dyn Fn(u32, bool) + Send + Sync>;

/// A mock device.
pub struct MockDevice {
    kernel: Arc<Kernel>,
    /// Its number in iommufd.
    id: u32,
    /// What the self test has made: the device, attached to something. Dropped before that.
    made: Object,
    /// Where accesses go that are attached to nothing: the mock cannot be detached.
    parking: OnceLock<(Object, Object)>,
    /// Access objects, by whose accesses go through them.
    accesses: RwLock<BTreeMap<Option<Pasid>, OwnedFd>>,
    asked: Mutex<Asked>,
    listener: OnceLock<Listener>,
}

/// Page requests that wait for their answers.
#[derive(Default)]
struct Asked {
    /// By what the kernel calls them: whose they are, and what they are called here.
    by: BTreeMap<u32, (Option<Pasid>, u32)>,
    last: u32,
}

impl Iommufd {
    /// Adds a mock device. It is blocked at first.
    ///
    /// # Errors
    /// Why it cannot be had, in a sentence.
    pub fn add_mock(&mut self, id: EndpointId) -> Result<Arc<MockDevice>, String> {
        let device = MockDevice::new(&self.kernel).map_err(|error| {
            format!("endpoint {id}: {error}; it needs a kernel with CONFIG_IOMMUFD_TEST")
        })?;
        let device = Arc::new(device);
        self.add(id, device.clone())?;
        if let Some(queue) = self.fault_queue(id) {
            queue.tell(device.clone());
        }
        Ok(device)
    }
}

impl Iommufd {
    /// The number that the kernel would give to its next object: the same as before when all that
    /// was made since then has gone.
    ///
    /// # Errors
    /// When it makes no object.
    pub fn next_object(&self) -> Result<u32, KernelError> {
        Ok(self.kernel.new_ioas()?.id())
    }
}

impl MockDevice {
    fn new(kernel: &Arc<Kernel>) -> Result<Self, KernelError> {
        let parking = kernel.new_ioas()?;
        let flags = [0, 0, 0, DEVICE_HAS_PASIDS];
        let command = TestCommand::run(kernel, OP_MOCK_DOMAIN_FLAGS, parking.id(), &flags)?;
        let [test_id, _, id, _, ..] = command.words;
        let device = Self {
            kernel: kernel.clone(),
            id,
            made: kernel.object(test_id),
            parking: OnceLock::new(),
            accesses: RwLock::default(),
            asked: Mutex::default(),
            listener: OnceLock::new(),
        };
        let extras =
            Extras { pasids: true, driver_data: device.driver_data(), ..Extras::default() };
        let page_table = kernel.new_page_table(id, &parking, extras)?;
        device.replace(&page_table)?;
        let _ = device.parking.set((page_table, parking));
        Ok(device)
    }

    /// Tells `listener` of answers, with locks held: it must neither block nor call back. Once,
    /// and before anything is asked for.
    pub fn tell(&self, listener: Listener) {
        let _ = self.listener.set(listener);
    }

    /// Makes a page request, a group by itself, that the answer will call `name`. `false`: there
    /// is no address space to fault in, and so there will be no answer.
    pub fn ask(&self, name: u32, pasid: Option<Pasid>, address: Iova, access: Access) -> bool {
        // Until the kernel has the request nothing is detached: it would be lost without an
        // answer.
        let mut asked = self.asked();
        if !self.accesses.read().unwrap_or_else(PoisonError::into_inner).contains_key(&pasid) {
            return false;
        }
        asked.last = asked.last.wrapping_add(1);
        let index = asked.last;
        asked.by.insert(index, (pasid, name));
        let permissions = u32::from(access.read) | u32::from(access.write) << 1;
        let [low, high] = halves(address.0);
        let words = [self.id, pasid.map_or(0, |pasid| pasid.0), index, permissions, low, high];
        match TestCommand::run(&self.kernel, OP_TRIGGER_IOPF, 0, &words) {
            Ok(_) => true,
            Err(error) => {
                log::error!("a page request could not be made: {error}");
                asked.by.remove(&index);
                false
            }
        }
    }

    /// The device is reset: it waits for no answers any more.
    pub fn forget(&self) {
        self.asked().by.clear();
    }

    fn asked(&self) -> MutexGuard<'_, Asked> {
        self.asked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn say(&self, name: u32, success: bool) {
        if let Some(listener) = self.listener.get() {
            listener(name, success);
        }
    }

    fn replace(&self, page_table: &Object) -> Result<(), KernelError> {
        let words = [page_table.id()];
        TestCommand::run(&self.kernel, OP_MOCK_DOMAIN_REPLACE, self.made.id(), &words).map(drop)
    }

    fn new_access(&self, ioas: &Object) -> Result<OwnedFd, KernelError> {
        let command = TestCommand::run(&self.kernel, OP_CREATE_ACCESS, ioas.id(), &[])?;
        Ok(sys::new_descriptor(command.words[0]))
    }

    /// Changes where accesses go, by `change`; none is under way meanwhile, and no page request
    /// is being made. Those of the attachment before are answered by the kernel.
    fn change(
        &self,
        pasid: Option<Pasid>,
        to: Option<OwnedFd>,
        change: impl FnOnce() -> Result<(), KernelError>,
    ) -> Result<(), KernelError> {
        let mut asked = self.asked();
        let mut accesses = self.accesses.write().unwrap_or_else(PoisonError::into_inner);
        change()?;
        match to {
            Some(access) => accesses.insert(pasid, access),
            None => accesses.remove(&pasid),
        };
        let gone: Vec<_> = asked.by.extract_if(.., |_, (by, _)| *by == pasid).collect();
        drop((accesses, asked));
        gone.into_iter().for_each(|(_, (_, name))| self.say(name, false));
        Ok(())
    }

    /// One piece of an access.
    fn access(
        &self,
        pasid: Option<Pasid>,
        address: Iova,
        memory: *mut u8,
        len: usize,
        write: bool,
    ) -> Result<(), DmaCause> {
        let accesses = self.accesses.read().unwrap_or_else(PoisonError::into_inner);
        let access = accesses.get(&pasid).ok_or(DmaCause::NoDomain)?;
        let [iova_low, iova_high] = halves(address.0);
        let [len_low, len_high] = halves(len as u64);
        let [memory_low, memory_high] = halves(memory as u64);
        let flags = if write { RW_WRITE } else { 0 };
        let words = [iova_low, iova_high, len_low, len_high, memory_low, memory_high, flags];
        let id = access.as_raw_fd() as u32;
        match TestCommand::run_surely(&self.kernel, OP_ACCESS_RW, id, &words) {
            Ok(()) => Ok(()),
            Err(Errno::NOENT | Errno::PERM | Errno::OVERFLOW) => Err(DmaCause::NotMapped),
            Err(error) => {
                log::warn!("the kernel does not reach guest memory: {error}");
                Err(DmaCause::NotMemory)
            }
        }
    }
}

impl Device for MockDevice {
    fn id(&self) -> u32 {
        self.id
    }

    /// Page tables of 38 bits: the others of the mock end at 2 GiB.
    fn driver_data(&self) -> Option<(u32, [u32; 2])> {
        Some((DATA_SELFTEST, [0, PAGE_TABLE_HUGE]))
    }

    /// As the accelerator in front of it says in its PRI capability.
    fn response_needs_pasid(&self) -> bool {
        true
    }

    fn attach(
        &self,
        pasid: Option<Pasid>,
        page_table: &Object,
        ioas: &Object,
        replaces: bool,
    ) -> Result<(), KernelError> {
        let access = self.new_access(ioas)?;
        self.change(pasid, Some(access), || match pasid {
            None => self.replace(page_table),
            Some(Pasid(pasid)) => {
                let op = if replaces { OP_PASID_REPLACE } else { OP_PASID_ATTACH };
                let words = [pasid, page_table.id()];
                TestCommand::run(&self.kernel, op, self.made.id(), &words).map(drop)
            }
        })
    }

    fn detach(&self, pasid: Option<Pasid>) -> Result<(), KernelError> {
        let (op, word) = match (pasid, self.parking.get()) {
            (None, Some((page_table, _))) => (OP_MOCK_DOMAIN_REPLACE, page_table.id()),
            (None, None) => return Ok(()),
            (Some(Pasid(pasid)), _) => (OP_PASID_DETACH, pasid),
        };
        self.change(pasid, None, || {
            TestCommand::run_surely(&self.kernel, op, self.made.id(), &[word])
                .map_err(|errno| KernelError::new(TestCommand::NAME, "detach", errno))
        })
    }
}

impl Answered for MockDevice {
    fn answered(&self, index: u32, success: bool) {
        // Not there: forgotten, or told already when its attachment went.
        let known = self.asked().by.remove(&index);
        if let Some((_, name)) = known {
            self.say(name, success);
        }
    }
}

impl Dma for MockDevice {
    fn read(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        buf: &mut [u8],
    ) -> Result<(), DmaError> {
        let pasid = pasid.map(Pasid::from);
        in_pieces(address, buf.len(), |address, offset, len| {
            let memory = buf[offset..offset + len].as_mut_ptr();
            self.access(pasid, address, memory, len, false).map(|()| len)
        })
    }

    fn write(
        &self,
        pasid: Option<accelerator::Pasid>,
        address: u64,
        buf: &[u8],
    ) -> Result<(), DmaError> {
        let pasid = pasid.map(Pasid::from);
        in_pieces(address, buf.len(), |address, offset, len| {
            let memory = buf[offset..offset + len].as_ptr().cast_mut();
            self.access(pasid, address, memory, len, true).map(|()| len)
        })
    }
}
