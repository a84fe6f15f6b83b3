//! The daemon under test: its start, its sockets, its log and its exit.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;

use tempfile::TempDir;

use crate::counters;
use crate::wait;

/// Overrides the path of the program.
const PROGRAM: &str = "VUI_DAEMON";
/// Overrides the kind of endpoints, which is `sim`.
const ENDPOINT_KIND: &str = "VUI_ENDPOINT_KIND";
/// Overrides the value of `--sandbox`.
const SANDBOX: &str = "VUI_SANDBOX";

/// Descriptor number of a socket that the daemon inherits.
const INHERITED: RawFd = 100;

/// Returns the path of the program: `VUI_DAEMON`, or the program that cargo has built with the
/// running test.
pub fn program() -> PathBuf {
    // Older versions of cargo set the second variable only at compile time, of the test.
    let set = [PROGRAM, "CARGO_BIN_EXE_vhost-user-iommu"].iter().find_map(env::var_os);
    set.map_or_else(|| build_dir().join("vhost-user-iommu"), PathBuf::from)
}

/// Returns cargo's directory of the running test's profile; the test is in its subdirectory.
pub(crate) fn build_dir() -> PathBuf {
    let test = env::current_exe().unwrap();
    test.ancestors().nth(2).expect("the test is in a directory of cargo's").into()
}

/// Returns a command that runs the program. The kernel kills it after `seconds`, so that a peer
/// that waits for it without a limit fails, and no daemon is left when a test is killed.
pub fn command(seconds: u32) -> Command {
    command_of(&program(), seconds)
}

/// As [`command`], with a copy of the program.
pub fn command_of(program: &Path, seconds: u32) -> Command {
    let mut command = Command::new(program);
    // A backtrace would open files, which kills a sandboxed daemon before it logs the panic.
    command.env_remove("RUST_BACKTRACE").env_remove("RUST_LOG").stdin(Stdio::null());
    // SAFETY: alarm is async-signal-safe. It survives exec.
    unsafe {
        command.pre_exec(move || {
            libc::alarm(seconds);
            Ok(())
        });
    }
    command
}

/// Returns the `--sandbox` option of tests. By default a system call outside the allow list kills
/// the daemon and so fails the test.
pub fn sandbox_option() -> String {
    format!("--sandbox={}", env::var(SANDBOX).unwrap_or("kill".into()))
}

fn endpoint_kind() -> String {
    env::var(ENDPOINT_KIND).unwrap_or("sim".into())
}

/// Returns whether page request groups have one page, regardless of `CH_GROUP_PAGES`.
pub fn has_small_groups() -> bool {
    endpoint_kind() == "mock"
}

/// Tests of `tests/frontend` that cannot pass with endpoints on the kernel's mock device, with
/// reasons.
pub const NOT_ON_MOCK: [&str; 26] = [
    // The mock device makes groups of one page.
    "outstanding::partially_delivered_group",
    "outstanding::events_from_before_a_reset",
    "page_request::page_request_requires_buffer_of_48_bytes",
    "page_request::page_requests_of_a_group_are_consecutive",
    "page_request::unnegotiated_page_requests",
    "page_response::response_to_a_partially_delivered_group",
    "starved::group_larger_than_the_event_queue",
    "starved::endpoints_are_served_round_robin",
    "starved::faults_do_not_separate",
    "starved::page_requests_do_not_separate",
    "starved::requests_are_served_while_groups_lack_buffers",
    "starved::service_order_is_independent_of_group_length",
    // It does not receive FAILURE, and the kernel does not report requests without attachment.
    "failure_stops_the_endpoint",
    "outstanding::page_requests_without_a_front_end",
    "page_request::page_requests_without_attachment",
    // Guest memory is that of the vhost-user connection, not that of the vfio-user connection.
    "bypass::writing_bypass_takes_effect_immediately",
    "bypass::bypass_applies_before_and_after_driver_start",
    "bypass::boot_bypass_allows_dma_before_front_end",
    "dma::memory_unmapped_by_client",
    // A mapping to addresses without memory is not in the kernel's page table.
    "dma::access_outside_memory",
    // Addresses have 38 bits.
    "config::config_space_contains_defaults",
    "config::config_space_contains_options",
    "dma::mappings_at_both_ends",
    "map::map_and_unmap_at_both_ends",
    "unmap::unmap_of_whole_address_space",
    // Too slow in an emulated machine: 65,552 sequential groups.
    "page_request::group_id_is_not_reused",
];

