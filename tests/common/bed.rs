//! What the tests run with. `scripts/test` makes it, and says where it is.

use std::env;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");

pub fn qemu() -> PathBuf {
    variable("VUI_QEMU")
}

/// A part of the test bed.
pub fn variable(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(value) => value.into(),
        None => panic!("{name} is not set; run these tests by ./scripts/test SUITE"),
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

/// Makes an initial ram disk with a script of scripts/guest as its init, what those need, and
/// further files.
pub fn make_initrd(name: &str, init: &str, files: &[(&Path, &str)]) -> PathBuf {
    let out = dir().join(format!("{name}.initrd"));
    let mut command = script("testbed");
    command.arg("initrd").arg(&out).arg(format!("scripts/guest/{init}"));
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

pub fn script(name: &str) -> Command {
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
