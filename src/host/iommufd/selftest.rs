//! The ioctl of the kernel's own iommufd selftest (CONFIG_IOMMUFD_TEST,
//! `drivers/iommu/iommufd/iommufd_test.h`). For tests.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use rustix::io::Errno;

use super::context::{Context, Object};
use super::ioctl::{self, Argument};
use crate::address::{Iova, Pasid};
use crate::host::{Access, KernelError};

const OP_CREATE_ACCESS: u32 = 5;
const OP_ACCESS_RW: u32 = 8;
const OP_MOCK_DOMAIN_REPLACE: u32 = 10;
const OP_MOCK_DOMAIN_FLAGS: u32 = 12;
const OP_TRIGGER_IOPF: u32 = 15;
const OP_PASID_ATTACH: u32 = 18;
const OP_PASID_REPLACE: u32 = 19;
const OP_PASID_DETACH: u32 = 20;

const DEVICE_HAS_PASIDS: u32 = 1 << 2;
const RW_WRITE: u32 = 1 << 0;

/// HWPT data for a page table of 38 bits; other page tables of the selftest end at 2 GiB.
pub(super) const HWPT_DATA: (u32, [u32; 2]) = (DATA_SELFTEST, [0, PAGE_TABLE_HUGE]);
const DATA_SELFTEST: u32 = 0xdead;
const PAGE_TABLE_HUGE: u32 = 1;

/// The number of the ioctl.
pub(super) const NUMBER: u32 = ioctl::iommufd_number(iommufd_bindings::IOMMUFD_CMD_BASE + 32);

/// `struct iommu_test_cmd`. The fields of the operations here fit into `words`.
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

// SAFETY: IOMMU_TEST_CMD has this structure as its argument.
unsafe impl Argument for TestCommand {
    const NAME: &'static str = "IOMMU_TEST_CMD";
    const NUMBER: u32 = NUMBER;

    fn size_mut(&mut self) -> &mut u32 {
        &mut self.size
    }
}

impl TestCommand {
    fn new(op: u32, id: u32, words: &[u32]) -> Self {
        let mut command = Self { op, id, ..Self::default() };
        command.words[..words.len()].copy_from_slice(words);
        command
    }

    /// Runs the command.
    ///
    /// # Safety
    /// Addresses in `words` refer to memory that the operation may access.
    unsafe fn run(mut self, context: &Context) -> Result<Self, KernelError> {
        let object = format!("operation {} on {}, {:x?}", self.op, self.id, self.words);
        // SAFETY: the caller vouches for addresses.
        unsafe { context.call_unchecked(&mut self, format_args!("{object}")) }?;
        Ok(self)
    }

    /// Runs a command without failure injection.
    ///
    /// # Safety
    /// As for [`run`](Self::run).
    unsafe fn run_without_injection(mut self, context: &Context) -> Result<(), Errno> {
        // SAFETY: the caller vouches for addresses.
        unsafe { ioctl::ioctl_unchecked(context, &mut self) }
    }
}

/// A mock device, which is always attached to an HWPT. Dropping it removes the device.
pub(super) struct TestDevice {
    context: Arc<Context>,
    /// The object of the selftest, which refers to the device.
    object: Object,
    id: u32,
}

impl TestDevice {
    /// Creates a device with PASIDs, attached to `ioas`.
    pub(super) fn new(context: &Arc<Context>, ioas: &Object) -> Result<Self, KernelError> {
        let command =
            TestCommand::new(OP_MOCK_DOMAIN_FLAGS, ioas.id(), &[0, 0, 0, DEVICE_HAS_PASIDS]);
        // SAFETY: the operation takes no address.
        let [object, _, id, ..] = unsafe { command.run(context) }?.words;
        Ok(Self { context: context.clone(), object: context.object(object), id })
    }

    /// Returns the device's object number.
    pub(super) fn id(&self) -> u32 {
        self.id
    }

    /// Attaches the device to an HWPT, which replaces the current one.
    pub(super) fn replace(&self, hwpt: &Object) -> Result<(), KernelError> {
        self.run(OP_MOCK_DOMAIN_REPLACE, &[hwpt.id()])
    }

    /// As [`replace`](Self::replace), without failure injection.
    pub(super) fn replace_without_injection(&self, hwpt: &Object) -> Result<(), KernelError> {
        self.run_without_injection(OP_MOCK_DOMAIN_REPLACE, &[hwpt.id()])
    }

