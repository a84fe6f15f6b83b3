//! The daemon of a guest: the options and the table that QEMU gets for it, and its exit.

use std::path::Path;

use testing::counters::{self, Counters};
use testing::daemon::{Builder, Daemon, command};
use testing::testbed;

/// A limit for subcommands, in seconds.
const LIFETIME: u32 = 60;

/// Returns QEMU's options for a daemon and a virtio-iommu device at the PCI address `iommu`, as
/// the program prints them for a shell.
pub fn qemu_args(daemon: &Builder, iommu: &str, viot: &Path, memory: &str) -> String {
    let mut command = command(LIFETIME);
    command.args(["qemu-args", "--iommu", iommu, "--memory", memory, "--viot"]).arg(viot);
    testbed::output(command.args(daemon.options())).trim_end().to_owned()
}

/// Writes a VIOT table that lists `endpoints`.
pub fn write_viot(viot: &Path, iommu: &str, endpoints: &[&str]) {
    let mut command = command(LIFETIME);
    command.args(["viot", "--iommu", iommu, "--output"]).arg(viot);
    command.args(endpoints.iter().flat_map(|bdf| ["--endpoint", bdf]));
    testbed::output(&mut command);
}

/// Stops a daemon, which must exit with status 0 and have logged no error. Returns its counters of
/// page requests for each endpoint.
pub fn stop(daemon: &mut Daemon) -> Vec<Counters> {
    daemon.stop(libc::SIGTERM);
    let log = daemon.log();
    assert!(!log.contains("ERROR"), "the daemon has logged an error:\n{log}");
    counters::page_requests_at_end(&log)
}
