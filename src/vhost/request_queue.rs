//! The request queue: passes requests to the device model and writes the replies.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vhost_user_backend::VringT;
use virtio_queue::{DescriptorChain, Error, Queue, QueueT};
use vm_memory::{GuestAddressSpace, GuestMemoryMmap};

use super::counters::{RequestQueueCounters, TransportCounters};
use super::descriptor_chain::gather;
use super::notification::notify_driver;
use super::polling::Poller;
use super::reset_barrier::ResetBarrier;
use super::virtqueue::{Memory, Start, Virtqueue, next_chain};
use crate::heartbeat::Heartbeat;
use crate::viommu::request::MAX_REQUEST_SIZE;
use crate::viommu::{Reply, Viommu};

/// Maximum number of requests handled before the lock of the virtqueue is released.
const BATCH: usize = 256;
/// Number of reads of the available ring in one poll.
const READS_PER_POLL: usize = 64;

/// The device side of the request queue. Only the request thread uses it.
pub struct RequestQueue {
    viommu: Arc<Mutex<Viommu>>,
    memory: Memory,
    barrier: Arc<ResetBarrier>,
    poller: Poller,
    counters: Arc<TransportCounters>,
    heartbeat: Heartbeat,
    /// The buffer in which replies are encoded.
    reply: Vec<u8>,
}

/// The result of a poll of the available ring.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Poll {
    /// The virtqueue is stopped or broken.
    NotRunning,
    /// No request was available.
    Empty,
    /// Requests were available and have been handled; the start time if they are timed.
    Handled(Option<Instant>),
}

impl RequestQueue {
    /// Creates a request queue that passes requests to `viommu` and polls for at most `max_poll`
    /// after the last one. `heartbeat` is that of the loop that calls [`serve`](Self::serve).
    pub fn new(
        viommu: Arc<Mutex<Viommu>>,
        memory: Memory,
        barrier: Arc<ResetBarrier>,
        max_poll: Duration,
        counters: Arc<TransportCounters>,
        heartbeat: Heartbeat,
    ) -> Self {
        let poller = Poller::new(max_poll, Instant::now());
        Self { viommu, memory, barrier, poller, counters, heartbeat, reply: Vec::new() }
    }

    /// Handles all available requests, then polls for more as long as that is worthwhile. Returns
    /// when the virtqueue is empty and kicks are enabled, or when it is not running.
    pub fn serve(&mut self, queue: &Virtqueue) {
        self.poller.wake_up(Instant::now());
        self.counters().wake_ups.add(1);
        let mut polled = false;
        loop {
            match self.poll(queue) {
                Poll::NotRunning => return,
                Poll::Handled(start) => {
                    let now = Instant::now();
                    self.poller.finish_batch(now);
                    self.counters().finish_batch(start, polled, now);
                }
                Poll::Empty if self.poller.keep_polling(Instant::now()) => {
                    self.counters().polls.add(1);
                }
                Poll::Empty => match queue.enable_notification() {
                    Ok(true) => {}
                    Ok(false) => return self.counters().sleeps.add(1),
                    Err(error) => return queue.set_broken(format_args!("request queue: {error}")),
                },
            }
            polled = true;
        }
    }

    fn counters(&self) -> &RequestQueueCounters {
        &self.counters.requests
    }

    /// Polls the available ring. Handles the available requests, up to a batch, and then notifies
    /// the driver once.
    fn poll(&mut self, queue: &Virtqueue) -> Poll {
        self.heartbeat.beat();
        let mut vring = queue.lock();
        if !queue.is_running(&vring) {
            self.barrier.open();
            return Poll::NotRunning;
        }
        let memory = self.memory.memory();
        self.handle_start(queue.take_start(vring.get_queue(), &memory));
        self.barrier.open();
        match self.handle_batch(vring.get_queue_mut(), &memory) {
            Ok(Poll::Handled(start)) => {
                notify_driver(queue, &mut vring, &memory, &self.counters().signals);
                Poll::Handled(start)
            }
            Ok(poll) => poll,
            Err(error) => {
                queue.set_broken(format_args!("request queue: {error}"));
                Poll::NotRunning
            }
        }
    }

    fn handle_start(&self, start: Option<Start>) {
        match start {
            None => {}
            Some(Start::Resumed) => log::info!("driver resumed: domains kept"),
            Some(Start::Fresh) => {
                log::info!("driver started: device reset");
                self.viommu.lock().unwrap_or_else(PoisonError::into_inner).reset();
            }
        }
    }

    fn handle_batch(&mut self, queue: &mut Queue, memory: &GuestMemoryMmap) -> Result<Poll, Error> {
        if !has_request(queue, memory)? {
            return Ok(Poll::Empty);
        }
        let start = self.counters().start_batch();
        queue.disable_notification(memory)?;
        let mut viommu = self.viommu.lock().unwrap_or_else(PoisonError::into_inner);
        for _ in 0..BATCH {
            let Some(chain) = next_chain(queue, memory)? else { break };
            let head = chain.head_index();
            let written = handle_chain(&mut viommu, chain, memory, &mut self.reply);
            queue.add_used(memory, head, written as u32)?;
        }
        Ok(Poll::Handled(start))
    }
}

/// Reads the available ring repeatedly for a short time. Returns whether a request is available.
fn has_request(queue: &Queue, memory: &GuestMemoryMmap) -> Result<bool, Error> {
    for _ in 0..READS_PER_POLL {
        if queue.avail_idx(memory, Ordering::Relaxed)?.0 != queue.next_avail() {
            return Ok(true);
        }
        std::hint::spin_loop();
    }
    Ok(false)
}

/// Handles one request. Returns the number of bytes written.
fn handle_chain(
    viommu: &mut Viommu,
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    reply: &mut Vec<u8>,
) -> usize {
    let mut buffer = [0; MAX_REQUEST_SIZE];
    let request = gather(chain.clone(), memory, &mut buffer);
    if !encode_reply(viommu, request.bytes, request.writable_size, reply) {
        return 0;
    }
    request.scatter(chain, memory, reply)
}

/// Handles a request and encodes its reply into `buffer`. Returns `false` if the descriptor chain
/// has to be returned unwritten.
///
/// The driver busy-waits for the reply, so that a panic must not prevent it.
fn encode_reply(
    viommu: &mut Viommu,
    bytes: &[u8],
    writable_size: usize,
    buffer: &mut Vec<u8>,
) -> bool {
    let handled = catch_unwind(AssertUnwindSafe(|| {
        let reply = viommu.handle(bytes, writable_size)?;
        reply.encode(writable_size, buffer);
        Some(())
    }));
    match handled {
        Ok(reply) => reply.is_some(),
        Err(_) => {
            log::error!("internal error while handling request {bytes:02x?}: please report it");
            viommu.count_internal_error(bytes);
            Reply::INTERNAL_ERROR.encode(writable_size, buffer);
            true
        }
    }
}
