//! The program under test, with files that it has no business with.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use tempfile::TempDir;

use crate::wait;

/// More than anything here takes.
const LIFETIME_SECONDS: u32 = 120;

/// A directory for sockets, and one for files that others have.
pub struct Place {
    pub sockets: TempDir,
    pub others: TempDir,
}

impl Place {
    pub fn new() -> Self {
        let [sockets, others] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        for name in ["secret", "victim"] {
            fs::write(others.path().join(name), "").unwrap();
        }
        Self { sockets, others }
    }

    /// A daemon with an emulated endpoint, not yet started.
    pub fn command(&self, options: &[&str]) -> Command {
        self.command_of(env!("CARGO_BIN_EXE_vhost-user-iommu").as_ref(), options)
    }

    fn command_of(&self, program: &Path, options: &[&str]) -> Command {
        let mut command = Command::new(program);
        let endpoint = format!("00:02.0,sim={}", self.sockets.path().join("endpoint").display());
        command.arg("--socket-path").arg(self.socket()).args(["--endpoint", &endpoint]);
        command.args(options).stdin(Stdio::null()).env_remove("RUST_LOG");
        // SAFETY: alarm is async-signal-safe. It survives exec.
        unsafe {
            command.pre_exec(|| {
                libc::alarm(LIFETIME_SECONDS);
                Ok(())
            });
        }
        command
    }

    pub fn socket(&self) -> PathBuf {
        self.sockets.path().join("vhost")
    }

    /// What sockets there are.
    pub fn left(&self) -> Vec<PathBuf> {
        fs::read_dir(self.sockets.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Runs the attempts: all, or those of a role with a name.
    pub fn attempt(&self, mode: &str, only: Option<(&str, &str)>) -> Output {
        let only = only.map_or(String::new(), |(role, name)| format!(",{role},{name}"));
        let attempts = format!("{}{only}", self.others.path().display());
        let options = ["--sandbox", mode, "--sandbox-attempts", &attempts];
        self.command(&options).output().unwrap()
    }

    /// The same command, as a user without any rights. `None` if only that user asks.
    pub fn command_as_nobody(&self, options: &[&str]) -> Option<Command> {
        const NOBODY: u32 = 65534;
        if !is_root() {
            return None;
        }
        for directory in [&self.sockets, &self.others] {
            fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        }
        // Where it was built not everybody may look.
        let program = self.others.path().join("program");
        fs::copy(env!("CARGO_BIN_EXE_vhost-user-iommu"), &program).unwrap();
        let mut command = self.command_of(&program, options);
        command.uid(NOBODY).gid(NOBODY);
        Some(command)
    }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// A daemon that serves. Goes with its value.
pub struct Serving {
    child: Child,
    log: PathBuf,
}

impl Serving {
    /// Starts it, and waits until it is ready.
    pub fn start(place: &Place, mut command: Command) -> Self {
        let log = place.others.path().join("log");
        let child = command.stderr(fs::File::create(&log).unwrap()).spawn().unwrap();
        let mut serving = Self { child, log };
        serving.wait_for("ready: ");
        serving
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    fn wait_for(&mut self, text: &str) {
        wait::until(&format!("'{text}' in the log"), || {
            let ended = self.child.try_wait().unwrap();
            assert!(ended.is_none(), "the daemon has ended: {ended:?}\n{}", self.log());
            self.log().contains(text).then_some(())
        });
    }

    /// Ends it, which must be clean.
    pub fn stop(mut self) -> String {
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        assert_eq!(self.child.wait().unwrap().code(), Some(0), "{}", self.log());
        self.log()
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
