//! The request queue: takes requests out of the ring, puts answers in.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhost_user_backend::VringT;
use virtio_queue::{DescriptorChain, Error, Queue, QueueOwnedT, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::counters::{RequestQueueCounters, TransportCounters};
use super::descriptor_chain::gather;
use super::notification::signal_driver;
use super::polling::Poller;
use super::reset_barrier::ResetBarrier;
use super::virtqueue::{Memory, Start, Virtqueue};
use crate::heartbeat::Heartbeat;
use crate::viommu::status::Status;
use crate::viommu::wire::size;
use crate::viommu::{Reply, Viommu};

/// Requests answered before the ring's lock is let go for a moment.
const BATCH: usize = 256;
/// Looks at an empty ring before that.
const LOOKS: usize = 64;

/// The server of the request queue; one thread uses it.
pub struct RequestQueue {
    viommu: Arc<Mutex<Viommu>>,
    memory: Memory,
    barrier: Arc<ResetBarrier>,
    poller: Poller,
    counters: Arc<TransportCounters>,
    beat: Heartbeat,
    /// The answer to a request is put together here.
    answer: Vec<u8>,
}

/// What a look at the ring found.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Look {
    /// The ring is stopped or broken.
    NotRunning,
    /// No request.
    Empty,
    /// Requests, now answered; when they were found, if they are timed.
    Work(Option<Instant>),
}

impl RequestQueue {
    /// Serves requests to `viommu` and polls for at most `max_poll` after each. `beat` is that of
    /// the loop it is served in.
    pub fn new(
        viommu: Arc<Mutex<Viommu>>,
        memory: Memory,
        barrier: Arc<ResetBarrier>,
        max_poll: Duration,
        counters: Arc<TransportCounters>,
        beat: Heartbeat,
    ) -> Self {
        let poller = Poller::new(max_poll, Instant::now());
        Self { viommu, memory, barrier, poller, counters, beat, answer: Vec::new() }
    }

    /// Answers all there is, then polls as long as that seems to pay. Ends with notifications on
    /// and the ring empty, or not running.
    pub fn serve(&mut self, ring: &Virtqueue) {
        self.poller.woke_up(Instant::now());
        self.counters().wake_ups.add(1);
        let mut polled = false;
        loop {
            match self.look(ring) {
                Look::NotRunning => return,
                Look::Work(start) => {
                    let now = Instant::now();
                    self.poller.found_work(now);
                    self.counters().found(start, polled, now);
                }
                Look::Empty if self.poller.keep_polling(Instant::now()) => {
                    self.counters().polls.add(1);
                }
                Look::Empty => match ring.enable_notification() {
                    Ok(true) => {}
                    Ok(false) => return self.counters().sleeps.add(1),
                    Err(error) => return ring.set_broken(format_args!("request queue: {error}")),
                },
            }
            polled = true;
        }
    }

    fn counters(&self) -> &RequestQueueCounters {
        &self.counters.requests
    }

    /// A few looks: everything that is there, up to a batch, then one signal if it is wanted.
    fn look(&mut self, ring: &Virtqueue) -> Look {
        self.beat.beat();
        let mut vring = ring.lock_as_worker();
        if !ring.is_running(&vring) {
            self.barrier.open();
            return Look::NotRunning;
        }
        let memory = self.memory.memory();
        let queue = vring.get_queue_mut();
        self.note_start(ring, queue, &memory);
        self.barrier.open();
        match self.answer_batch(queue, &memory) {
            Ok(Look::Work(start)) => {
                signal_driver(ring, &mut vring, &memory, &self.counters().signals);
                Look::Work(start)
            }
            Ok(look) => look,
            Err(error) => {
                ring.set_broken(format_args!("request queue: {error}"));
                Look::NotRunning
            }
        }
    }

    fn note_start(&mut self, ring: &Virtqueue, queue: &mut Queue, memory: &GuestMemoryMmap) {
        match ring.take_start(queue, memory) {
            None => {}
            Some(Start::Resumed) => log::info!("driver resumed, domains kept"),
            Some(Start::Fresh) => {
                log::info!("driver started, no domains");
                self.viommu.lock().unwrap_or_else(PoisonError::into_inner).reset();
            }
        }
    }

    fn answer_batch(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Look, Error> {
        if !has_request(queue, memory)? {
            return Ok(Look::Empty);
        }
        let start = self.counters().start();
        queue.disable_notification(memory)?;
        let mut viommu = self.viommu.lock().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        while count < BATCH {
            let Some(chain) = next_chain(queue, memory)? else { break };
            let head = chain.head_index();
            let written = answer(&mut viommu, chain, memory, &mut self.answer);
            queue.add_used(memory, head, written as u32)?;
            count += 1;
        }
        Ok(Look::Work(start))
    }
}

/// Looks for a while.
fn has_request(queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    for _ in 0..LOOKS {
        if queue.avail_idx(memory, Ordering::Relaxed)?.0 != queue.next_avail() {
            return Ok(true);
        }
        std::hint::spin_loop();
    }
    Ok(false)
}

/// The next chain, with its head checked. An available ring that cannot be read is an error, not
/// an empty ring: nothing would ever come out of it.
pub(super) fn next_chain<'a>(
    queue: &mut Queue,
    memory: &'a GuestMemoryMmap,
) -> Result<Option<DescriptorChain<&'a GuestMemoryMmap>>, Error> {
    let before = queue.next_avail();
    // Read first: a driver that adds a request meanwhile must not look like a broken ring.
    let end = queue.avail_idx(memory, Ordering::Relaxed)?.0;
    let Some(chain) = queue.iter(memory)?.next() else {
        let unread = end != before && queue.next_avail() == before;
        return if unread { Err(Error::InvalidAvailRingIndex) } else { Ok(None) };
    };
    if chain.head_index() < queue.size() {
        Ok(Some(chain))
    } else {
        Err(Error::InvalidDescriptorIndex)
    }
}

/// Answers one request; returns the bytes written.
fn answer(
    viommu: &mut Viommu,
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    scratch: &mut Vec<u8>,
) -> usize {
    let mut buffer = [0; size::MAX];
    let gathered = gather(chain.clone(), memory, &mut buffer);
    if !prepare(viommu, gathered.bytes, gathered.room, scratch) {
        return 0;
    }
    gathered.scatter(chain, memory, scratch)
}

/// Puts the answer together; `false` when the request goes back unwritten. The guest spins until
/// it has its answer, so even a defect of ours gets one.
fn prepare(viommu: &mut Viommu, bytes: &[u8], room: usize, answer: &mut Vec<u8>) -> bool {
    let handle = AssertUnwindSafe(|| match viommu.handle(bytes, room) {
        Some(reply) => {
            lay_out(&reply, room, answer);
            true
        }
        None => false,
    });
    catch_unwind(handle).unwrap_or_else(|_| {
        log::error!("defect: the request {bytes:02x?} could not be handled; please report it");
        viommu.count_internal_error(bytes);
        lay_out(&Reply { status: Status::DevErr, tail_offset: 0, properties: &[] }, room, answer);
        true
    })
}

/// Every reply goes through here: the whole writable part, properties first, then the tail,
/// zeros elsewhere. Linux takes a reply of any other length for a success.
fn lay_out(reply: &Reply, room: usize, answer: &mut Vec<u8>) {
    answer.clear();
    answer.resize(room, 0);
    answer[..reply.properties.len()].copy_from_slice(reply.properties);
    answer[reply.tail_offset] = reply.status as u8;
}
