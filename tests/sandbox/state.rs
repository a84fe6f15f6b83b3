//! The restrictions of each thread as the kernel reports them, and the log of the daemon.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Command;

use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use testing::daemon::Daemon;
use testing::wait;

use crate::program::{Dirs, stop};

const SETPCAP: u64 = 1 << 8;
const SYS_NICE: u64 = 1 << 23;

/// Returns whether this process can pass a capability on to the daemon.
fn has(capability: u64) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    capabilities(&status, "CapEff") & capability != 0
}

/// Returns a field of the status of a thread.
fn field(status: &str, name: &str) -> String {
    let line = status.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
    line.unwrap_or_else(|| panic!("no {name} in\n{status}")).trim().to_owned()
}

/// Returns the name and status of each thread.
fn threads(pid: u32) -> Vec<(String, String)> {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).unwrap();
    // Fails for a thread that has ended.
    let status = |task: std::io::Result<fs::DirEntry>| {
        let status = fs::read_to_string(task.unwrap().path().join("status")).ok()?;
        Some((field(&status, "Name"), status))
    };
    tasks.filter_map(status).collect()
}

fn capabilities(status: &str, set: &str) -> u64 {
    u64::from_str_radix(&field(status, set), 16).unwrap()
}

/// Asserts that each thread has no capabilities except `kept`, and cannot gain any.
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
fn threads_have_no_capabilities_and_cannot_gain_any() {
    let dirs = Dirs::new();
    let serving = dirs.start(dirs.command(&[]));
    assert_reduced(&serving, 0);
    let log = stop(serving);
    assert!(log.contains("sandbox: other system calls fail with EPERM"), "{log}");
    assert!(log.contains("capabilities: none"), "{log}");
    assert_eq!(dirs.existing_sockets(), [] as [std::path::PathBuf; 0], "sockets after exit");
}

#[test]
fn realtime_keeps_sys_nice() {
    if !has(SYS_NICE) {
        return;
    }
    let dirs = Dirs::new();
    let serving = dirs.start(dirs.command(&["--realtime"]));
    assert_reduced(&serving, SYS_NICE);
    assert!(stop(serving).contains("capabilities: SYS_NICE"));
}

#[test]
fn unprivileged_user_has_same_sandbox() {
    let dirs = Dirs::new();
    let Some(command) = dirs.command_unprivileged(&[]) else { return };
    let serving = dirs.start(command);
    assert_reduced(&serving, 0);
    stop(serving);
    assert_eq!(dirs.existing_sockets(), [] as [std::path::PathBuf; 0], "sockets after exit");
}

/// Linux reports the number of filters since 5.9.
#[test]
fn threads_with_a_role_have_an_additional_filter() {
    let dirs = Dirs::new();
    let serving = dirs.start(dirs.command(&[]));
    let filters = |name: &str| {
        let all = threads(serving.pid());
        let status = &all.iter().find(|thread| thread.0.starts_with(name))?.1;
        field(status, "Seccomp_filters").parse::<u32>().ok()
    };
    let main = filters("vhost-user-iomm").unwrap();
    for name in ["signals", "dma-10", "vfio-10"] {
        // A thread sets its name before its filter.
        wait::until(&format!("the filter of {name}"), || {
            (filters(name)? == main + 1).then_some(())
        });
    }
}

/// Makes a system call fail in `command`.
fn without(command: &mut Command, call: i64, errno: i32) {
    let arch = TargetArch::try_from(std::env::consts::ARCH).unwrap();
    let fail = SeccompAction::Errno(errno as u32);
    let calls = BTreeMap::from([(call, Vec::new())]);
    let filter = SeccompFilter::new(calls, SeccompAction::Allow, fail, arch).unwrap();
    let program: BpfProgram = filter.try_into().unwrap();
    // SAFETY: two system calls, and no allocation.
    unsafe {
        command.pre_exec(move || {
            seccompiler::apply_filter(&program).map_err(|_| std::io::ErrorKind::Other.into())
        });
    }
}

#[test]
fn daemon_does_not_start_without_seccomp() {
    let dirs = Dirs::new();
    let mut command = dirs.command(&[]);
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
    assert_eq!(dirs.existing_sockets(), [] as [std::path::PathBuf; 0], "sockets after exit");

    let mut command = dirs.command(&["--sandbox=off"]);
    without(&mut command, libc::SYS_seccomp, libc::EINVAL);
    let log = stop(dirs.start(command));
    assert!(log.contains("WARN") && log.contains("--sandbox=off"), "{log}");
}

#[test]
fn other_layers_apply_without_landlock() {
    let dirs = Dirs::new();
    for errno in [libc::ENOSYS, libc::EOPNOTSUPP, libc::EPERM] {
        let mut command = dirs.command(&["--sandbox=kill"]);
        without(&mut command, libc::SYS_landlock_create_ruleset, errno);
        let serving = dirs.start(command);
        assert_reduced(&serving, 0);
        let log = stop(serving);
        assert!(log.contains("no Landlock"), "{log}");
        assert_eq!(dirs.existing_sockets(), [] as [std::path::PathBuf; 0], "sockets after exit");
    }
}
