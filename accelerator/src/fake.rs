//! Test doubles for memory and for the fault handler.

use crate::dma::{Access, Dma, DmaCause, DmaError, Pasid};
use crate::faults::{FaultHandler, PageRequest, QueueFull, Responder, Response};
use crate::memory::ClientMemory;
use std::collections::BTreeMap;
use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, OnceLock};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace};

pub const PAGE: u64 = 4096;

/// Accesses at and above this address succeed and transfer no data: work of any length.
pub const SINK: u64 = 1 << 40;

#[derive(Clone)]
enum Page {
    Memory { bytes: Vec<u8>, writable: bool },
    BusError,
}

type Hook = Box<dyn Fn(Access, u64) + Send + Sync>;

/// An address space of single pages.
#[derive(Default)]
pub struct FakeDma {
    pages: Mutex<BTreeMap<u64, Page>>,
    hook: Option<Hook>,
}

impl FakeDma {
    /// Returns an address space with zeroed writable pages at `addresses`.
    pub fn mapping(addresses: RangeInclusive<u64>) -> Self {
        let dma = Self::default();
        dma.map(addresses, true);
        dma
    }

    /// Calls `hook` before each access.
    pub fn with_hook(mut self, hook: impl Fn(Access, u64) + Send + Sync + 'static) -> Self {
        self.hook = Some(Box::new(hook));
        self
    }

    pub fn map(&self, addresses: RangeInclusive<u64>, writable: bool) {
        let page = Page::Memory { bytes: vec![0; PAGE as usize], writable };
        self.set(addresses, Some(page));
    }

    pub fn unmap(&self, addresses: RangeInclusive<u64>) {
        self.set(addresses, None);
    }

    pub fn map_bus_error(&self, addresses: RangeInclusive<u64>) {
        self.set(addresses, Some(Page::BusError));
    }

    /// Writes to memory like the guest. Panics outside memory.
    pub fn write_memory(&self, address: u64, data: &[u8]) {
        self.each(address, data.len(), |bytes, range| bytes.copy_from_slice(&data[range]));
    }

    /// Reads memory like the guest. Panics outside memory.
    pub fn read_memory(&self, address: u64, len: usize) -> Vec<u8> {
        let mut data = vec![0; len];
        self.each(address, len, |bytes, range| data[range].copy_from_slice(bytes));
        data
    }

    fn set(&self, addresses: RangeInclusive<u64>, page: Option<Page>) {
        for number in addresses.start() / PAGE..=addresses.end() / PAGE {
            match &page {
                Some(page) => self.pages().insert(number, page.clone()),
                None => self.pages().remove(&number),
            };
        }
    }

    fn each(&self, address: u64, len: usize, mut f: impl FnMut(&mut [u8], std::ops::Range<usize>)) {
        let mut pages = self.pages();
        for (number, within, range) in split(address, len) {
            match pages.get_mut(&number) {
                Some(Page::Memory { bytes, .. }) => f(&mut bytes[within], range),
                _ => panic!("no memory at {:#x}", number * PAGE),
            }
        }
    }

    fn access(
        &self,
        access: Access,
        address: u64,
        len: usize,
        mut f: impl FnMut(&mut [u8], std::ops::Range<usize>),
    ) -> Result<(), DmaError> {
        if let Some(hook) = &self.hook {
            hook(access, address);
        }
        if address >= SINK {
            return Ok(());
        }
        let mut pages = self.pages();
        for (number, within, range) in split(address, len) {
            let done = range.start;
            let failed = |cause| Err(DmaError { address: address + done as u64, done, cause });
            match pages.get_mut(&number) {
                None => return failed(DmaCause::NotMapped),
                Some(Page::BusError) => return failed(DmaCause::NotMemory),
                Some(Page::Memory { writable: false, .. }) if access == Access::Write => {
                    return failed(DmaCause::NotMapped);
                }
                Some(Page::Memory { bytes, .. }) => f(&mut bytes[within], range),
            }
        }
        Ok(())
    }

    fn pages(&self) -> MutexGuard<'_, BTreeMap<u64, Page>> {
        self.pages.lock().unwrap()
    }
}

