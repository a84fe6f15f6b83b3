//! QEMU, kernels, disks and initial ram disks. `scripts/test` builds them and sets environment
//! variables to their paths.

use std::env;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::daemon;

/// The root of the repository.
const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// Returns the path of QEMU.
pub fn qemu() -> PathBuf {
    variable("VUI_QEMU")
}

/// Returns the path in an environment variable of `scripts/testbed`.
pub fn variable(name: &str) -> PathBuf {
    match env::var_os(name) {
        Some(value) => value.into(),
        None => panic!("{name} is not set; run these tests with ./scripts/test SUITE"),
    }
}

/// Builds an initial ram disk: a script of `scripts/guest` as its init, the functions and the
/// program that these scripts use, and `files` (source, destination). The next run overwrites it.
pub fn make_initrd(name: &str, init: &str, files: &[(&Path, &str)]) -> PathBuf {
    let dir = daemon::build_dir().join("testbed");
    std::fs::create_dir_all(&dir).unwrap();
    let out = dir.join(format!("{name}.initrd"));
    let mut command = script("testbed");
    command.arg("initrd").arg(&out).arg(format!("scripts/guest/{init}"));
    command.args(["scripts/guest/vfio:etc/vfio", "scripts/guest/sva:etc/sva"]);
    command.arg(format!("{}:bin/guest-dma", guest_program().display()));
    command.args(files.iter().map(|(from, to)| format!("{}:{to}", from.display())));
    output(&mut command);
    out
}

/// Returns the path of the guest's program, built at the first call.
fn guest_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| output(&mut script("guest/build-program")).trim().into())
}

/// Returns a command that runs a script of `scripts`.
pub fn script(name: &str) -> Command {
    let mut command = Command::new(Path::new(ROOT).join("scripts").join(name));
    command.current_dir(ROOT);
    command
}

/// Runs a program, which must succeed. Returns its standard output.
#[track_caller]
pub fn output(command: &mut Command) -> String {
    let output = command.stderr(Stdio::inherit()).output();
    let output = output.unwrap_or_else(|error| panic!("cannot run {command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Prints a measurement of a test that succeeds. The test harness would discard the output
/// of `println`.
pub fn report(text: &str) {
    let _ = writeln!(io::stderr(), "{text}");
}
