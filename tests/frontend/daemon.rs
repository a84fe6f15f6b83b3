//! The program under test, in a directory of its own.

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;

use tempfile::TempDir;

use crate::counters;
use crate::wait;

/// How old a daemon can get: more than any test takes.
fn lifetime_seconds() -> u32 {
    12 * wait::patience().as_secs() as u32
}

/// Where the program is, if not where it was built.
const PROGRAM: &str = "VUI_DAEMON";
/// What endpoints are, if not `sim`.
const ENDPOINT_KIND: &str = "VUI_ENDPOINT_KIND";

/// What becomes of a call that a list of the sandbox lacks, if not the end of the daemon and of
/// the test.
const SANDBOX: &str = "VUI_SANDBOX";

/// The option.
pub fn sandbox() -> String {
    format!("--sandbox={}", env::var(SANDBOX).unwrap_or("kill".into()))
}

fn endpoint_kind() -> String {
    env::var(ENDPOINT_KIND).unwrap_or("sim".into())
}

/// Whether page requests come in groups of one page, whatever the accelerator is told.
pub fn has_small_groups() -> bool {
    endpoint_kind() == "mock"
}

pub struct Builder {
    /// Kind and PCI address.
    endpoints: Vec<(String, String)>,
    args: Vec<String>,
    env: Vec<(String, String)>,
    socket: Socket,
}

/// How the daemon gets its vhost-user socket.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Socket {
    /// It binds it.
    Path,
    /// It is started with one that listens.
    Listening,
    /// It is started with one that is connected.
    Connected,
}

/// The descriptor under which the daemon is started with a socket.
const PASSED: RawFd = 100;

impl Builder {
    /// Adds an emulated endpoint at a PCI address.
    pub fn endpoint(self, bdf: &str) -> Self {
        self.endpoint_of(&endpoint_kind(), bdf)
    }

    /// The same of a certain kind.
    pub fn endpoint_of(mut self, kind: &str, bdf: &str) -> Self {
        self.endpoints.push((kind.into(), bdf.into()));
        self
    }

    /// Adds arguments, split at white space. `DIR` is the daemon's directory.
    pub fn args(mut self, args: &str) -> Self {
        self.args.extend(args.split_whitespace().map(String::from));
        self
    }

    /// Sets a variable of the environment.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.env.push((name.into(), value.into()));
        self
    }

    /// Starts the daemon with its vhost-user socket, which listens already.
    pub fn with_listening_socket(mut self) -> Self {
        self.socket = Socket::Listening;
        self
    }

    /// Starts the daemon with a connection to the front end.
    pub fn with_connected_socket(mut self) -> Self {
        self.socket = Socket::Connected;
        self
    }

    pub fn start(self) -> Daemon {
        let dir = tempfile::tempdir().unwrap();
        let mut command = command(lifetime_seconds());
        let in_dir = |arg: &String| arg.replace("DIR", dir.path().to_str().unwrap());
        command.args(self.args.iter().map(in_dir)).envs(self.env);
        let path = dir.path().join("vhost");
        let mut front_end = None;
        let passed: Option<OwnedFd> = match self.socket {
            Socket::Path => {
                command.arg("--socket-path").arg(path);
                None
            }
            Socket::Listening => Some(UnixListener::bind(path).unwrap().into()),
            Socket::Connected => {
                let (ours, theirs) = UnixStream::pair().unwrap();
                front_end = Some(ours);
                Some(theirs.into())
            }
        };
        if let Some(socket) = &passed {
            pass(&mut command, socket.as_raw_fd());
        }
        command.arg(sandbox());
        for (index, (kind, bdf)) in self.endpoints.iter().enumerate() {
            let socket = dir.path().join(format!("endpoint{index}"));
            command.args(["--endpoint", &format!("{bdf},{kind}={}", socket.display())]);
        }
        let log = File::create(dir.path().join("log")).unwrap();
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut daemon = Daemon { child, dir, status: None, panics_tolerated: false, front_end };
        let endpoints = (0..self.endpoints.len()).map(|index| format!("endpoint{index}"));
        let own = (self.socket != Socket::Connected).then_some("vhost".into());
        for name in own.into_iter().chain(endpoints) {
            let path = daemon.dir.path().join(&name);
            wait::until(&format!("socket {name}"), || {
                daemon.assert_alive();
                path.exists().then_some(())
            });
        }
        daemon
    }
}