/// Returns for each page of an access: its number, and the byte ranges in the page and in the
/// access.
fn split(
    address: u64,
    len: usize,
) -> impl Iterator<Item = (u64, std::ops::Range<usize>, std::ops::Range<usize>)> {
    let mut done = 0;
    std::iter::from_fn(move || {
        let at = address + done as u64;
        let within = (at % PAGE) as usize;
        let count = (len - done).min(PAGE as usize - within);
        let range = done..done + count;
        done += count;
        (count > 0).then(|| (at / PAGE, within..within + count, range))
    })
}

impl Dma for FakeDma {
    fn read(&self, _: Option<Pasid>, address: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        self.access(Access::Read, address, buf.len(), |bytes, range| {
            buf[range].copy_from_slice(bytes)
        })
    }

    fn write(&self, _: Option<Pasid>, address: u64, buf: &[u8]) -> Result<(), DmaError> {
        self.access(Access::Write, address, buf.len(), |bytes, range| {
            bytes.copy_from_slice(&buf[range])
        })
    }
}

/// Access to the client's memory without translation.
pub struct IdentityDma(pub ClientMemory);

impl Dma for IdentityDma {
    fn read(&self, _: Option<Pasid>, address: u64, buf: &mut [u8]) -> Result<(), DmaError> {
        let result = self.0.memory().read_slice(buf, GuestAddress(address));
        result.map_err(|_| DmaError { address, done: 0, cause: DmaCause::NotMemory })
    }

    fn write(&self, _: Option<Pasid>, address: u64, buf: &[u8]) -> Result<(), DmaError> {
        let result = self.0.memory().write_slice(buf, GuestAddress(address));
        result.map_err(|_| DmaError { address, done: 0, cause: DmaCause::NotMemory })
    }
}

type OnRequest = Box<dyn Fn(&Responder, PageRequest) -> Result<(), QueueFull> + Send + Sync>;

/// A fault handler that records reports and requests, and responds on demand.
#[derive(Default)]
pub struct FakeFaults {
    reports: Mutex<Vec<(u64, Access, DmaCause)>>,
    requests: Mutex<Vec<PageRequest>>,
    withdrawn: AtomicUsize,
    responder: OnceLock<Responder>,
    on_request: Option<OnRequest>,
}

impl FakeFaults {
    /// Calls `on_request` for each request, and records those that it accepts.
    pub fn with_hook(
        on_request: impl Fn(&Responder, PageRequest) -> Result<(), QueueFull> + Send + Sync + 'static,
    ) -> Self {
        Self { on_request: Some(Box::new(on_request)), ..Self::default() }
    }

    pub fn take(&self) -> Vec<(u64, Access, DmaCause)> {
        std::mem::take(&mut self.reports.lock().unwrap())
    }

    /// Returns the requests since the last call.
    pub fn take_requests(&self) -> Vec<PageRequest> {
        std::mem::take(&mut self.requests.lock().unwrap())
    }

    /// Returns how often the requests were withdrawn.
    pub fn withdrawn(&self) -> usize {
        self.withdrawn.load(Ordering::SeqCst)
    }

    /// Returns the handle for responses.
    pub fn responder(&self) -> &Responder {
        self.responder.get().expect("connected")
    }

    pub fn respond(&self, request: &PageRequest, response: Response) {
        self.responder().respond(request.pasid, request.group, response);
    }
}

impl FaultHandler for FakeFaults {
    fn connect(&self, responder: Responder) {
        assert!(self.responder.set(responder).is_ok(), "connected twice");
    }

    fn request(&self, request: PageRequest) -> Result<(), QueueFull> {
        if let Some(hook) = &self.on_request {
            hook(self.responder(), request)?;
        }
        self.requests.lock().unwrap().push(request);
        Ok(())
    }

    fn withdraw(&self) {
        self.withdrawn.fetch_add(1, Ordering::SeqCst);
    }

    fn report(&self, _: Option<Pasid>, address: u64, access: Access, cause: DmaCause) {
        self.reports.lock().unwrap().push((address, access, cause));
    }
}
