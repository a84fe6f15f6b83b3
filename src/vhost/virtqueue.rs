//! A virtqueue whose errors do not close the vhost-user connection.
//!
//! `vhost-user-backend` closes the connection, on which QEMU aborts, when an operation of a
//! virtqueue fails. Some failures are caused by the guest (a misaligned ring address), others
//! by a harmless race (a kick that has already been read). Here they break only the virtqueue,
//! until the driver sets it up again.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::{DescriptorChain, Error as QueueError, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemoryAtomic, GuestMemoryMmap};

/// Guest memory as received from the front end.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// A virtqueue, with the history of its starts and stops.
#[derive(Clone)]
pub struct Virtqueue {
    vring: VringMutex<Memory>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    broken: AtomicBool,
    /// Number of messages of the front end that wait for the lock of the virtqueue.
    waiting_messages: AtomicUsize,
    /// Started, and the start not [taken](Virtqueue::take_start) since.
    started: AtomicBool,
    indices: Mutex<Indices>,
}

/// Indices of the next available ring entry to read.
#[derive(Default)]
struct Indices {
    /// Set by the front end before the virtqueue started (SET_VRING_BASE).
    base: u16,
    /// Index when the virtqueue last stopped.
    stopped_at: Option<u16>,
}

/// The reason for the start of a virtqueue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// A driver has set up the virtqueue after a reset.
    Fresh,
    /// The virtual machine has resumed after a pause.
    Resumed,
}

impl Virtqueue {
    /// Returns the reason for the start of the virtqueue, once for each start.
    ///
    /// A back end cannot distinguish a reset from a pause when it happens: in both cases the front
    /// end disables the virtqueues and requests their base. The base that it sets next is 0 after
    /// a reset, and the one that it requested when it resumes. If the latter is 0 because the
    /// index has wrapped, the used ring decides: that of a new driver contains no entries.
    pub fn take_start(&self, queue: &Queue, memory: &GuestMemoryMmap) -> Option<Start> {
        if !self.shared.started.swap(false, Ordering::SeqCst) {
            return None;
        }
        let indices = self.indices();
        let resumed = match indices.stopped_at {
            Some(0) => indices.base == 0 && !is_used_ring_blank(queue, memory),
            Some(stopped_at) => indices.base == stopped_at,
            None => false,
        };
        Some(if resumed { Start::Resumed } else { Start::Fresh })
    }

    /// Locks the virtqueue for its thread, after all waiting messages of the front end. A thread
    /// that polls would otherwise lock it again and again before a message can be handled.
    pub fn lock(&self) -> MutexGuard<'_, VringState<Memory>> {
        while self.shared.waiting_messages.load(Ordering::Relaxed) > 0 {
            // sched_yield() has no effect for a thread with real-time priority.
            std::thread::sleep(Duration::from_micros(1));
        }
        self.vring.get_mut()
    }

    /// Runs an action of a message that locks the virtqueue, with priority over its thread.
    fn with_priority<'a, T>(&'a self, action: impl FnOnce(&'a VringMutex<Memory>) -> T) -> T {
        self.shared.waiting_messages.fetch_add(1, Ordering::Relaxed);
        let result = action(&self.vring);
        self.shared.waiting_messages.fetch_sub(1, Ordering::Relaxed);
        result
    }

    /// Returns whether the virtqueue is set up, enabled and not broken.
    pub fn is_running(&self, vring: &VringState<Memory>) -> bool {
        vring.is_enabled()
            && vring.get_queue().ready()
            && !self.shared.broken.load(Ordering::Relaxed)
    }

    /// Ignores the virtqueue until the driver sets it up again. Logs the first `reason`.
    pub fn set_broken(&self, reason: impl std::fmt::Display) {
        if !self.shared.broken.swap(true, Ordering::SeqCst) {
            log::error!("virtqueue ignored until the driver sets it up again: {reason}");
        }
    }

    fn indices(&self) -> MutexGuard<'_, Indices> {
        self.shared.indices.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns the next available descriptor chain, whose head index is valid.
///
/// # Errors
/// Returns an error if the available ring cannot be read or is invalid. Treating it as empty would
/// hide that no request is ever handled again.
pub fn next_chain<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<DescriptorChain<&'a GuestMemoryMmap>>, QueueError> {
    let before = queue.next_avail();
    // Read before the iterator reads it: a request that the driver adds between the two reads must
    // not make the ring look invalid.
    let end = queue.avail_idx(memory, Ordering::Relaxed)?.0;
    let Some(chain) = queue.iter(memory)?.next() else {
        let unread = end != before && queue.next_avail() == before;
        return if unread { Err(QueueError::InvalidAvailRingIndex) } else { Ok(None) };
    };
    if chain.head_index() < queue.size() {
        Ok(Some(chain))
    } else {
        Err(QueueError::InvalidDescriptorIndex)
    }
}

