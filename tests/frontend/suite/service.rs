//! Sockets that the daemon is started with, and what it tells a service manager.

use std::fs;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;

use libc::{SIGTERM, c_void, pid_t};

use testing::daemon::{self, Builder, Daemon};
use testing::vm::{ENDPOINTS, Vm};
use testing::wait;

fn builder() -> Builder {
    ENDPOINTS.iter().fold(Daemon::builder(), |builder, (bdf, _)| builder.endpoint(bdf))
}

#[test]
fn a_listening_socket_that_was_passed_serves_one_front_end_after_the_other() {
    let mut vm = Vm::realized_on(builder().with_listening_socket().start());
    vm.start();
    vm.assert_works();
    vm.replace_front_end();
    vm.assert_works();
    // Its file is whose socket it was.
    vm.daemon.stop(SIGTERM);
    assert!(vm.daemon.socket().exists());
}

#[test]
fn a_connected_socket_that_was_passed_is_served_until_the_front_end_leaves() {
    let mut vm = Vm::realized_on(builder().with_connected_socket().start());
    vm.start();
    vm.assert_works();
    let Vm { front_end, mut daemon, .. } = vm;
    daemon.assert_alive();
    drop(front_end);
    daemon.exits();
}

#[test]
fn a_daemon_with_a_connected_socket_ends_on_a_signal_too() {
    let mut vm = Vm::realized_on(builder().with_connected_socket().start());
    vm.start();
    vm.assert_works();
    vm.daemon.stop(SIGTERM);
}

/// A service manager, and a daemon that it has started.
struct Managed {
    socket: UnixDatagram,
    _dir: tempfile::TempDir,
}

impl Managed {
    fn start(env: &[(&str, &str)]) -> (Self, Daemon) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        socket.set_read_timeout(Some(wait::limit())).unwrap();
        let builder = builder().env("NOTIFY_SOCKET", path.to_str().unwrap());
        let daemon = env.iter().fold(builder, |builder, (name, value)| builder.env(name, value));
        (Self { socket, _dir: dir }, daemon.start())
    }

    fn next(&self) -> String {
        let mut bytes = [0; 1024];
        let length = self.socket.recv(&mut bytes).expect("the daemon says nothing");
        String::from_utf8(bytes[..length].into()).unwrap()
    }

    /// The next message that is not about the watchdog.
    #[track_caller]
    fn expect(&self, part: &str) {
        let message = std::iter::repeat_with(|| self.next()).find(|text| text != WATCHDOG).unwrap();
        assert!(message.contains(part), "{message:?}, not {part:?}");
    }

    /// Forgets what was said so far; whether it was all well.
    fn was_well(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let mut well = false;
        while self.socket.recv(&mut [0; 1024]).is_ok() {
            well = true;
        }
        self.socket.set_nonblocking(false).unwrap();
        well
    }
}

const WATCHDOG: &str = "WATCHDOG=1\n";

#[test]
fn a_service_manager_is_told_what_the_daemon_does() {
    let (manager, daemon) = Managed::start(&[]);
    manager.expect("READY=1");
    let waiting = format!("STATUS=waiting for a front end on {}", daemon.socket().display());
    manager.expect(&waiting);
    let mut vm = Vm::realized_on(daemon);
    manager.expect("STATUS=front end connected");
    let Vm { front_end, daemon, .. } = vm;
    drop(front_end);
    manager.expect(&waiting);
    vm = Vm::realized_on(daemon);
    manager.expect("STATUS=front end connected");
    vm.daemon.stop(SIGTERM);
    manager.expect("STOPPING=1");
    assert!(!manager.was_well(), "said something after its end");
}

/// A thread of the daemon that does not run.
struct Held(pid_t);

