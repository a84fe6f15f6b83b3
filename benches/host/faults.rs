//! The latency of a page request of a mock device, from the device to the daemon and back.
//!
//! One thread is the device: it makes a page request and sleeps until the response. A second thread
//! sleeps until the fault queue is readable, reads the group and responds. The reference is a
//! ping-pong of two threads that only wake each other.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle, sleep};
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use testing::bench::{Cores, Placement, Times};
use vhost_user_iommu::address::Iova;
use vhost_user_iommu::host::Access;
use vhost_user_iommu::host::iommufd::FaultQueue;

use super::copying::Copying;

const FAULTS: u32 = 2000;
/// The interval between two measurements, in which both threads go to sleep.
const PAUSE: Duration = Duration::from_micros(600);
/// An address without a mapping.
const ADDRESS: Iova = Iova(0);

pub fn print(copying: &Copying) {
    let cores = Cores::all();
    let device = Device::new(copying);
    println!("\npage request latency in microseconds; last column in bare ping-pongs (p50)");
    for &placement in cores.placements() {
        print_parts(placement, &measure(&cores, placement, copying, &device));
    }
    cores.release();
}

fn print_parts(placement: Placement, parts: &Parts) {
    let title = match placement {
        Placement::SameCore => "device and daemon on one core",
        Placement::OtherCores => "device on a separate core",
    };
    println!("{title:52} {:>8} {:>8} {:>8}", "p50", "p99", "p50");
    let row = |label: &str, times: &Times| {
        let (p50, p99) = (times.p50(), times.p99());
        println!("  {label:50} {p50:8.1} {p99:8.1} {:8.2}", p50 / parts.bare.p50());
    };
    row("bare ping-pong of two threads on the same cores", &parts.bare);
    row("page request, until the device continues", &parts.whole);
    row("  request, until the daemon wakes", &parts.wake);
    row("  read and respond, until the device is notified", &parts.handled);
    row("    of which read", &parts.read);
    row("    of which respond", &parts.respond);
    row("  notification, until the device wakes", &parts.go_on);
}

/// The reference, and a page request with its parts.
#[derive(Default)]
struct Parts {
    bare: Times,
    whole: Times,
    wake: Times,
    handled: Times,
    read: Times,
    respond: Times,
    go_on: Times,
}

fn measure(cores: &Cores, placement: Placement, copying: &Copying, device: &Device) -> Parts {
    let mut parts = Parts::default();
    let pong = cores.start(placement, Pong::start);
    let queue = copying.queue.clone();
    let daemon = cores.start(placement, || thread::spawn(move || serve(&queue)));
    let mut faults = Vec::new();
    for id in 0..FAULTS {
        sleep(PAUSE);
        parts.bare.add(pong.round_trip());
        sleep(PAUSE);
        faults.push(device.fault(copying, id));
    }
    let served = daemon.join().expect("the daemon's thread");
    pong.thread.join().expect("the other thread");
    for (fault, served) in faults.iter().zip(served) {
        parts.whole.add(fault.end - fault.start);
        parts.wake.add(served.readable - fault.start);
        parts.handled.add(fault.notified - served.readable);
        parts.read.add(served.read - served.readable);
        parts.respond.add(fault.notified - served.read);
        parts.go_on.add(fault.end - fault.notified);
    }
    parts
}

/// The times when the daemon woke, and when it had read the group.
struct Served {
    readable: Instant,
    read: Instant,
}

/// The thread of the daemon: reads groups and responds.
fn serve(queue: &FaultQueue) -> Vec<Served> {
    (0..FAULTS).map(|_| serve_one(queue)).collect()
}

fn serve_one(queue: &FaultQueue) -> Served {
    wait(queue.as_fd());
    let readable = Instant::now();
    let requests = queue.read().expect("the fault queue");
    let read = Instant::now();
    let [request] = &requests[..] else { panic!("expected one page request: {requests:?}") };
    queue.respond(request.cookie, true);
    Served { readable, read }
}

/// The times when the device made the request, was notified, and woke.
struct Fault {
    start: Instant,
    notified: Instant,
    end: Instant,
}

/// The eventfd that wakes the device, and responses: time, identifier and success.
struct Device {
    wake: Arc<OwnedFd>,
    responses: Receiver<(Instant, u32, bool)>,
}

impl Device {
    fn new(copying: &Copying) -> Self {
        let (sender, responses) = channel();
        let wake = event();
        let device = wake.clone();
        copying.device.set_on_response(Box::new(move |id, success| {
            sender.send((Instant::now(), id, success)).expect("the device");
            signal(&device);
        }));
        Self { wake, responses }
    }

    fn fault(&self, copying: &Copying, requested: u32) -> Fault {
        let start = Instant::now();
        assert!(copying.device.request_page(requested, None, ADDRESS, Access::READ), "attached");
        take(&self.wake);
        let end = Instant::now();
        let (notified, id, success) =
            self.responses.try_recv().expect("a response before it was woken");
        assert_eq!((id, success), (requested, true), "the response");
        Fault { start, notified, end }
    }
}

/// A thread that returns each notification.
struct Pong {
    ping: Arc<OwnedFd>,
    pong: Arc<OwnedFd>,
    thread: JoinHandle<()>,
}

impl Pong {
    fn start() -> Self {
        let (ping, pong) = (event(), event());
        let (its_ping, its_pong) = (ping.clone(), pong.clone());
        let thread = thread::spawn(move || {
            for _ in 0..FAULTS {
                take(&its_ping);
                signal(&its_pong);
            }
        });
        Self { ping, pong, thread }
    }

    /// Wakes the other thread, and sleeps until it wakes this one.
    fn round_trip(&self) -> Duration {
        let start = Instant::now();
        signal(&self.ping);
        take(&self.pong);
        start.elapsed()
    }
}

fn event() -> Arc<OwnedFd> {
    Arc::new(eventfd(0, EventfdFlags::CLOEXEC).expect("eventfd"))
}

fn signal(fd: &OwnedFd) {
    rustix::io::write(fd, &1u64.to_ne_bytes()).expect("eventfd");
}

fn take(fd: &OwnedFd) {
    wait(fd.as_fd());
    rustix::io::read(fd, &mut [0; 8]).expect("eventfd");
}

fn wait(fd: BorrowedFd) {
    poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::IN)], None).expect("poll");
}