/// The program.
pub fn program() -> PathBuf {
    let built = env!("CARGO_BIN_EXE_vhost-user-iommu");
    env::var_os(PROGRAM).unwrap_or(built.into()).into()
}

/// The program, not yet started. The kernel ends it after `seconds`, so that a peer that waits
/// for it without a limit fails too, and nothing is left over when a test is killed.
pub fn command(seconds: u32) -> Command {
    let mut command = Command::new(program());
    // A panic that is told in full looks into files, which is the end where that kills.
    command.env_remove("RUST_BACKTRACE");
    // SAFETY: alarm is async-signal-safe. It survives exec.
    unsafe {
        command.pre_exec(move || {
            libc::alarm(seconds);
            Ok(())
        });
    }
    command
}

/// Has the program start with the descriptor `fd`, as `--fd`.
fn pass(command: &mut Command, fd: RawFd) {
    command.args(["--fd", &PASSED.to_string()]);
    // SAFETY: dup2 is async-signal-safe, and leaves the copy open across exec.
    unsafe {
        command.pre_exec(move || match libc::dup2(fd, PASSED) {
            -1 => Err(io::Error::last_os_error()),
            _ => Ok(()),
        });
    }
}

/// A running daemon. When it goes out of scope it must still run, and end on SIGTERM with 0.
pub struct Daemon {
    child: Child,
    dir: TempDir,
    status: Option<ExitStatus>,
    panics_tolerated: bool,
    /// The front end's side of the connection that it was started with.
    front_end: Option<UnixStream>,
}

impl Daemon {
    pub fn builder() -> Builder {
        let (endpoints, args, env) = (Vec::new(), Vec::new(), Vec::new());
        Builder { endpoints, args, env, socket: Socket::Path }
    }

    /// A front end's connection.
    pub fn connect(&mut self) -> UnixStream {
        self.front_end.take().unwrap_or_else(|| connect(&self.socket()))
    }

    pub fn endpoint_socket(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("endpoint{index}"))
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("vhost")
    }

    /// A file of the daemon's directory, which arguments call `DIR`.
    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// For tests that make threads of the daemon panic, by way of the crates it uses.
    pub fn tolerate_panics(&mut self) {
        self.panics_tolerated = true;
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }

    pub fn assert_alive(&mut self) {
        self.status = self.status.or(self.child.try_wait().unwrap());
        if let Some(status) = self.status {
            panic!("the daemon is gone: {status}");
        }
    }

    pub fn signal(&mut self, signal: i32) {
        self.assert_alive();
        // SAFETY: the child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(self.child.id() as i32, signal) }, 0);
    }

    /// Sends `signal` and waits for the end, which must be clean and with no fault left over.
    pub fn stop(&mut self, signal: i32) {
        self.signal(signal);
        self.ends();
    }

    /// Waits for the end, which must be clean and with no fault left over.
    pub fn ends(&mut self) {
        let pid = self.child.id() as i32;
        // SAFETY: the child has not been waited for, so its id is still its own.
        let pidfd =
            unsafe { OwnedFd::from_raw_fd(libc::syscall(libc::SYS_pidfd_open, pid, 0) as i32) };
        wait::readable(&pidfd, "the end of the daemon");
        let status = self.child.wait().unwrap();
        self.status = Some(status);
        assert_eq!(status.code(), Some(0), "exit status");
        let panicked = self.log().contains("panicked at") && !self.panics_tolerated;
        assert!(!panicked, "a thread of the daemon panicked");
        counters::assert_nothing_left(&self.log());
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Also of use when the daemon does not end as it should, below.
        let _log = LogOnPanic(self.dir.path().join("log"));
        if thread::panicking() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        } else if self.status.is_none() {
            self.stop(libc::SIGTERM);
        }
    }
}

/// Prints the log of the daemon if the test fails.
struct LogOnPanic(PathBuf);

impl Drop for LogOnPanic {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("log of the daemon:\n{}", fs::read_to_string(&self.0).unwrap_or_default());
        }
    }
}

/// Connects, once somebody listens.
pub fn connect(path: &Path) -> UnixStream {
    wait::until("somebody listening", || match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => None,
        stream => Some(stream.unwrap()),
    })
}