impl Held {
    fn hold(thread: pid_t) -> Self {
        let none = std::ptr::null_mut::<c_void>();
        // SAFETY: these requests take no pointer that is looked at, waitpid fills `status`.
        unsafe {
            assert_eq!(libc::ptrace(libc::PTRACE_SEIZE, thread, none, none), 0);
            assert_eq!(libc::ptrace(libc::PTRACE_INTERRUPT, thread, none, none), 0);
            let mut status = 0;
            assert_eq!(libc::waitpid(thread, &mut status, libc::__WALL), thread);
            assert!(libc::WIFSTOPPED(status));
        }
        Self(thread)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let none = std::ptr::null_mut::<c_void>();
        // SAFETY: takes no pointer that is looked at.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

/// The daemon's threads of this name.
fn threads(daemon: &Daemon, name: &str) -> Vec<pid_t> {
    let all = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let all = all.map(|entry| entry.unwrap().path());
    let named = all.filter(|path| fs::read_to_string(path.join("comm")).unwrap().trim() == name);
    named.map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

/// Holds `thread`, sees that the manager is left without a sign of life, lets go and sees one
/// again. Returns the loop that was held.
fn hold(manager: &Managed, daemon: &mut Daemon, thread: pid_t) -> String {
    const COMPLAINT: &str = "no heartbeat from the event loop for ";
    let complaints = |daemon: &Daemon| daemon.log().matches(COMPLAINT).count();
    let before = complaints(daemon);
    let held = Held::hold(thread);
    wait::until("a complaint", || {
        manager.was_well();
        (complaints(daemon) > before).then_some(())
    });
    manager.was_well();
    wait::until("complaints", || (complaints(daemon) > before + 2).then_some(()));
    assert!(!manager.was_well(), "a sign of life though a loop does not turn");
    drop(held);
    while manager.next() != WATCHDOG {}
    daemon.assert_alive();
    let log = daemon.log();
    let (_, text) = log.rsplit_once(COMPLAINT).unwrap();
    text.lines().next().unwrap().into()
}

#[test]
fn the_watchdog_is_not_fed_while_a_loop_does_not_turn() {
    let (manager, mut daemon) = Managed::start(&[("WATCHDOG_USEC", "200000")]);
    while manager.next() != WATCHDOG {}
    let main = daemon.pid() as pid_t;
    assert_eq!(hold(&manager, &mut daemon, main), "front ends");

    let mut vm = Vm::realized_on(daemon);
    vm.start();
    while manager.next() != WATCHDOG {}
    let mut held: Vec<_> = threads(&vm.daemon, "vring_worker")
        .into_iter()
        .map(|thread| hold(&manager, &mut vm.daemon, thread))
        .collect();
    held.sort();
    assert_eq!(held, ["events", "requests"]);
    vm.assert_works();
}

#[test]
fn a_watchdog_of_another_process_is_left_alone() {
    let (manager, daemon) = Managed::start(&[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]);
    manager.expect("READY=1");
    let vm = Vm::realized_on(daemon);
    manager.expect("STATUS=waiting");
    assert_eq!(manager.next(), "STATUS=front end connected\n");
    assert!(!manager.was_well());
    drop(vm);
}

#[test]
fn signals_stop_a_daemon_that_inherits_them_blocked_or_ignored() {
    for signal in [SIGTERM, libc::SIGINT] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("vhost");
        let endpoint = format!("00:02.0,sim={}", dir.path().join("endpoint").display());
        let mut command = daemon::command(60);
        command.arg("--socket-path").arg(&socket).args(["--endpoint", &endpoint]);
        command.args(["--log-level", "error"]);
        // SAFETY: these calls are async-signal-safe, and `set` is initialized by the first.
        unsafe {
            command.pre_exec(move || {
                let mut set = std::mem::zeroed();
                libc::sigemptyset(&raw mut set);
                libc::sigaddset(&raw mut set, SIGTERM);
                libc::sigprocmask(libc::SIG_BLOCK, &raw const set, std::ptr::null_mut());
                libc::signal(libc::SIGINT, libc::SIG_IGN);
                Ok(())
            });
        }
        let mut child = command.spawn().unwrap();
        wait::until("the socket", || socket.exists().then_some(()));
        // SAFETY: the child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(child.id() as i32, signal) }, 0);
        assert_eq!(child.wait().unwrap().code(), Some(0), "signal {signal}");
    }
}