/// Waits until `path` accepts a connection.
#[track_caller]
pub fn connect(path: &Path) -> UnixStream {
    wait::until("a listener", || match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        stream => Some(stream.unwrap()),
    })
}

/// Options of a daemon before its start.
pub struct Builder {
    dir: Dir,
    /// Kind and PCI address.
    endpoints: Vec<(String, String)>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    socket: Socket,
    sandbox: Option<String>,
    lifetime: u32,
}

/// The directory of a daemon's files.
enum Dir {
    Temporary(TempDir),
    Given(PathBuf),
}

impl Dir {
    fn path(&self) -> &Path {
        match self {
            Self::Temporary(dir) => dir.path(),
            Self::Given(path) => path,
        }
    }
}

/// Origin of the daemon's vhost-user socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Socket {
    /// It binds a path.
    Path,
    /// It inherits a listening socket.
    Listening,
    /// It inherits a connected socket.
    Connected,
}

impl Builder {
    /// Adds an emulated endpoint at a PCI address.
    pub fn endpoint(self, bdf: &str) -> Self {
        self.endpoint_of(&endpoint_kind(), bdf)
    }

    /// Adds an endpoint of a kind at a PCI address.
    pub fn endpoint_of(mut self, kind: &str, bdf: &str) -> Self {
        self.endpoints.push((kind.into(), bdf.into()));
        self
    }

    /// Adds arguments, separated by white space. `DIR` stands for the daemon's directory.
    pub fn args(mut self, args: &str) -> Self {
        let dir = self.dir.path().to_str().unwrap();
        self.args.extend(args.split_whitespace().map(|arg| arg.replace("DIR", dir)));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Puts sockets and log into `dir` instead of a temporary directory.
    pub fn in_dir(mut self, dir: &Path) -> Self {
        self.dir = Dir::Given(dir.into());
        self
    }

    /// Uses the program's default for `--sandbox`, unless `VUI_SANDBOX` overrides it.
    pub fn with_default_sandbox(mut self) -> Self {
        self.sandbox = env::var(SANDBOX).ok().map(|mode| format!("--sandbox={mode}"));
        self
    }

    /// Limits the lifetime of the daemon to `seconds`.
    pub fn lifetime(mut self, seconds: u32) -> Self {
        self.lifetime = seconds;
        self
    }

    /// Makes the daemon inherit its vhost-user socket, which already listens.
    pub fn with_listening_socket(mut self) -> Self {
        self.socket = Socket::Listening;
        self
    }

    /// Makes the daemon inherit a connection to the front end.
    pub fn with_connected_socket(mut self) -> Self {
        self.socket = Socket::Connected;
        self
    }

    /// Returns the options, as `vhost-user-iommu qemu-args` accepts them too.
    pub fn options(&self) -> Vec<String> {
        let path = |name: &str| self.dir.path().join(name).display().to_string();
        let mut options = self.args.clone();
        if self.socket == Socket::Path {
            options.extend(["--socket-path".into(), path("vhost")]);
        }
        options.extend(self.sandbox.clone());
        for (index, (kind, bdf)) in self.endpoints.iter().enumerate() {
            let socket = path(&format!("endpoint{index}"));
            options.extend(["--endpoint".into(), format!("{bdf},{kind}={socket}")]);
        }
        options
    }

    /// Starts the daemon and waits until its sockets exist.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let mut command = command(self.lifetime);
        command.args(self.options()).envs(self.env);
        let path = self.dir.path().join("vhost");
        let mut front_end = None;
        let inherited: Option<OwnedFd> = match self.socket {
            Socket::Path => None,
            Socket::Listening => Some(UnixListener::bind(path).unwrap().into()),
            Socket::Connected => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                front_end = Some(ours);
                Some(theirs.into())
            }
        };
        if let Some(socket) = &inherited {
            inherit(&mut command, socket.as_raw_fd());
        }
        let mut daemon = Daemon::spawn(command, self.dir);
        daemon.front_end = front_end;
        let endpoints = (0..self.endpoints.len()).map(|index| format!("endpoint{index}"));
        let own = (self.socket != Socket::Connected).then_some("vhost".into());
        for name in own.into_iter().chain(endpoints) {
            let path = daemon.file(&name);
            wait::until(&format!("socket {name}"), || {
                daemon.assert_alive();
                path.exists().then_some(())
            });
        }
        daemon
    }
}

