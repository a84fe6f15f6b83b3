//! What is refused, by whom, and how.

use std::os::unix::process::ExitStatusExt;
use std::process::Output;

use crate::program::Place;

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

/// What some threads may do: the attempt and their roles. All else is refused to all.
const ALLOWED: [(&str, &[&str]); 12] = [
    // For this the allocator would open files, if it could.
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

/// What others than the sandbox can refuse too: containers, the system's settings, a kernel that
/// does not have it.
const ELSEWHERE: [&str; 17] = [
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

/// One line of what the attempts print.
#[derive(Debug)]
struct Result {
    role: String,
    attempt: String,
    errno: i32,
}

fn results(output: &Output) -> Vec<Result> {
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(0), "{text}{}", error(output));
    let one = |line: &str| {
        let words: Vec<&str> = line.split(' ').collect();
        let [role, attempt, errno] = words[..] else { panic!("{line}") };
        Result { role: role.into(), attempt: attempt.into(), errno: errno.parse().unwrap() }
    };
    text.lines().map(one).collect()
}

fn error(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into()
}

fn is_allowed(role: &str, attempt: &str) -> bool {
    ALLOWED.iter().any(|(name, roles)| *name == attempt && roles.contains(&role))
}

fn is_refusal(errno: i32) -> bool {
    [libc::EPERM, libc::EACCES, libc::ENOSYS].contains(&errno)
}

/// Of a file outside the directories of sockets: seccomp does not see which it is.
fn is_left_to_landlock(role: &str, attempt: &str) -> bool {
    (role, attempt) == ("None", "remove-file")
}

/// It is answered with "no such call", for the C library.
fn is_clone3(role: &str, attempt: &str) -> bool {
    (role, attempt) == ("None", "clone3")
}

/// The number that an attempt must end with; `None`: any but a refusal.
fn expected(role: &str, attempt: &str, landlock: bool) -> Option<i32> {
    match () {
        () if is_allowed(role, attempt) => None,
        () if is_left_to_landlock(role, attempt) => landlock.then_some(libc::EACCES),
        () if is_clone3(role, attempt) => Some(libc::ENOSYS),
        () => Some(libc::EPERM),
    }
}

#[test]
fn what_is_not_on_a_list_is_refused() {
    let place = Place::new();
    let output = place.attempt("on", None);
    let landlock = error(&output).contains("; Landlock ");
    let results = results(&output);
    let wrong: Vec<_> = results
        .iter()
        .filter(|Result { role, attempt, errno }| match expected(role, attempt, landlock) {
            Some(expected) => *errno != expected,
            None => is_refusal(*errno),
        })
        .collect();
    assert!(wrong.is_empty(), "Landlock: {landlock}; {wrong:#?}");
    for role in ROLES {
        assert!(results.iter().any(|result| result.role == role), "nothing was tried as {role}");
    }
    assert_eq!(place.left(), [] as [std::path::PathBuf; 0], "sockets at the end");
}

#[test]
fn without_a_sandbox_the_same_is_possible() {
    let results = results(&Place::new().attempt("off", None));
    let wrong: Vec<_> = results
        .iter()
        .filter(|result| is_refusal(result.errno))
        .filter(|result| !ELSEWHERE.contains(&result.attempt.as_str()))
        .collect();
    assert!(wrong.is_empty(), "{wrong:#?}");
}

#[test]
fn kill_ends_the_process_by_each_of_them() {
    let place = Place::new();
    let all = results(&place.attempt("off", None));
    assert!(all.len() > 40 * ROLES.len(), "{all:?}");
    for Result { role, attempt, .. } in &all {
        let output = place.attempt("kill", Some((role, attempt)));
        let killed = output.status.signal() == Some(libc::SIGSYS);
        let survives = is_allowed(role, attempt)
            || is_left_to_landlock(role, attempt)
            || is_clone3(role, attempt);
        assert_ne!(killed, survives, "{attempt} as {role}: {}", output.status);
        assert!(killed || output.status.success(), "{attempt} as {role}: {}", output.status);
    }
}

#[test]
fn a_panic_is_told_even_where_it_cannot_be_told_in_full() {
    let place = Place::new();
    let attempts = format!("{},None,panic", place.others.path().display());
    let output = place
        .command(&["--sandbox=on", "--sandbox-attempts", &attempts])
        .env("RUST_BACKTRACE", "1")
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(101));
    assert!(error(&output).contains("a panic that the test requested"), "{}", error(&output));
}
