//! The options that `qemu-args` prints.

use std::io::Write;
use std::process::{Command, Stdio};

use testing::daemon::Daemon;
use testing::machine::WorkDir;
use testing::testbed;

use super::{STOCK, groups};
use crate::daemon;
use crate::vm::Vm;

/// IOMMU, memory and endpoints.
const CONFIGURATIONS: &[(&str, &str, &[&str])] = &[
    // Slots of QEMU's default devices, and others.
    ("00:01.0", "1G", &["00:02.0"]),
    ("00:02.0", "1G", &["00:03.0"]),
    ("00:10.0", "1G", &["00:11.0"]),
    ("00:1e.0", "1G", &["00:01.0", "00:1d.0"]),
    // Sizes of memory.
    ("00:01.0", "512", &["00:02.0"]),
    ("00:01.0", "16M", &["00:02.0"]),
    ("00:01.0", "17408K", &["00:02.0"]),
    ("00:01.0", "512g", &["00:02.0"]),
    // Functions of one slot, in any order, and in the slot of the IOMMU.
    ("00:10.0", "1G", &["00:11.7", "00:11.0", "00:11.1"]),
    ("00:10.0", "1G", &["00:10.1"]),
    ("00:10.1", "1G", &["00:10.0"]),
    // Other buses.
    ("00:01.0", "1G", &["01:00.0", "03:00.1", "03:00.0"]),
    ("01:00.0", "1G", &["00:1e.0", "02:00.0"]),
    ("00:01.0", "1G", &["28:00.0"]),
];

#[test]
fn qemu_starts_with_its_default_devices() {
    for (iommu, memory, endpoints) in CONFIGURATIONS {
        let work_dir = WorkDir::new();
        // QEMU doubles commas; the shell needs quotes.
        let viot = work_dir.path().join("vi,ot $x");
        let builder = Daemon::builder().in_dir(work_dir.path());
        let builder = endpoints.iter().fold(builder, |builder, bdf| builder.endpoint(bdf));
        daemon::write_viot(&viot, iommu, endpoints);
        let args = daemon::qemu_args(&builder, iommu, &viot, memory);
        let daemon = builder.start();
        let functions = functions_in_qemu(&args);
        drop(daemon);
        let expected = 1 + endpoints.len();
        assert_eq!(functions, expected, "{iommu} {memory} {endpoints:?}: {args}");
    }
}

/// Starts QEMU with its default devices, without running the machine. Returns how many functions
/// of this project are in it.
fn functions_in_qemu(args: &str) -> usize {
    let mut command = Command::new("sh");
    command.args(["-c", &format!("exec \"$0\" \"$@\" {args}")]).arg(testbed::qemu());
    command.args(["-accel", "tcg", "-display", "none", "-serial", "none", "-S"]);
    command.args(["-monitor", "stdio"]).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut qemu = command.stderr(Stdio::piped()).spawn().unwrap();
    qemu.stdin.take().unwrap().write_all(b"info qtree\nquit\n").unwrap();
    let output = qemu.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && errors.is_empty(), "{}: {errors}\n{args}", output.status);
    let tree = String::from_utf8_lossy(&output.stdout);
    ["dev: vhost-user-test-device-pci,", "dev: vfio-user-pci,"]
        .iter()
        .map(|device| tree.matches(device).count())
        .sum()
}

#[test]
fn functions_have_their_addresses_in_the_guest() {
    let endpoints = ["00:12.0", "00:12.1", "02:00.0"];
    let mut vm = Vm::builder(STOCK.kernel).iommu("01:00.0").endpoints(&endpoints).boot();
    vm.run("load_modules virtio-iommu");
    let groups = groups(&mut vm);
    let functions: Vec<_> = groups.iter().map(|(function, _)| function.as_str()).collect();
    assert_eq!(functions, ["0000:00:12.0", "0000:00:12.1", "0000:02:00.0"], "{groups:?}");
    vm.run("give_to_vfio 0000:00:12.0 0000:00:12.1 0000:02:00.0");
    for endpoint in endpoints {
        STOCK.dma(&mut vm, &format!("verify {endpoint} --pages 8"));
    }
    vm.finish();
}
