//! Inherited sockets, notification of the service manager, and signals.

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
fn inherited_listening_socket_serves_front_ends_sequentially() {
    let mut vm = Vm::realized_on(builder().with_listening_socket().start());
    vm.start();
    vm.assert_works();
    vm.replace_front_end();
    vm.assert_works();
    // The file belongs to the parent, which bound it.
    vm.daemon.stop(SIGTERM);
    assert!(vm.daemon.socket().exists());
}

#[test]
fn inherited_connection_is_served_until_closed() {
    let mut vm = Vm::realized_on(builder().with_connected_socket().start());
    vm.start();
    vm.assert_works();
    let Vm { front_end, mut daemon, .. } = vm;
    daemon.assert_alive();
    drop(front_end);
    daemon.exits();
}

#[test]
fn signal_stops_daemon_with_inherited_connection() {
    let mut vm = Vm::realized_on(builder().with_connected_socket().start());
    vm.start();
    vm.assert_works();
    vm.daemon.stop(SIGTERM);
}

/// A service manager that starts a daemon.
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
        let length = self.socket.recv(&mut bytes).expect("a message of the daemon");
        String::from_utf8(bytes[..length].into()).unwrap()
    }

    /// Asserts that the next message except keep-alive messages contains `part`.
    #[track_caller]
    fn expect(&self, part: &str) {
        let message = std::iter::repeat_with(|| self.next()).find(|text| text != WATCHDOG).unwrap();
        assert!(message.contains(part), "{message:?}, not {part:?}");
    }

    /// Discards all messages so far. Returns whether there were any.
    fn discard(&self) -> bool {
        self.socket.set_nonblocking(true).unwrap();
        let mut any = false;
        while self.socket.recv(&mut [0; 1024]).is_ok() {
            any = true;
        }
        self.socket.set_nonblocking(false).unwrap();
        any
    }
}

const WATCHDOG: &str = "WATCHDOG=1\n";

#[test]
fn service_manager_is_notified_of_each_state() {
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
    assert!(!manager.discard(), "a message after STOPPING");
}

/// A thread of the daemon that is stopped.
struct Held(pid_t);

impl Held {
    fn hold(thread: pid_t) -> Self {
        let none = std::ptr::null_mut::<c_void>();
        // SAFETY: these requests ignore the pointers, and waitpid writes `status`.
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
        // SAFETY: this request ignores the pointers.
        unsafe { libc::ptrace(libc::PTRACE_DETACH, self.0, none, none) };
    }
}

/// Returns the threads of the daemon with this name.
fn threads(daemon: &Daemon, name: &str) -> Vec<pid_t> {
    let all = fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap();
    let all = all.map(|entry| entry.unwrap().path());
    let named = all.filter(|path| fs::read_to_string(path.join("comm")).unwrap().trim() == name);
    named.map(|path| path.file_name().unwrap().to_str().unwrap().parse().unwrap()).collect()
}

/// Stops `thread` and asserts that the manager receives no keep-alive messages until it continues.
/// Returns the name of the event loop in the log.
fn hold(manager: &Managed, daemon: &mut Daemon, thread: pid_t) -> String {
    const STALLED: &str = "no heartbeat from the event loop for ";
    let stalls = |daemon: &Daemon| daemon.log().matches(STALLED).count();
    let before = stalls(daemon);
    let held = Held::hold(thread);
    wait::until("a report", || {
        manager.discard();
        (stalls(daemon) > before).then_some(())
    });
    manager.discard();
    wait::until("more reports", || (stalls(daemon) > before + 2).then_some(()));
    assert!(!manager.discard(), "a keep-alive message despite a stalled loop");
    drop(held);
    while manager.next() != WATCHDOG {}
    daemon.assert_alive();
    let log = daemon.log();
    let (_, text) = log.rsplit_once(STALLED).unwrap();
    text.lines().next().unwrap().into()
}

#[test]
fn keep_alive_stops_while_an_event_loop_is_stalled() {
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
fn watchdog_of_another_process_is_ignored() {
    let (manager, daemon) = Managed::start(&[("WATCHDOG_USEC", "1000"), ("WATCHDOG_PID", "1")]);
    manager.expect("READY=1");
    let vm = Vm::realized_on(daemon);
    manager.expect("STATUS=waiting");
    assert_eq!(manager.next(), "STATUS=front end connected\n");
    assert!(!manager.discard());
    drop(vm);
}

#[test]
fn signals_inherited_blocked_or_ignored_stop_daemon() {
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
