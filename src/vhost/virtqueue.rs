//! A vhost-user ring that does not let a peer's mistake close the connection.
//!
//! The `vhost-user-backend` crate ends the connection, and with it the virtual machine, when a
//! ring operation fails. Some of those failures are a guest's to cause (a misaligned ring
//! address), some come of a harmless race (a kick that was read before). Here they break the
//! ring, until it is set up again, and nothing else.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{Error as QueueError, Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory as the front end has handed it over.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A ring and how it has been started and stopped.
#[derive(Clone)]
pub struct Virtqueue {
    vring: VringMutex<Memory>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    broken: AtomicBool,
    /// Messages of the front end that wait for the ring.
    waiting: AtomicUsize,
    /// The ring was started and nobody has looked at it since.
    started: AtomicBool,
    indices: Mutex<Indices>,
}

/// Where the available ring is read from next.
#[derive(Default)]
struct Indices {
    /// As the front end set it before the ring started.
    base: u16,
    /// As it was when the ring last stopped.
    stopped_at: Option<u16>,
}

/// How a ring came to run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A driver has set it up: what it did before the stop is over.
    Fresh,
    /// The virtual machine was paused and goes on.
    Resumed,
}

impl Virtqueue {
    /// How the ring was started, once for each start.
    ///
    /// Reset and stop look alike to a back end (rings disabled, base asked for). What tells them
    /// apart is the base that the front end sets next: 0 after a reset, the one it was told
    /// when it resumes. Where that was 0 too, because 16 bits wrapped, a used ring that still
    /// holds entries is not a fresh one.
    pub fn take_start(&self, queue: &Queue, memory: &GuestMemoryMmap) -> Option<Start> {
        if !self.shared.started.swap(false, Ordering::SeqCst) {
            return None;
        }
        let indices = self.indices();
        let resumed = match indices.stopped_at {
            Some(0) => indices.base == 0 && !used_ring_is_blank(queue, memory),
            Some(stopped_at) => indices.base == stopped_at,
            None => false,
        };
        Some(if resumed { Start::Resumed } else { Start::Fresh })
    }

    /// Locks the ring for a worker, after whoever else waits for it: a worker that polls would
    /// otherwise take it again and again before a message of the front end gets its turn.
    pub fn lock_as_worker(&self) -> MutexGuard<'_, VringState<Memory>> {
        while self.shared.waiting.load(Ordering::Relaxed) > 0 {
            // Not a yield: a worker with real-time priority would yield to nobody.
            std::thread::sleep(Duration::from_micros(1));
        }
        self.vring.get_mut()
    }

    /// Does something that locks the ring, in front of the worker.
    fn in_front<'a, T>(&'a self, action: impl FnOnce(&'a VringMutex<Memory>) -> T) -> T {
        self.shared.waiting.fetch_add(1, Ordering::Relaxed);
        let result = action(&self.vring);
        self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Whether the ring is set up, enabled and intact.
    pub fn is_running(&self, vring: &VringState<Memory>) -> bool {
        vring.is_enabled()
            && vring.get_queue().ready()
            && !self.shared.broken.load(Ordering::Relaxed)
    }

    /// Stops serving the ring until it is set up again; says why, once.
    pub fn set_broken(&self, why: impl std::fmt::Display) {
        if !self.shared.broken.swap(true, Ordering::SeqCst) {
            log::error!("ring ignored until the driver sets it up again: {why}");
        }
    }

    fn indices(&self) -> MutexGuard<'_, Indices> {
        self.shared.indices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether no element was ever written into the used ring.
fn used_ring_is_blank(queue: &Queue, memory: &GuestMemoryMmap) -> bool {
    let element = |index: u64| {
        let address = queue.used_ring().checked_add(4 + 8 * index)?;
        memory.read_obj::<u64>(GuestAddress(address)).ok()
    };
    (0..u64::from(queue.size())).all(|index| element(index) == Some(0))
}

impl<'a> VringStateGuard<'a, Memory> for Virtqueue {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Virtqueue {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Virtqueue {
    fn new(mem: Memory, max_queue_size: u16) -> Result<Self, QueueError> {
        let vring = VringMutex::new(mem, max_queue_size)?;
        Ok(Self { vring, shared: Arc::default() })
    }

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.in_front(|vring| vring.get_mut())
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.in_front(|vring| vring.get_mut())
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.in_front(|vring| vring.add_used(desc_index, len))
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.in_front(|vring| vring.signal_used_queue())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.in_front(|vring| vring.enable_notification())
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.in_front(|vring| vring.disable_notification())
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.in_front(|vring| vring.needs_notification())
    }

    fn set_enabled(&self, enabled: bool) {
        self.in_front(|vring| vring.set_enabled(enabled))
    }

    /// A guest chooses these addresses: bad ones break the ring, not the connection.
    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.shared.broken.store(false, Ordering::SeqCst);
        if let Err(error) = self.in_front(|vring| vring.set_queue_info(desc, avail, used)) {
            self.set_broken(format_args!("addresses {desc:#x}, {avail:#x}, {used:#x}: {error}"));
        }
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.in_front(|vring| vring.queue_next_avail())
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.indices().base = base;
        self.in_front(|vring| vring.set_queue_next_avail(base))
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.in_front(|vring| vring.set_queue_next_used(idx))
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        let index = self.in_front(|vring| vring.queue_used_idx());
        Ok(index.unwrap_or_else(|error| {
            self.set_broken(format_args!("used ring: {error}"));
            0
        }))
    }

    fn set_queue_size(&self, num: u16) {
        self.in_front(|vring| vring.set_queue_size(num))
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.in_front(|vring| vring.set_queue_event_idx(enabled))
    }

    fn set_queue_ready(&self, ready: bool) {
        let mut vring = self.get_mut();
        let queue = vring.get_queue_mut();
        if ready {
            self.shared.started.store(true, Ordering::SeqCst);
        } else if queue.ready() && !self.shared.started.load(Ordering::SeqCst) {
            // A start that nobody has looked at has changed nothing: what it was is decided by
            // the stop before it, together with the next one.
            self.indices().stopped_at = Some(queue.next_avail());
        }
        queue.set_ready(ready);
    }

    /// Kicks must not block: the worker may come for one that was taken before.
    fn set_kick(&self, file: Option<File>) {
        if let Some(Err(error)) = file.as_ref().map(|file| rustix::io::ioctl_fionbio(file, true)) {
            log::warn!("kick eventfd cannot be made non-blocking: {error}");
        }
        self.in_front(|vring| vring.set_kick(file))
    }

    /// An error here would end the worker thread and leave the guest without an IOMMU.
    fn read_kick(&self) -> io::Result<bool> {
        match self.in_front(|vring| vring.read_kick()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                log::warn!("kick eventfd cannot be read: {error}");
            }
            _ => {}
        }
        Ok(self.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.in_front(|vring| vring.set_call(file))
    }

    fn set_err(&self, file: Option<File>) {
        self.in_front(|vring| vring.set_err(file))
    }
}