    /// Attaches a PASID; `replaces`: it is attached to another HWPT.
    pub(super) fn attach_pasid(
        &self,
        Pasid(pasid): Pasid,
        hwpt: &Object,
        replaces: bool,
    ) -> Result<(), KernelError> {
        let op = if replaces { OP_PASID_REPLACE } else { OP_PASID_ATTACH };
        self.run(op, &[pasid, hwpt.id()])
    }

    /// Detaches a PASID.
    pub(super) fn detach_pasid(&self, Pasid(pasid): Pasid) -> Result<(), KernelError> {
        self.run_without_injection(OP_PASID_DETACH, &[pasid])
    }

    /// Makes a page request, the only one of its group, with this page request group index.
    pub(super) fn trigger_iopf(
        &self,
        pasid: Option<Pasid>,
        grpid: u32,
        address: Iova,
        access: Access,
    ) -> Result<(), KernelError> {
        let perm = u32::from(access.read) | u32::from(access.write) << 1;
        let [low, high] = halves(address.0);
        let words = [self.id, pasid.map_or(0, |pasid| pasid.0), grpid, perm, low, high];
        // SAFETY: the address is an I/O virtual address.
        unsafe { TestCommand::new(OP_TRIGGER_IOPF, 0, &words).run(&self.context) }.map(drop)
    }

    fn run(&self, op: u32, words: &[u32]) -> Result<(), KernelError> {
        // SAFETY: the operations of the callers take object numbers and PASIDs.
        unsafe { TestCommand::new(op, self.object.id(), words).run(&self.context) }.map(drop)
    }

    fn run_without_injection(&self, op: u32, words: &[u32]) -> Result<(), KernelError> {
        let command = TestCommand::new(op, self.object.id(), words);
        // SAFETY: the operations of the callers take object numbers and PASIDs.
        unsafe { command.run_without_injection(&self.context) }.map_err(|errno| {
            let object = format_args!("operation {op} on {}", self.object.id());
            KernelError::new(TestCommand::NAME, object, errno)
        })
    }
}

/// An access object: reads and writes memory through the mappings of an IOAS.
pub(super) struct TestAccess(OwnedFd);

impl TestAccess {
    pub(super) fn new(context: &Context, ioas: &Object) -> Result<Self, KernelError> {
        // SAFETY: the operation takes no address.
        let command = unsafe { TestCommand::new(OP_CREATE_ACCESS, ioas.id(), &[]).run(context) }?;
        // SAFETY: the operation has succeeded, and returns a new descriptor.
        Ok(Self(unsafe { ioctl::owned_fd(command.words[0]) }))
    }

    /// Reads `buf.len()` bytes at `address`.
    pub(super) fn read(
        &self,
        context: &Context,
        address: Iova,
        buf: &mut [u8],
    ) -> Result<(), Errno> {
        // SAFETY: the kernel writes to the buffer, which is borrowed for that.
        unsafe { self.access(context, address, buf.as_mut_ptr(), buf.len(), 0) }
    }

    /// Writes `buf` at `address`.
    pub(super) fn write(&self, context: &Context, address: Iova, buf: &[u8]) -> Result<(), Errno> {
        let memory = buf.as_ptr().cast_mut();
        // SAFETY: the kernel only reads the buffer.
        unsafe { self.access(context, address, memory, buf.len(), RW_WRITE) }
    }

    /// # Safety
    /// The kernel may read `len` bytes at `memory`, and write them unless `flags` has `RW_WRITE`.
    unsafe fn access(
        &self,
        context: &Context,
        address: Iova,
        memory: *mut u8,
        len: usize,
        flags: u32,
    ) -> Result<(), Errno> {
        let [iova_low, iova_high] = halves(address.0);
        let [len_low, len_high] = halves(len as u64);
        let [memory_low, memory_high] = halves(memory as u64);
        let words = [iova_low, iova_high, len_low, len_high, memory_low, memory_high, flags];
        let command = TestCommand::new(OP_ACCESS_RW, self.0.as_raw_fd() as u32, &words);
        // SAFETY: the caller vouches for the memory.
        unsafe { command.run_without_injection(context) }
    }
}

fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}
