//! Results of forbidden operations in each role.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::program::Dirs;

const ROLES: [&str; 10] = [
    "None",
    "Requests",
    "Events",
    "Accelerator",
    "VfioUser",
    "FaultReader",
    "Signals",
    "Relay",
    "Watchdog",
    "Metrics",
];

/// Attempts that are allowed in some roles. All others fail in all roles.
const ALLOWED: [(&str, &[&str]); 12] = [
    // The allocator would open files for this if it had not done so before.
    ("allocate", &ROLES),
    ("allocate-in-threads", &["None"]),
    ("accept", &["None", "VfioUser", "Metrics"]),
    ("receive", &["None", "VfioUser", "Relay"]),
    ("send", &["None", "VfioUser", "Relay", "Watchdog", "Metrics"]),
    ("send-message", &["None", "VfioUser", "Relay"]),
    ("send-to", &["None", "VfioUser", "Relay"]),
    ("shut-down", &["None", "VfioUser", "Signals", "Relay"]),
    ("start-thread", &["None"]),
    ("wait-for-queue", &["None", "Requests", "Events"]),
    ("schedule", &["None"]),
    ("restrict", &["None"]),
];

/// Attempts that can also fail without a sandbox: in containers, by system settings, or because the
/// kernel does not support the call.
const ENVIRONMENT_DEPENDENT: [&str; 17] = [
    "bpf",
    "change-root",
    "clone3",
    "enter-namespace",
    "execute-file",
    "io-uring",
    "keys",
    "mount",
    "open-process",
    "openat2",
    "perf",
    "read-process",
    "steal-descriptor",
    "trace",
    "unknown-call",
    "unshare",
    "userfaultfd",
];

/// A line of the output of the attempts.
#[derive(Debug)]
struct Result {
    role: String,
    attempt: String,
    errno: i32,
}

fn results(output: &Output) -> Vec<Result> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", error(output));
    text.lines().map(result).collect()
}

fn result(line: &str) -> Result {
    let words: Vec<&str> = line.split(' ').collect();
    let [role, attempt, errno] = words[..] else { panic!("{line}") };
    Result { role: role.into(), attempt: attempt.into(), errno: errno.parse().unwrap() }
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into()
}

fn is_allowed(role: &str, attempt: &str) -> bool {
    ALLOWED.iter().any(|(name, roles)| *name == attempt && roles.contains(&role))
}

fn is_denied(errno: i32) -> bool {
    [libc::EPERM, libc::EACCES, libc::ENOSYS].contains(&errno)
}

/// Removal of a file outside the directories of the sockets: seccomp cannot distinguish the files.
fn is_denied_by_landlock(role: &str, attempt: &str) -> bool {
    (role, attempt) == ("None", "remove-file")
}

/// `clone3` fails with ENOSYS, so that the C library calls `clone`.
fn is_clone3(role: &str, attempt: &str) -> bool {
    (role, attempt) == ("None", "clone3")
}

/// Returns the expected errno of an attempt; `None`: any except a denial.
fn expected(role: &str, attempt: &str, landlock: bool) -> Option<i32> {
    match () {
        () if is_allowed(role, attempt) => None,
        () if is_denied_by_landlock(role, attempt) => landlock.then_some(libc::EACCES),
        () if is_clone3(role, attempt) => Some(libc::ENOSYS),
        () => Some(libc::EPERM),
    }
}

#[test]
fn calls_outside_the_allow_list_fail() {
    let dirs = Dirs::new();
    let output = dirs.attempt("on", None);
    let landlock = error(&output).contains("; Landlock ");
    let results = results(&output);
    let wrong: Vec<_> = results
        .iter()
        .filter(|Result { role, attempt, errno }| match expected(role, attempt, landlock) {
            Some(expected) => *errno != expected,
            None => is_denied(*errno),
        })
        .collect();
    assert!(wrong.is_empty(), "Landlock: {landlock}; {wrong:#?}");
    for role in ROLES {
        assert!(results.iter().any(|result| result.role == role), "no attempt in role {role}");
    }
    assert_eq!(dirs.existing_sockets(), [] as [std::path::PathBuf; 0], "sockets after exit");
}

#[test]
fn same_calls_succeed_without_sandbox() {
    let results = results(&Dirs::new().attempt("off", None));
    let wrong: Vec<_> = results
        .iter()
        .filter(|result| is_denied(result.errno))
        .filter(|result| !ENVIRONMENT_DEPENDENT.contains(&result.attempt.as_str()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn calls_outside_the_allow_list_kill_the_process() {
    let dirs = Dirs::new();
    let all = results(&dirs.attempt("off", None));
    assert!(all.len() > 40 * ROLES.len(), "{all:?}");
    for Result { role, attempt, .. } in &all {
        let output = dirs.attempt("kill", Some((role, attempt)));
        let killed = output.status.signal() == Some(libc::SIGSYS);
        let survives = is_allowed(role, attempt)
            || is_denied_by_landlock(role, attempt)
            || is_clone3(role, attempt);
        assert_ne!(killed, survives, "{attempt} in role {role}: {}", output.status);
        assert!(killed || output.status.success(), "{attempt} in role {role}: {}", output.status);
    }
}

#[test]
fn panic_is_reported_without_function_names() {
    let dirs = Dirs::new();
    let attempts = format!("{},None,panic", dirs.others.path().display());
    let output = dirs
        .command(&["--sandbox=on", "--sandbox-attempts", &attempts])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(101));
    assert!(error(&output).contains("a panic that the test requested"), "{}", error(&output));
}
