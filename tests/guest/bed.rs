//! What the tests run with. `scripts/test guest` makes it, and says where it is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use tempfile::TempDir;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

/// A guest kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kernel {
    /// Debian's, as it is: virtio-iommu is a module, VFIO has groups only.
    Stock,
    /// Built for tests: all built in, VFIO has both interfaces, and the patches of guest/linux.
    Small,
    /// As that, and it checks its own locks.
    Debug,
}

impl Kernel {
    pub fn image(self) -> PathBuf {
        match self {
            Self::Stock => variable("VUI_STOCK_KERNEL"),
            Self::Small => variable("VUI_SMALL_KERNEL"),
            Self::Debug => variable("VUI_DEBUG_KERNEL"),
        }
    }

    /// Its initial ram disk, made once for all tests.
    pub fn initrd(self) -> &'static Path {
        static STOCK: OnceLock<PathBuf> = OnceLock::new();
        static SMALL: OnceLock<PathBuf> = OnceLock::new();
        match self {
            Self::Stock => STOCK.get_or_init(|| {
                let modules = variable("VUI_STOCK_MODULES");
                let release = modules.file_name().unwrap().to_str().unwrap();
                make_initrd("stock", &[(&modules, &format!("lib/modules/{release}"))])
            }),
            Self::Small | Self::Debug => SMALL.get_or_init(|| make_initrd("small", &[])),
        }
    }
}

pub fn qemu() -> PathBuf {
    variable("VUI_QEMU")
}

fn variable(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(value) => value.into(),
        None => panic!("{name} is not set; run these tests by ./scripts/test guest"),
    }
}

/// A directory for all tests. The next run writes over what this one leaves.
fn dir() -> &'static Path {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    DIR.get_or_init(|| {
        let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join("guest");
        std::fs::create_dir_all(&dir).unwrap();
        dir
    })
}

/// A directory for one machine. Its name is short, for the sockets in it.
pub fn machine_dir() -> TempDir {
    tempfile::Builder::new().prefix("vui-").tempdir().unwrap()
}

fn make_initrd(name: &str, files: &[(&Path, &str)]) -> PathBuf {
    let out = dir().join(format!("{name}.initrd"));
    let mut command = script("testbed");
    command.arg("initrd").arg(&out).arg("scripts/guest/agent");
    command.args(["scripts/guest/vfio:etc/vfio", "scripts/guest/sva:etc/sva"]);
    command.arg(format!("{}:bin/guest-dma", program().display()));
    command.args(files.iter().map(|(from, to)| format!("{}:{to}", from.display())));
    output(&mut command);
    out
}

/// The guest's program, built when it is first needed.
fn program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| output(&mut script("guest/build-program")).trim().into())
}

fn script(name: &str) -> Command {
    let mut command = Command::new(Path::new(ROOT).join("scripts").join(name));
    command.current_dir(ROOT);
    command
}

/// What a program prints; it must succeed.
pub fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}
