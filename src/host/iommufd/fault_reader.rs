//! The source of page requests that the kernel reports: a fault queue of iommufd.
//!
//! A thread for each endpoint reads groups and hands them to the fault path; answers are written
//! by whoever gives them. While the fault path has no room for a group the thread waits with it,
//! and reads no further: the kernel keeps what comes meanwhile.

use std::io;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::AsFd;

use super::{FaultGroup, FaultQueue, Handle};
use crate::address::{EndpointId, Pasid};
use crate::iopf::{Iopf, PageRequest, QueueFull, Response, Source, SourceCookie};
use crate::notifier::Notifier;
use crate::sandbox::{self, Role};

/// How long to leave the kernel alone when it gives no groups for want of memory.
const RETRY: Timespec = Timespec { tv_sec: 1, tv_nsec: 0 };

/// The page requests of one endpoint, from the kernel to the fault path. Dropping it ends that.
pub struct KernelSource {
    endpoint: EndpointId,
    stop: Notifier,
    reader: Option<JoinHandle<()>>,
}

/// Where answers go, whichever thread gives them.
struct Answers {
    queue: Arc<FaultQueue>,
    room: Notifier,
}

impl Source for Answers {
    /// The kernel has no word for FAILURE: the fault path stops the endpoint, and to the kernel
    /// it is an access that cannot be allowed.
    fn respond(&self, _: Option<Pasid>, cookie: SourceCookie, response: Response) {
        self.queue.answer(Handle(cookie.0), response == Response::Success);
    }

    fn expects_response(&self, cookie: SourceCookie) -> bool {
        self.queue.waits(Handle(cookie.0))
    }

    fn capacity_available(&self) {
        self.room.signal();
    }
}

impl KernelSource {
    /// Connects a queue to the fault path, and begins to read it.
    ///
    /// # Errors
    /// If the system refuses a thread or a descriptor.
    pub fn start(
        endpoint: EndpointId,
        queue: Arc<FaultQueue>,
        faults: Arc<Iopf>,
    ) -> io::Result<Self> {
        let (room, stop) = (Notifier::new()?, Notifier::new()?);
        faults.set_source(endpoint, Arc::new(Answers { queue: queue.clone(), room: room.clone() }));
        let reader = Reader { endpoint, queue, faults, room, stop: stop.clone() };
        let name = format!("faults-{:x}", endpoint.0);
        let reader = thread::Builder::new().name(name).spawn(move || reader.run())?;
        Ok(Self { endpoint, stop, reader: Some(reader) })
    }
}

impl Drop for KernelSource {
    fn drop(&mut self) {
        self.stop.signal();
        if self.reader.take().is_some_and(|reader| reader.join().is_err()) {
            log::error!("endpoint {}: the reader of its faults ended by a panic", self.endpoint);
        }
    }
}

/// The thread.
struct Reader {
    endpoint: EndpointId,
    queue: Arc<FaultQueue>,
    faults: Arc<Iopf>,
    /// There is room again.
    room: Notifier,
    stop: Notifier,
}

/// The thread is to end.
struct Stopped;

impl Reader {
    fn run(self) {
        sandbox::enter_role(Role::FaultReader);
        while let Ok(()) = self.wait_for(&self.queue, None) {
            let groups = self.queue.read().unwrap_or_else(|error| {
                log::error!("endpoint {}: {error}; trying again", self.endpoint);
                let _ = self.wait_for(&self.stop, Some(&RETRY));
                Vec::new()
            });
            for group in groups {
                if let Err(Stopped) = self.hand_over(&group) {
                    return;
                }
            }
        }
    }

    /// Only the first request of a group can find no room.
    fn hand_over(&self, group: &FaultGroup) -> Result<(), Stopped> {
        for request in requests(group) {
            while let Err(QueueFull) = self.faults.report_page_request(self.endpoint, request) {
                self.wait_for(&self.room, None)?;
                self.room.clear();
            }
        }
        Ok(())
    }

    /// Waits until `fd` is readable, or for some time.
    fn wait_for(&self, fd: &impl AsFd, time: Option<&Timespec>) -> Result<(), Stopped> {
        let mut fds = [PollFd::new(&self.stop, PollFlags::IN), PollFd::new(fd, PollFlags::IN)];
        loop {
            match poll(&mut fds, time) {
                Ok(_) if fds[0].revents().is_empty() => return Ok(()),
                Ok(_) => return Err(Stopped),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => {
                    log::error!("endpoint {}: poll: {error}; trying again", self.endpoint);
                    thread::sleep(Duration::from_millis(100));
                }
            }
        }
    }
}

/// The page requests of a group, the last of them marked.
fn requests(group: &FaultGroup) -> impl Iterator<Item = PageRequest> {
    let count = group.pages.len();
    group.pages.iter().enumerate().map(move |(index, page)| PageRequest {
        pasid: group.pasid,
        cookie: SourceCookie(group.handle.0),
        address: page.address,
        access: page.access,
        exec: page.exec,
        privileged: page.privileged,
        last: index + 1 == count,
    })
}
