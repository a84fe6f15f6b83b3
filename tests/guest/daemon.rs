//! The program under test.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};

use crate::common::counters::{self, Counters};
use crate::common::machine::end_with_parent;
use crate::common::{bed, wait};

/// Where the guest sees the IOMMU.
const IOMMU: &str = "00:01.0";

/// A daemon command line.
pub struct Config {
    dir: PathBuf,
    /// Addresses of its emulated endpoints.
    endpoints: Vec<String>,
    /// Further options.
    options: Vec<String>,
}

impl Config {
    pub fn new(dir: &Path, endpoints: &[&str], options: &[&str]) -> Self {
        let owned = |list: &[&str]| list.iter().map(|item| (*item).to_owned()).collect();
        Self { dir: dir.into(), endpoints: owned(endpoints), options: owned(options) }
    }

    fn options(&self) -> Vec<String> {
        let path = |name: &str| self.dir.join(name).display().to_string();
        let mut options = vec!["--socket-path".into(), path("vhost")];
        for (index, bdf) in self.endpoints.iter().enumerate() {
            let socket = path(&format!("endpoint{index}"));
            options.extend(["--endpoint".into(), format!("{bdf},sim={socket}")]);
        }
        options.extend(self.options.clone());
        // What the default refuses may go unnoticed; "kill" tells.
        options.extend(env::var("VUI_SANDBOX").ok().map(|mode| format!("--sandbox={mode}")));
        options
    }

    /// The QEMU options that go with it, as the program prints them for a shell.
    pub fn qemu_args(&self, memory: &str) -> String {
        let mut command = program();
        command.args(["qemu-args", "--iommu", IOMMU, "--viot"]).arg(self.dir.join("viot"));
        command.args(["--memory", memory]);
        bed::output(command.args(self.options())).trim_end().to_owned()
    }

    /// Writes the table that lists `endpoints`.
    pub fn write_viot(&self, endpoints: &[&str]) {
        let mut command = program();
        command.args(["viot", "--iommu", IOMMU, "--output"]).arg(self.dir.join("viot"));
        command.args(endpoints.iter().flat_map(|bdf| ["--endpoint", bdf]));
        bed::output(&mut command);
    }

    pub fn start(&self) -> Daemon {
        let log = self.dir.join("daemon.log");
        let mut command = program();
        command.args(self.options()).stderr(File::create(&log).unwrap());
        let child = end_with_parent(&mut command).spawn().unwrap();
        let mut daemon = Daemon { child, log };
        let socket = self.dir.join("vhost");
        wait::until("the daemon's socket", || {
            daemon.assert_alive();
            socket.exists().then_some(())
        });
        daemon
    }
}

fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-iommu"));
    command.env_remove("RUST_LOG");
    command
}

/// A running daemon.
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// A thread that panics does not end the daemon, but a guest that waits for it waits forever.
    pub fn assert_alive(&mut self) {
        if let Some(status) = self.child.try_wait().unwrap() {
            panic!("the daemon is gone: {status}");
        }
        assert!(!self.log().contains("panicked at"), "a thread of the daemon has panicked");
    }

    /// Ends it, which must be clean, and looks at what it has said. Returns what it has counted
    /// of page requests, for each endpoint.
    pub fn stop(&mut self) -> Vec<Counters> {
        self.assert_alive();
        let pid = i32::try_from(self.child.id()).unwrap();
        // SAFETY: the child has not been waited for, so its id is still its own.
        assert_eq!(unsafe { libc::kill(pid, libc::SIGTERM) }, 0);
        let status: ExitStatus =
            wait::until("the end of the daemon", || self.child.try_wait().unwrap());
        assert_eq!(status.code(), Some(0), "the daemon's exit status");
        let log = self.log();
        for word in ["ERROR", "panicked at"] {
            assert!(!log.contains(word), "the daemon says {word}");
        }
        counters::page_requests(&log)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
