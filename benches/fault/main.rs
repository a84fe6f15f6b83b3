//! Cost of a recoverable fault: from the access to an unmapped page, over the event queue to a
//! driver that responds immediately, and back.
//!
//! `cargo bench --bench fault`, or `./scripts/bench fault`. The unit is a bare ping-pong of two
//! processes over eventfds, on the same cores as front end and daemon, measured alternately
//! with the others. A fault cannot cost less than one of them: it wakes the front end, and the front
//! end wakes the peer that waits.
//!
//! - Round trip: a job with a fault less the same job without, both from the doorbell to the
//!   interrupt. The front end spends a part of it, from its wake-up until MAP and PAGE_RESP are
//!   written, and the daemon adds the rest: its own work, and all wake-ups on the way.
//! - During a storm: the same, while another endpoint makes page requests on all its channels as
//!   fast as they are completed. The front end responds to those too, which does not count as the
//!   daemon's time.
//! - Sustained: groups completed per second, when channels make a page request again as soon as the
//!   last one is completed.

mod accel;
mod guest;
mod pong;

use std::os::fd::AsRawFd;
use std::thread::sleep;
use std::time::{Duration, Instant};

use accelerator::regs::{self, Descriptor};
use testing::bench::{Cores, Placement, Times, start_daemon};
use testing::daemon::Daemon;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use accel::Accel;
use guest::{FREE, Guest, PAGE, PageRequest, SUCCESS};
use pong::Pong;

/// Jobs of each kind.
const JOBS: usize = 1000;
/// Long enough for polling threads to go to sleep.
const PAUSE: Duration = Duration::from_micros(600);
/// Time for which the groups of a sustained load are counted.
const LOAD: Duration = Duration::from_secs(2);
/// Channels of each endpoint that make a sustained load.
const LOAD_CHANNELS: u32 = 8;
/// Numbers of endpoints that make a sustained load.
const ENDPOINTS: [u32; 3] = [1, 8, 64];
/// Channels of the endpoint that storms: all.
const STORM_CHANNELS: u32 = regs::CHANNELS as u32;

/// No address space has a mapping here.
const HOLE: u64 = 0x7000_0000;
/// Page that a job with a fault requests.
const JOB_PAGE: u64 = 0x6000_0000;
/// Bytes that a job reads first, so that the front end sleeps before the fault.
const LEAD: u64 = 512 << 10;

/// Events that wake the front end: the interrupt of a job, the call of the event queue.
const DONE: u64 = 0;
const SIGNALLED: u64 = 1;

/// The endpoint whose jobs are measured, and the one that storms.
const MEASURED: u32 = 0;
const STORM: u32 = 1;

fn main() {
    if std::env::args().nth(1).as_deref() == Some(pong::ARGUMENT) {
        return pong::echo();
    }
    let cores = Cores::all();
    println!("microseconds; the last column counts bare ping-pongs (p50)");
    for &placement in cores.placements() {
        print_round_trips(&cores, placement);
    }
    cores.release();
    print_sustained();
}

/// Measures all quantities that are compared, alternately.
fn print_round_trips(cores: &Cores, placement: Placement) {
    let pong = cores.start(placement, Pong::start);
    let mut machine = cores.start(placement, || Machine::start(2));
    machine.accels[MEASURED as usize].enable(0);
    machine.storm(STORM, STORM_CHANNELS);
    machine.calm();
    let mut bare = Times::default();
    let [mut alone, mut in_storm] = [Jobs::default(), Jobs::default()];
    for _ in 0..JOBS {
        sleep(PAUSE);
        bare.add(pong.round_trip());
        alone.measure(&mut machine, || sleep(PAUSE));
        machine.feed_storm();
        in_storm.measure(&mut machine, || ());
        machine.calm();
    }
    let title = match placement {
        Placement::SameCore => "front end and daemon on one core",
        Placement::OtherCores => "front end on a separate core",
    };
    println!("{title:52} {:>8} {:>8} {:>8}", "p50", "p99", "p50");
    let row = |label: &str, times: &Times| {
        let (p50, p99) = (times.p50(), times.p99());
        println!("  {label:50} {p50:8.1} {p99:8.1} {:8.2}", p50 / bare.p50());
    };
    row("bare ping-pong of two processes, same placement", &bare);
    for (jobs, load) in [(&alone, "alone"), (&in_storm, "during a storm")] {
        row(&format!("{load}: job without fault"), &jobs.plain);
        row("  job with a fault", &jobs.fault);
        row("  round trip of the fault: the difference", &jobs.round_trip());
        row("    of which the front end", &jobs.handled);
        row("    added by the daemon", &jobs.added());
    }
    let by_storm = in_storm.added().less(&alone.added());
    row("added by the storm: the difference of these times", &by_storm);
    println!();
}

/// Jobs of the measured endpoint.
#[derive(Default)]
struct Jobs {
    plain: Times,
    fault: Times,
    handled: Times,
}

impl Jobs {
    /// One job without and one with a fault, each after `pause`.
    fn measure(&mut self, machine: &mut Machine, pause: impl Fn()) {
        pause();
        self.plain.add(machine.job(LEAD).total);
        pause();
        let job = machine.job(JOB_PAGE);
        self.fault.add(job.total);
        self.handled.add(job.handled);
        machine.guest.unmap(MEASURED, JOB_PAGE, PAGE);
        machine.guest.finish();
    }

    fn round_trip(&self) -> Times {
        self.fault.less(&self.plain)
    }

    fn added(&self) -> Times {
        self.round_trip().less(&self.handled)
    }
}

