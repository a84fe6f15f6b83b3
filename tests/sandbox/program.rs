//! The program under test, and files that it must not access.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;
use testing::daemon::{self, Daemon};

/// Longer than any test runs.
const LIFETIME_SECONDS: u32 = 120;

/// A directory for sockets, and one for files of other users.
pub struct Dirs {
    pub sockets: TempDir,
    pub others: TempDir,
}

impl Dirs {
    pub fn new() -> Self {
        let [sockets, others] = [(), ()].map(|()| tempfile::tempdir().unwrap());
        for name in ["secret", "victim"] {
            fs::write(others.path().join(name), "").unwrap();
        }
        Self { sockets, others }
    }

    /// Returns a command that runs a daemon with an emulated endpoint.
    pub fn command(&self, options: &[&str]) -> Command {
        self.command_of(&daemon::program(), options)
    }

    fn command_of(&self, program: &Path, options: &[&str]) -> Command {
        let mut command = daemon::command_of(program, LIFETIME_SECONDS);
        let path = |name: &str| self.sockets.path().join(name).display().to_string();
        command.args(["--socket-path", &path("vhost")]);
        command.args(["--endpoint", &format!("00:02.0,sim={}", path("endpoint"))]);
        command.args(options);
        command
    }

    /// Starts a daemon and waits until it is ready. Its log is among the files of other users.
    #[track_caller]
    pub fn start(&self, command: Command) -> Daemon {
        Daemon::start(command, self.others.path())
    }

    /// Returns the sockets that exist.
    pub fn existing_sockets(&self) -> Vec<PathBuf> {
        fs::read_dir(self.sockets.path()).unwrap().map(|entry| entry.unwrap().path()).collect()
    }

    /// Runs the attempts: all, or those of a role with a name.
    pub fn attempt(&self, mode: &str, only: Option<(&str, &str)>) -> Output {
        let only = only.map_or(String::new(), |(role, name)| format!(",{role},{name}"));
        let attempts = format!("{}{only}", self.others.path().display());
        let options = ["--sandbox", mode, "--sandbox-attempts", &attempts];
        self.command(&options).output().unwrap()
    }

    /// As [`command`](Self::command), as a user without privileges. Returns `None` unless the
    /// test runs as root.
    pub fn command_unprivileged(&self, options: &[&str]) -> Option<Command> {
        const UNPRIVILEGED: u32 = 65534;
        if !rustix::process::geteuid().is_root() {
            return None;
        }
        for directory in [&self.sockets, &self.others] {
            fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
        }
        // The directory that it was built in may be closed to the user.
        let program = self.others.path().join("program");
        fs::copy(daemon::program(), &program).unwrap();
        let mut command = self.command_of(&program, options);
        command.uid(UNPRIVILEGED).gid(UNPRIVILEGED);
        Some(command)
    }
}

/// Stops a daemon, which must exit with status 0. Returns its log.
#[track_caller]
pub fn stop(mut daemon: Daemon) -> String {
    daemon.stop(libc::SIGTERM);
    daemon.log()
}
