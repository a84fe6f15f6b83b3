//! The program that is measured.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

/// A running daemon, in a directory of its own. Killed when dropped.
pub struct Daemon {
    pub child: Child,
    pub dir: TempDir,
}

impl Daemon {
    /// Starts it with so many emulated endpoints, at most 240, and more arguments, which can name
    /// files of its directory.
    pub fn start(endpoints: u32, args: impl FnOnce(&Path) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().expect("temporary directory");
        let mut command = Command::new(env!("CARGO_BIN_EXE_vhost-user-iommu"));
        command.arg("--socket-path").arg(dir.path().join("viommu.sock"));
        for index in 0..endpoints {
            let (device, function) = (endpoint_id(index) >> 3, endpoint_id(index) & 7);
            let socket = endpoint_socket(dir.path(), index);
            let endpoint = format!("00:{device:02x}.{function},sim={}", socket.display());
            command.args(["--endpoint", &endpoint]);
        }
        // To compare what a sandbox costs.
        let sandbox = std::env::var("VUI_SANDBOX").ok();
        command.args(sandbox.map(|mode| format!("--sandbox={mode}")));
        let command =
            command.args(args(dir.path())).args(["--log-level", "error"]).stdin(Stdio::null());
        let child = command.spawn().expect("the daemon starts");
        Self { child, dir }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("viommu.sock")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The socket of endpoint `index` of a daemon in `dir`.
pub fn endpoint_socket(dir: &Path, index: u32) -> PathBuf {
    dir.join(format!("sim{index}.sock"))
}

/// How requests and events name endpoint `index`: functions from 00:02.0 on.
pub fn endpoint_id(index: u32) -> u32 {
    16 + index
}