/// Makes the program inherit the descriptor `fd` as `--fd`.
fn inherit(command: &mut Command, fd: RawFd) {
    command.args(["--fd", &INHERITED.to_string()]);
    // SAFETY: dup2 is async-signal-safe, and leaves the copy open across exec.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, INHERITED) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// A running daemon.
///
/// When dropped it must still run, exit with status 0 on SIGTERM, and leave no pending group or
/// fault. If the test has failed, its log is printed.
///
/// ```no_run
/// use testing::daemon::Daemon;
///
/// let daemon = Daemon::builder().endpoint("00:02.0").args("--metrics-socket DIR/m").start();
/// assert!(daemon.file("m").exists());
/// ```
pub struct Daemon {
    child: Child,
    dir: Dir,
    status: Option<ExitStatus>,
    panics_tolerated: bool,
    /// The front end's side of an inherited connection.
    front_end: Option<UnixStream>,
}

impl Daemon {
    /// Returns options without an endpoint.
    pub fn builder() -> Builder {
        Builder {
            dir: Dir::Temporary(tempfile::tempdir().unwrap()),
            endpoints: Vec::new(),
            args: Vec::new(),
            env: Vec::new(),
            socket: Socket::Path,
            sandbox: Some(sandbox_option()),
            // Longer than any test runs.
            lifetime: 12 * wait::limit().as_secs() as u32,
        }
    }

    /// Starts a [`command`] with its log in `dir`, and waits until it is ready.
    #[track_caller]
    pub fn start(command: Command, dir: &Path) -> Self {
        let mut daemon = Self::spawn(command, Dir::Given(dir.into()));
        wait::until("the daemon to be ready", || {
            daemon.assert_alive();
            daemon.log().contains("ready: ").then_some(())
        });
        daemon
    }

    fn spawn(mut command: Command, dir: Dir) -> Self {
        let log = File::create(dir.path().join("daemon.log")).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        Self { child, dir, status: None, panics_tolerated: false, front_end: None }
    }

    /// Returns a front end's connection.
    #[track_caller]
    pub fn connect(&mut self) -> UnixStream {
        self.front_end.take().unwrap_or_else(|| connect(&self.socket()))
    }

    /// Returns the path of the vfio-user socket of endpoint `index`.
    pub fn endpoint_socket(&self, index: usize) -> PathBuf {
        self.file(&format!("endpoint{index}"))
    }

    /// Returns the path of the vhost-user socket.
    pub fn socket(&self) -> PathBuf {
        self.file("vhost")
    }

    /// Returns the path of a file in the daemon's directory, `DIR` in [`Builder::args`].
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the process ID.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Accepts panics of the daemon's threads, for tests that cause them in its dependencies.
    pub fn tolerate_panics(&mut self) {
        self.panics_tolerated = true;
    }

    /// Returns the output so far.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file("daemon.log")).unwrap_or_default()
    }

    /// Checks that the daemon runs and no thread has panicked. (A panic does not end the daemon,
    /// but a guest could wait for the thread forever.)
    #[track_caller]
    pub fn assert_alive(&mut self) {
        self.status = self.status.or(self.child.try_wait().unwrap());
        if let Some(status) = self.status {
            panic!("the daemon has exited: {status}");
        }
        self.assert_no_panic();
    }

    #[track_caller]
    fn assert_no_panic(&self) {
        let panicked = !self.panics_tolerated && self.log().contains("panicked at");
        assert!(!panicked, "a thread of the daemon has panicked");
    }

    /// Sends `signal`.
    #[track_caller]
    pub fn signal(&mut self, signal: i32) {
        self.assert_alive();
        // SAFETY: the child has not been waited for, so its ID is not reused.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Sends `signal` and waits for the exit, as [`exits`](Self::exits).
    #[track_caller]
    pub fn stop(&mut self, signal: i32) {
        self.signal(signal);
        self.exits();
    }

    /// Waits for the exit, which must have status 0 and leave no pending group or fault.
    #[track_caller]
    pub fn exits(&mut self) {
        let status = wait::until("the daemon to exit", || self.child.try_wait().unwrap());
        self.status = Some(status);
        assert_eq!(status.code(), Some(0), "exit status");
        self.assert_no_panic();
        counters::assert_none_pending(&self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
            eprintln!("--- the daemon's log:\n{}", self.log());
        } else if self.status.is_none() {
            self.stop(libc::SIGTERM);
        }
    }
}
