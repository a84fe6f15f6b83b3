//! The thread that reads the fault queue of an endpoint into the fault path.
//!
//! Responses are written by the thread that makes them. While the endpoint has its maximum number
//! of outstanding groups, the thread keeps the page requests that it has read and reads no more, so
//! that further ones are queued in the kernel.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;

use super::FaultQueue;
use crate::address::{EndpointId, Pasid};
use crate::iopf::{Iopf, PageRequest, QueueFull, Response, Source, SourceCookie};
use crate::notifier::Notifier;
use crate::sandbox::{self, Role};

/// The interval between attempts to read a queue whose read fails, for instance without memory.
const RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The reader of the fault queue of one endpoint. Dropping it stops the thread.
pub struct FaultReader {
    endpoint: EndpointId,
    stop: Notifier,
    thread: Option<JoinHandle<()>>,
}

/// The kernel as the source of an endpoint's page requests.
struct KernelSource {
    queue: Arc<FaultQueue>,
    capacity: Notifier,
}

impl Source for KernelSource {
    /// The kernel has no response code FAILURE: the fault path rejects all further requests of the
    /// endpoint, and the kernel completes this group with INVALID.
    fn respond(&self, _: Option<Pasid>, cookie: SourceCookie, response: Response) {
        self.queue.respond(cookie, response == Response::Success);
    }

    fn expects_response(&self, cookie: SourceCookie) -> bool {
        self.queue.is_pending(cookie)
    }

    fn capacity_available(&self) {
        self.capacity.signal();
    }
}

impl FaultReader {
    /// Connects a fault queue to the fault path, and starts to read it.
    ///
    /// # Errors
    /// If no thread or eventfd can be created.
    pub fn start(
        endpoint: EndpointId,
        queue: Arc<FaultQueue>,
        faults: Arc<Iopf>,
    ) -> io::Result<Self> {
        let (capacity, stop) = (Notifier::new()?, Notifier::new()?);
        let source = KernelSource { queue: queue.clone(), capacity: capacity.clone() };
        faults.set_source(endpoint, Arc::new(source));
        let reader = Reader { endpoint, queue, faults, capacity, stop: stop.clone() };
        let name = format!("faults-{:x}", endpoint.0);
        let thread = thread::Builder::new().name(name).spawn(move || reader.run())?;
        Ok(Self { endpoint, stop, thread: Some(thread) })
    }
}

impl Drop for FaultReader {
    fn drop(&mut self) {
        self.stop.signal();
        if self.thread.take().is_some_and(|thread| thread.join().is_err()) {
            log::error!("internal error: endpoint {}: fault reader panicked", self.endpoint);
        }
    }
}

/// The state of the thread.
struct Reader {
    endpoint: EndpointId,
    queue: Arc<FaultQueue>,
    faults: Arc<Iopf>,
    /// Signalled when the fault path has capacity for a group again.
    capacity: Notifier,
    stop: Notifier,
}

/// The thread has received the stop request.
struct Stopped;

impl Reader {
    fn run(self) {
        sandbox::enter_role(Role::FaultReader);
        while let Ok(()) = self.wait_for(&self.queue, None) {
            let requests = self.queue.read().unwrap_or_else(|error| {
                log::error!("endpoint {}: {error}; trying again", self.endpoint);
                let _ = self.wait_for(&self.stop, Some(&RETRY));
                Vec::new()
            });
            for request in requests {
                if let Err(Stopped) = self.report(request) {
                    return;
                }
            }
        }
    }

    /// Reports a page request to the fault path, when it has capacity.
    fn report(&self, request: PageRequest) -> Result<(), Stopped> {
        while let Err(QueueFull) = self.faults.report_page_request(self.endpoint, request) {
            self.wait_for(&self.capacity, None)?;
            self.capacity.clear();
        }
        Ok(())
    }

    /// Waits until `fd` is readable, or until the time limit.
    fn wait_for(&self, fd: &impl AsFd, limit: Option<&Timespec>) -> Result<(), Stopped> {
        let mut fds = [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(fd, PollFlags::IN)];
        loop {
            match poll(&mut fds, limit) {
                Ok(_) if fds[0].revents().is_empty() => return Ok(()),
                Ok(_) => return Err(Stopped),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    log::error!("endpoint {}: poll failed: {error}; trying again", self.endpoint);
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}