fn print_sustained() {
    println!("sustained, {LOAD_CHANNELS} channels an endpoint, on all cores");
    println!("endpoints   groups/s  microseconds each  times that with {}", ENDPOINTS[0]);
    let mut base = None;
    for endpoints in ENDPOINTS {
        let mut machine = Machine::start(endpoints);
        (0..endpoints).for_each(|index| machine.storm(index, LOAD_CHANNELS));
        machine.feed_storm();
        machine.run_storm(LOAD / 4);
        let groups = machine.run_storm(LOAD) / LOAD.as_secs_f64();
        let each = 1e6 / groups;
        let base = *base.get_or_insert(each);
        println!("{endpoints:9} {groups:10.0} {each:18.2} {:18.2}", each / base);
    }
}

/// A machine with accelerators.
struct Machine {
    guest: Guest,
    accels: Vec<Accel>,
    /// Whether the driver responds to the page requests of storms, or keeps them.
    responding: bool,
    kept: Vec<PageRequest>,
    /// Number of responses to page requests of storms.
    responses: u64,
    /// The events of [`wait`](Self::wait).
    epoll: Epoll,
    _daemon: Daemon,
}

/// Duration of a job, and the front end's part of it.
struct Job {
    total: Duration,
    handled: Duration,
}

impl Machine {
    fn start(endpoints: u32) -> Self {
        let mut daemon = start_daemon(endpoints, "");
        let guest = Guest::start(&mut daemon, endpoints);
        let home = |index| FREE + u64::from(index) * Accel::SPAN;
        let accel = |index| Accel::connect(&daemon, index, &guest.ram, home(index));
        let accels: Vec<_> = (0..endpoints).map(accel).collect();
        let epoll = Epoll::new().expect("epoll");
        let fds = [
            (accels[0].interrupt.as_raw_fd(), DONE),
            (guest.events.queue.call.as_raw_fd(), SIGNALLED),
        ];
        for (fd, name) in fds {
            let event = EpollEvent::new(EventSet::IN, name);
            epoll.ctl(ControlOperation::Add, fd, event).expect("epoll");
        }
        let (kept, responding, responses) = (Vec::new(), false, 0);
        Self { guest, accels, responding, kept, responses, epoll, _daemon: daemon }
    }

    /// Starts channels of an endpoint that repeat page requests for pages that are never mapped.
    fn storm(&mut self, index: u32, channels: u32) {
        let accel = &mut self.accels[index as usize];
        for channel in 0..channels {
            let page = HOLE + u64::from(channel) * PAGE;
            accel.enable(channel);
            accel.prepare(channel, &[accel::read(page, 1)]);
            accel.ring_doorbell(channel);
        }
    }

    /// Responds to the storm, and waits for two responses per channel.
    fn feed_storm(&mut self) {
        self.responding = true;
        for request in std::mem::take(&mut self.kept) {
            self.guest.respond(&request, SUCCESS);
        }
        self.guest.submit();
        let before = self.responses;
        while self.responses < before + 2 * u64::from(STORM_CHANNELS) {
            self.wait();
            self.handle();
        }
    }

    /// Stops responding, and waits until each channel of the storm has an outstanding request.
    fn calm(&mut self) {
        self.responding = false;
        while self.kept.len() < STORM_CHANNELS as usize {
            self.wait();
            self.handle();
        }
    }

    /// Responds for this time. Returns the number of groups.
    fn run_storm(&mut self, time: Duration) -> f64 {
        let (start, before) = (Instant::now(), self.responses);
        while start.elapsed() < time {
            self.wait();
            self.handle();
        }
        (self.responses - before) as f64
    }

    /// Runs a job whose last access is at `address`.
    fn job(&mut self, address: u64) -> Job {
        let accel = &mut self.accels[MEASURED as usize];
        let last = Descriptor { flags: regs::FLAG_INTERRUPT, ..accel::read(address, 8) };
        accel.prepare(0, &[accel::read(0, LEAD), last]);
        let start = Instant::now();
        accel.ring_doorbell(0);
        let mut handled = Duration::ZERO;
        while !self.wait() {
            handled += self.handle();
        }
        Job { total: start.elapsed(), handled }
    }

    /// Sleeps until there are events, or the measured job is complete (`true`).
    fn wait(&mut self) -> bool {
        if !self.guest.events.queue.arm() {
            return false;
        }
        let mut ready = [EpollEvent::default(); 2];
        let count = self.epoll.wait(-1, &mut ready).expect("epoll");
        let ready = ready[..count].iter().map(EpollEvent::data);
        let (done, signalled) = ready.fold((false, false), |(done, signalled), fd| {
            (done || fd == DONE, signalled || fd == SIGNALLED)
        });
        if done {
            rustix::io::read(&self.accels[0].interrupt, &mut [0; 8]).expect("interrupt");
        }
        if signalled {
            self.guest.events.queue.call.read().expect("signal");
        }
        done
    }

    /// Responds to all received page requests. Returns the time, without waking the daemon.
    fn handle(&mut self) -> Duration {
        let start = Instant::now();
        while let Some(request) = self.guest.events.next() {
            if request.address == JOB_PAGE {
                self.guest.map(request.index, JOB_PAGE, PAGE);
                self.guest.respond(&request, SUCCESS);
            } else if self.responding {
                self.guest.respond(&request, SUCCESS);
                self.responses += 1;
            } else {
                self.kept.push(request);
            }
        }
        let taken = start.elapsed();
        self.guest.submit();
        self.guest.events.publish();
        taken
    }
}
