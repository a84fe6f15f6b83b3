//! What a guest's kernel says on its console.

/// Nothing good starts so.
const TROUBLE: [&str; 9] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "Call Trace",
    "Kernel panic",
    "general protection",
    "iopf with pasid",
    "refcount_t:",
    // Of locks, RCU and tasks that hang.
    "INFO: ",
];

/// Reports of the kernel's own checks of memory and locks, which nobody may expect.
const CHECKS: [&str; 7] = [
    "KASAN",
    "UBSAN",
    "DEBUG_LOCKS_WARN_ON",
    "possible circular locking",
    "possible recursive locking",
    "inconsistent lock state",
    "lockdep is turned off",
];

/// What the driver says when all is well. "device removed" follows an unbind.
const DRIVER_INFO: [&str; 3] = ["input address: ", "page mask: ", "device removed"];

/// Why the kernel will not go on, if so.
pub fn end(log: &str) -> Option<&str> {
    log.lines().find(|line| line.contains("Kernel panic") || line.contains("Oops"))
}

/// All lines that ought not to be there, and are not `tolerated`. Faults are not among them.
pub fn complaints<'a>(log: &'a str, tolerated: &[&str]) -> Vec<&'a str> {
    let is_new = |line: &&str| !tolerated.iter().any(|text| line.contains(text));
    let checks = log.lines().filter(|line| CHECKS.iter().any(|word| line.contains(word)));
    checks.chain(unusual(log).filter(is_new)).collect()
}

fn unusual(log: &str) -> impl Iterator<Item = &str> {
    let trouble = log.lines().filter(|line| TROUBLE.iter().any(|word| line.contains(word)));
    let is_usual = |text: &str| {
        text.contains(" fault from EP ") || DRIVER_INFO.iter().any(|info| text.starts_with(info))
    };
    trouble.chain(driver_lines(log).filter(move |text| !is_usual(text)))
}

/// What the virtio-iommu driver says, without time and name.
pub fn driver_lines(log: &str) -> impl Iterator<Item = &str> {
    log.lines().filter_map(|line| {
        let (_, text) = line.split_once("virtio_iommu virtio")?;
        text.split_once(": ").map(|(_, text)| text.trim_end())
    })
}

/// For a kernel that checks its locks: whether it still does. It stops after the first report.
pub const ASK_FOR_CHECKS: &str = "grep debug_locks: /proc/lockdep_stats";

/// Of the answer to that. If it does not, the kernel's `log` has the report.
pub fn assert_checks(lockdep: &str, log: &str) {
    assert!(
        lockdep.ends_with(" 1"),
        "the kernel has stopped to check its locks: {lockdep}\n{}",
        first_report(log)
    );
}

/// The first line that ought not to be there, and what follows it.
fn first_report(log: &str) -> String {
    let is_bad = |line: &str| TROUBLE.iter().chain(&CHECKS).any(|word| line.contains(word));
    let report: Vec<_> = log.lines().skip_while(|line| !is_bad(line)).take(60).collect();
    report.join("\n")
}
