//! Messages of a guest's kernel on its console: detection of failures.

/// Markers of warnings and crashes.
const FAILURES: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "Kernel panic",
    "general protection",
    "iopf with pasid",
    "refcount_t:",
    // Of locks, RCU and hung tasks.
    "INFO: ",
];

/// Markers of reports by the kernel's checks of memory and locks. No test can tolerate them.
const CHECKS: [&str; 7] = [
    "KASAN",
    "UBSAN",
    "DEBUG_LOCKS_WARN_ON",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "lockdep is turned off",
];

/// Messages of the virtio-iommu driver without a failure. "device removed" follows an unbind.
const DRIVER_INFO: [&str; 3] = ["input address: ", "page mask: ", "device removed"];

/// Marker of the driver's fault reports.
const FAULT: &str = " fault from EP ";

/// Returns the message of a kernel crash, if any.
pub fn crash(log: &str) -> Option<&str> {
    log.lines().find(|line| line.contains("Kernel panic") || line.contains("Oops"))
}

/// Returns the messages that report a failure and are not `tolerated`. Fault reports of the
/// virtio-iommu driver are not among them.
///
/// ```
/// use testing::machine::kernel_log;
///
/// let log = "virtio_iommu virtio0: input address: 64 bits\nWARNING: at mm/slub.c:1\n";
/// assert_eq!(kernel_log::failures(log, &[]), ["WARNING: at mm/slub.c:1"]);
/// ```
pub fn failures<'a>(log: &'a str, tolerated: &[&str]) -> Vec<&'a str> {
    let checks = log.lines().filter(|line| contains_any(line, &CHECKS));
    let failures = log.lines().filter(|line| contains_any(line, &FAILURES));
    let driver = driver_lines(log).filter(|text| {
        !text.contains(FAULT) && !DRIVER_INFO.iter().any(|info| text.starts_with(info))
    });
    let intolerable = failures.chain(driver).filter(|line| !contains_any(line, tolerated));
    checks.chain(intolerable).collect()
}

fn contains_any(line: &str, texts: &[&str]) -> bool {
    texts.iter().any(|text| line.contains(text))
}

/// Returns the fault reports of the virtio-iommu driver, from the reason on.
pub fn faults(log: &str) -> Vec<&str> {
    driver_lines(log).filter(|text| text.contains(FAULT)).collect()
}

/// Returns the messages of the virtio-iommu driver, without time and name.
fn driver_lines(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter_map(|line| {
        let (_, text) = line.split_once("virtio_iommu virtio")?;
        text.split_once(": ").map(|(_, text)| text.trim_end())
    })
}

/// A command that prints whether lockdep is active: it disables itself after the first report.
pub const LOCKDEP_COMMAND: &str = "grep debug_locks: /proc/lockdep_stats";

/// Checks the output of [`LOCKDEP_COMMAND`]. The kernel's `log` has the report, if any.
#[track_caller]
pub fn assert_lockdep_active(output: &str, log: &str) {
    assert!(
        output.ends_with(" 1"),
        "the kernel has stopped checking its locks: {output}\n{}",
        first_report(log)
    );
}

/// Returns the first failure and the lines that follow it.
fn first_report(log: &str) -> String {
    let report = log
        .lines()
        .skip_while(|line| !contains_any(line, &FAILURES) && !contains_any(line, &CHECKS));
    report.take(60).collect::<Vec<_>>().join("\n")
}
