//! What the kernel says of a daemon, and the daemon of itself.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use testing::daemon::Daemon;
use testing::wait;

use crate::program::{Place, stop};

const SETPCAP: u64 = 1 << 8;
const SYS_NICE: u64 = 1 << 23;

/// Whether this process could give a capability to the daemon.
fn has(capability: u64) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    capabilities(&status, "CapEff") & capability != 0
}

/// A line of a thread's status; numbers as they are there.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in\n{status}")).trim().to_owned()
}

/// Name and status of each thread.
fn threads(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // A thread that has ended meanwhile has none any more.
    let status = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        Some((field(&status, "Name"), status))
    };
    tasks.filter_map(status).collect()
}

fn capabilities(status: &str, set: &str) -> u64 {
    u64::from_str_radix(&field(status, set), 16).unwrap()
}

/// Every thread has no capability but those of `kept`, and cannot gain any.
fn assert_reduced(serving: &Daemon, kept: u64) {
    for (name, status) in threads(serving.pid()) {
        for set in ["CapInh", "CapAmb"] {
            assert_eq!(capabilities(&status, set), 0, "{set} of {name}");
        }
        for set in ["CapPrm", "CapEff"] {
            assert_eq!(capabilities(&status, set), kept, "{set} of {name}");
        }
        if has(SETPCAP) && field(&status, "Uid").starts_with('0') {
            assert_eq!(capabilities(&status, "CapBnd") & !kept, 0, "CapBnd of {name}");
        }
        assert_eq!(field(&status, "NoNewPrivs"), "1", "{name}");
        assert_eq!(field(&status, "Seccomp"), "2", "{name}");
    }
}

#[test]
fn no_thread_keeps_a_capability_or_can_get_one() {
    let place = Place::new();
    let serving = place.start(place.command(&[]));
    assert_reduced(&serving, 0);
    let log = stop(serving);
    assert!(log.contains("sandbox: other system calls fail with EPERM"), "{log}");
    assert!(log.contains("capabilities: none"), "{log}");
    assert_eq!(place.left(), [] as [std::path::PathBuf; 0], "sockets at the end");
}

#[test]
fn real_time_priority_keeps_its_own() {
    if !has(SYS_NICE) {
        return;
    }
    let place = Place::new();
    let serving = place.start(place.command(&["--realtime"]));
    assert_reduced(&serving, SYS_NICE);
    assert!(stop(serving).contains("capabilities: SYS_NICE"));
}

#[test]
fn an_ordinary_user_has_the_same_sandbox() {
    let place = Place::new();
    let Some(command) = place.command_as_nobody(&[]) else { return };
    let serving = place.start(command);
    assert_reduced(&serving, 0);
    stop(serving);
    assert_eq!(place.left(), [] as [std::path::PathBuf; 0], "sockets at the end");
}

/// The kernel tells since Linux 5.9.
#[test]
fn threads_with_a_role_have_a_list_more() {
    let place = Place::new();
    let serving = place.start(place.command(&[]));
    let lists = |name: &str| {
        let all = threads(serving.pid());
        let status = &all.iter().find(|thread| thread.0.starts_with(name))?.1;
        field(status, "Seccomp_filters").parse::<u32>().ok()
    };
    let main = lists("vhost-user-iomm").unwrap();
    for name in ["signals", "dma-10", "vfio-10"] {
        // It gets its name first.
        wait::until(&format!("the list of {name}"), || (lists(name)? == main + 1).then_some(()));
    }
}

/// Lets `command` run where a call is answered with an error.
fn without(command: &mut Command, call: i64, errno: i32) {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let refuse = SeccompAction::Errno(errno as u32);
    let calls = BTreeMap::from([(call, Vec::new())]);
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, refuse, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    // SAFETY: two system calls, and no allocation.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program).map_err(|_| std::io::ErrorKind::Other.into())
        });
    }
}

#[test]
fn where_calls_cannot_be_restricted_the_daemon_does_not_start() {
    let place = Place::new();
    let mut command = place.command(&[]);
    without(&mut command, libc::SYS_seccomp, libc::EINVAL);
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(6), "{error}");
    for part in [
        "cannot enter the sandbox: cannot install a seccomp filter",
        "CONFIG_SECCOMP_FILTER",
        "--sandbox=off",
    ] {
        assert!(error.contains(part), "not '{part}' in {error}");
    }
    assert_eq!(place.left(), [] as [std::path::PathBuf; 0], "sockets at the end");

    let mut command = place.command(&["--sandbox=off"]);
    without(&mut command, libc::SYS_seccomp, libc::EINVAL);
    let log = stop(place.start(command));
    assert!(log.contains("WARN") && log.contains("--sandbox=off"), "{log}");
}

#[test]
fn where_there_is_no_landlock_the_rest_holds() {
    let place = Place::new();
    for errno in [libc::ENOSYS, libc::EOPNOTSUPP, libc::EPERM] {
        let mut command = place.command(&["--sandbox=kill"]);
        without(&mut command, libc::SYS_landlock_create_ruleset, errno);
        let serving = place.start(command);
        assert_reduced(&serving, 0);
        let log = stop(serving);
        assert!(log.contains("no Landlock"), "{log}");
        assert_eq!(place.left(), [] as [std::path::PathBuf; 0], "sockets at the end");
    }
}