/// Returns whether no element was ever written to the used ring.
fn is_used_ring_blank(queue: &Queue, memory: &GuestMemoryMmap) -> bool {
    (0..u64::from(queue.size())).all(|index| {
        let address = queue.used_ring().checked_add(4 + 8 * index).map(GuestAddress);
        address.is_some_and(|address| memory.read_obj::<u64>(address).is_ok_and(|used| used == 0))
    })
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
        self.with_priority(|vring| vring.get_mut())
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.with_priority(|vring| vring.get_mut())
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), QueueError> {
        self.with_priority(|vring| vring.add_used(desc_index, len))
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.with_priority(|vring| vring.signal_used_queue())
    }

    fn enable_notification(&self) -> Result<bool, QueueError> {
        self.with_priority(|vring| vring.enable_notification())
    }

    fn disable_notification(&self) -> Result<(), QueueError> {
        self.with_priority(|vring| vring.disable_notification())
    }

    fn needs_notification(&self) -> Result<bool, QueueError> {
        self.with_priority(|vring| vring.needs_notification())
    }

    fn set_enabled(&self, enabled: bool) {
        self.with_priority(|vring| vring.set_enabled(enabled))
    }

    /// Sets the guest-physical addresses of the rings, which the guest chooses. Invalid ones break
    /// the virtqueue, not the connection.
    fn set_queue_info(&self, desc: u64, avail: u64, used: u64) -> Result<(), QueueError> {
        self.shared.broken.store(false, Ordering::SeqCst);
        if let Err(error) = self.with_priority(|vring| vring.set_queue_info(desc, avail, used)) {
            self.set_broken(format_args!(
                "descriptor table {desc:#x}, available ring {avail:#x}, used ring {used:#x}: {error}"
            ));
        }
        Ok(())
    }

    fn queue_next_avail(&self) -> u16 {
        self.with_priority(|vring| vring.queue_next_avail())
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.indices().base = base;
        self.with_priority(|vring| vring.set_queue_next_avail(base))
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.with_priority(|vring| vring.set_queue_next_used(idx))
    }

    fn queue_used_idx(&self) -> Result<u16, QueueError> {
        let index = self.with_priority(|vring| vring.queue_used_idx());
        Ok(index.unwrap_or_else(|error| {
            self.set_broken(format_args!("used ring: {error}"));
            0
        }))
    }

    fn set_queue_size(&self, num: u16) {
        self.with_priority(|vring| vring.set_queue_size(num))
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.with_priority(|vring| vring.set_queue_event_idx(enabled))
    }

    fn set_queue_ready(&self, ready: bool) {
        let mut vring = self.get_mut();
        let queue = vring.get_queue_mut();
        if ready {
            self.shared.started.store(true, Ordering::SeqCst);
        } else if queue.ready() && !self.shared.started.load(Ordering::SeqCst) {
            // A start that was never taken has had no effect. The previous stop and the next start
            // then decide together whether the virtual machine has resumed.
            self.indices().stopped_at = Some(queue.next_avail());
        }
        queue.set_ready(ready);
    }

    /// Makes the kick eventfd non-blocking: the thread may read a kick that has already been read.
    fn set_kick(&self, file: Option<File>) {
        if let Some(Err(error)) = file.as_ref().map(|file| rustix::io::ioctl_fionbio(file, true)) {
            log::warn!("cannot make the kick eventfd of a virtqueue non-blocking: {error}");
        }
        self.with_priority(|vring| vring.set_kick(file))
    }

    /// Never returns an error, which would end the thread of the virtqueue.
    fn read_kick(&self) -> io::Result<bool> {
        match self.with_priority(|vring| vring.read_kick()) {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => {
                log::warn!("cannot read the kick eventfd of a virtqueue: {error}");
            }
            _ => {}
        }
        Ok(self.get_ref().is_enabled())
    }

    fn set_call(&self, file: Option<File>) {
        self.with_priority(|vring| vring.set_call(file))
    }

    fn set_err(&self, file: Option<File>) {
        self.with_priority(|vring| vring.set_err(file))
    }
}
