//! Invalid command lines and configuration files: error messages and exit codes.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Output;

use clap::{Arg, Command, CommandFactory};
use vhost_user_iommu::cli::args::Args;

use testing::daemon;
use testing::vm::Vm;

fn run(args: &[impl AsRef<OsStr>]) -> Output {
    daemon::command(10).args(args).output().unwrap()
}

/// An invalid command line.
struct Row {
    /// Options in addition to a socket and an endpoint; DIR stands for a directory.
    args: &'static str,
    /// Part of the error message.
    message: &'static str,
    /// The exit code.
    code: i32,
}

const fn row(args: &'static str, message: &'static str, code: i32) -> Row {
    Row { args, message, code }
}

/// Exit codes, as listed in the README.
const IO: i32 = 1;
const OPTIONS: i32 = 2;
const SOCKET: i32 = 3;
const ENDPOINT: i32 = 4;
const REALTIME: i32 = 5;

/// At least one row for each option: the first option of a row is the invalid one.
const ROWS: &[Row] = &[
    row("--page-size 0", "'0'", OPTIONS),
    row("--page-size 3000", "3000", OPTIONS),
    row("--page-size 2048x", "2048x", OPTIONS),
    row("--page-size=-4096", "-4096", OPTIONS),
    row("--page-size 99999999999999999999", "99999999999999999999", OPTIONS),
    row("--input-range 0x1000", "0x1000", OPTIONS),
    row("--input-range 0x2000-0x1000", "0x2000", OPTIONS),
    row("--input-range 0x2000-0x1fff", "0x2000", OPTIONS),
    row("--input-range zero-0x1fff", "zero", OPTIONS),
    row("--input-range 0-0x10000000000000000", "0x10000000000000000", OPTIONS),
    row("--input-range 0x800-0x1fff", "0x800", OPTIONS),
    row("--boot-bypass maybe", "maybe", OPTIONS),
    row("--socket-path DIR/none/vhost", "/none/vhost", SOCKET),
    row("--socket-path DIR", "is not a socket", SOCKET),
    row("--socket-path=", "--socket-path", OPTIONS),
    row("--socket-mode 999", "999", OPTIONS),
    row("--socket-mode rw", "rw", OPTIONS),
    row("--socket-mode 1777", "1777", OPTIONS),
    row("--socket-group no-such-group", "no-such-group", OPTIONS),
    row("--fd 2", "2", OPTIONS),
    row("--fd=-1", "-1", OPTIONS),
    row("--fd three", "three", OPTIONS),
    row("--fd 200", "--fd 200: not open", SOCKET),
    row("--fd 200 --socket-path DIR/vhost", "--socket-path", OPTIONS),
    row("--config DIR/none.toml", "none.toml", OPTIONS),
    row("--config DIR", "DIR", OPTIONS),
    row("--config=", "--config", OPTIONS),
    row("--queue-size 0", "'0'", OPTIONS),
    row("--queue-size 100", "100", OPTIONS),
    row("--queue-size 65536", "65536", OPTIONS),
    row("--queue-size many", "many", OPTIONS),
    row("--reserved-region 0x1000", "0x1000", OPTIONS),
    row("--reserved-region 0x2000-0x1000", "0x2000", OPTIONS),
    row("--reserved-region 0x1000-0x1fff,type=other", "other", OPTIONS),
    row("--reserved-region 0x1000-0x1fff,kind=msi", "kind", OPTIONS),
    row(
        "--reserved-region 0x1000-0x2fff --reserved-region 0x2000-0x3fff",
        "0x2000-0x3fff overlaps",
        OPTIONS,
    ),
    row(
        "--reserved-region 0x1000-0x1fff,type=msi --reserved-region 0x3000-0x3fff,type=msi",
        "0x3000",
        OPTIONS,
    ),
    row("--max-domains few", "few", OPTIONS),
    row("--max-domains 0", "'0'", OPTIONS),
    row("--max-mappings=-1", "-1", OPTIONS),
    row("--max-endpoints-per-domain none", "none", OPTIONS),
    row("--fault-queue-depth 0", "'0'", OPTIONS),
    row("--fault-queue-depth deep", "deep", OPTIONS),
    row("--max-page-groups 0", "0", OPTIONS),
    row("--max-page-groups 32768", "32768", OPTIONS),
    row("--page-response-timeout never", "never", OPTIONS),
    row("--page-response-timeout 0", "'0'", OPTIONS),
    row("--page-response-timeout=-1", "-1", OPTIONS),
    row("--poll-us soon", "soon", OPTIONS),
    row("--poll-us 1000001", "1000001", OPTIONS),
    row("--realtime=often", "often", OPTIONS),
    row("--sandbox maybe", "maybe", OPTIONS),
    row("--metrics-socket DIR/none/metrics", "/none/metrics", SOCKET),
    row("--metrics-socket DIR", "is not a socket", SOCKET),
    row("--log-level loud", "loud", OPTIONS),
    row("--endpoint 00:02.0", "00:02.0", OPTIONS),
    row("--endpoint 00:02.0,sim=", "00:02.0", OPTIONS),
    row("--endpoint 00:02.0,real=DIR/e", "real", OPTIONS),
    row("--endpoint 00:20.0,sim=DIR/e", "00:20.0", OPTIONS),
    row("--endpoint 00:02.8,sim=DIR/e", "00:02.8", OPTIONS),
    row("--endpoint 100:02.0,sim=DIR/e", "100:02.0", OPTIONS),
    row("--endpoint 10000:00:02.0,sim=DIR/e", "10000:00:02.0", OPTIONS),
    row("--endpoint zz:02.0,sim=DIR/e", "zz:02.0", OPTIONS),
    row("--endpoint 02.0,sim=DIR/e", "02.0", OPTIONS),
    row("--endpoint 2,sim=DIR/e", "2", OPTIONS),
    row("--endpoint ,sim=DIR/e", "sim=", OPTIONS),
    row(
        "--endpoint 00:02.0,sim=DIR/e --endpoint 00:02.0,sim=DIR/f",
        "00:02.0 is given twice",
        OPTIONS,
    ),
    row(
        "--endpoint 00:02.0,sim=DIR/e --endpoint 0000:00:02.0,sim=DIR/f",
        "00:02.0 is given twice",
        OPTIONS,
    ),
    row("--endpoint 00:02.0,sim=DIR/e --endpoint 00:03.0,sim=DIR/e", "/e", SOCKET),
    row("--endpoint 00:02.0,sim=DIR/none/e", "/none/e", SOCKET),
    row("--endpoint 00:02.0,vfio=DIR/none", "/none", ENDPOINT),
    row("--endpoint 00:02.0,vfio=DIR", "DIR", ENDPOINT),
    row("--no-such-option", "no-such-option", OPTIONS),
    row("left-over", "left-over", OPTIONS),
];

/// The same for subcommands.
const SUBCOMMAND_ROWS: &[Row] = &[
    row("viot --iommu 1 --endpoint 00:02.0 --output DIR/viot", "'1'", OPTIONS),
    row("viot --endpoint 2 --iommu 00:01.0 --output DIR/viot", "'2'", OPTIONS),
    row("viot --endpoint 00:01.0 --iommu 00:01.0 --output DIR/viot", "00:01.0", OPTIONS),
    row("viot --output DIR/none/viot --iommu 00:01.0 --endpoint 00:02.0", "/none/viot", IO),
    row("viot --output DIR --iommu 00:01.0 --endpoint 00:02.0", "DIR", IO),
    row("viot", "--iommu", OPTIONS),
    row("qemu-args --iommu x --socket-path DIR/v --endpoint 00:02.0,sim=DIR/e", "'x'", OPTIONS),
    row(
        "qemu-args --iommu 00:02.0 --socket-path DIR/v --endpoint 00:02.0,sim=DIR/e",
        "00:02.0",
        OPTIONS,
    ),
    row(
        "qemu-args --memory none --socket-path DIR/v --endpoint 00:02.0,sim=DIR/e",
        "'none'",
        OPTIONS,
    ),
    row("qemu-args --memory 1 --socket-path DIR/v --endpoint 00:02.0,sim=DIR/e", "'1'", OPTIONS),
    row("qemu-args --viot a:b --socket-path DIR/v --endpoint 00:02.0,sim=DIR/e", "a:b", OPTIONS),
    row(
        "qemu-args --iommu 00:1f.3 --socket-path DIR/v --endpoint 00:02.0,sim=DIR/e",
        "slot 1f",
        OPTIONS,
    ),
    row("qemu-args --socket-path DIR/v --endpoint 00:02.1,sim=DIR/e", "0000:00:02.1", OPTIONS),
    row("qemu-args --socket-path DIR/v --endpoint 01:02.0,sim=DIR/e", "0000:01:02.0", OPTIONS),
    row("qemu-args --socket-path DIR/v --endpoint 1:00:02.0,sim=DIR/e", "0001:00:02.0", OPTIONS),
    row("qemu-args --fd 3 --endpoint 00:02.0,sim=DIR/e", "--socket-path", OPTIONS),
    row("qemu-args --config DIR/none.toml", "none.toml", OPTIONS),
    row("qemu-args", "--endpoint", OPTIONS),
    row("status --metrics-socket DIR/none", "/none", SOCKET),
    row("status --metrics-socket DIR", "DIR", SOCKET),
    row("status --watch=often --metrics-socket DIR/none", "often", OPTIONS),
    row("status", "--metrics-socket", OPTIONS),
    row("no-such-command", "no-such-command", OPTIONS),
];

/// Checks that the program rejects `args` with the exit code of `row` and this message. `DIR` stands
/// for `dir`.
#[track_caller]
fn assert_rejected(row: &Row, args: &str, message: &str, dir: &Path) {
    let dir = dir.to_str().unwrap();
    let args: Vec<_> = args.split_whitespace().map(|arg| arg.replace("DIR", dir)).collect();
    let output = run(&args);
    let error = String::from_utf8_lossy(&output.stderr);
    let message = message.replace("DIR", dir);
    assert_eq!(output.status.code(), Some(row.code), "{}: {error}", row.args);
    assert!(error.contains(&message), "{}: no {message:?} in {error}", row.args);
    assert!(!error.contains("panicked"), "{}: {error}", row.args);
}

/// Returns a socket and an endpoint, unless `args` have them.
fn required_options(args: &str) -> String {
    let mut rest = String::new();
    if !args.contains("--socket-path") && !args.contains("--fd") {
        rest += " --socket-path DIR/vhost";
    }
    if !args.contains("--endpoint") {
        rest += " --endpoint 00:1f.0,sim=DIR/endpoint";
    }
    rest
}

#[test]
fn invalid_value_is_named_in_the_message() {
    for row in ROWS {
        let dir = tempfile::tempdir().unwrap();
        let args = format!("{}{}", row.args, required_options(row.args));
        assert_rejected(row, &args, row.message, dir.path());
    }
}

#[test]
fn invalid_value_in_a_file_is_named_in_the_message() {
    for row in ROWS {
        let Some(file) = as_file(row.args) else { continue };
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path();
        std::fs::write(dir.join("vm.toml"), file.replace("DIR", dir.to_str().unwrap())).unwrap();
        let args = format!("--config DIR/vm.toml{}", required_options(row.args));
        // Keys have no dashes.
        assert_rejected(row, &args, row.message.trim_start_matches("--"), dir);
    }
}

/// Returns options in the form of a configuration file, if they have one.
fn as_file(args: &str) -> Option<String> {
    if args.contains("--config") {
        return None;
    }
    let mut options = BTreeMap::<&str, Vec<&str>>::new();
    for option in args.split(" --") {
        let (name, value) = option.trim_start_matches("--").split_once([' ', '='])?;
        options.entry(name).or_default().push(value);
    }
    let line = |(name, values): (_, Vec<_>)| match name {
        "endpoint" | "reserved-region" => format!("{name} = {values:?}\n"),
        _ => format!("{name} = {:?}\n", values[0]),
    };
    Some(options.into_iter().map(line).collect())
}

#[test]
fn invalid_subcommand_is_rejected() {
    for row in SUBCOMMAND_ROWS {
        let dir = tempfile::tempdir().unwrap();
        assert_rejected(row, row.args, row.message, dir.path());
    }
}

#[test]
fn every_option_has_a_row() {
    let command = Args::command();
    let options = options(&command);
    let mut missing = without_row(&options, ROWS, "");
    for subcommand in command.get_subcommands() {
        let mut own = self::options(subcommand);
        own.retain(|option| !options.contains(option));
        let start = format!("{} ", subcommand.get_name());
        missing.extend(without_row(&own, SUBCOMMAND_ROWS, &start));
    }
    assert!(missing.is_empty(), "{missing:?}");
}

/// Returns the options of a command that can have an invalid value.
fn options(command: &Command) -> Vec<&str> {
    const ANY_VALUE: [&str; 3] = ["help", "version", "print-capabilities"];
    let shown = command.get_arguments().filter(|option| !option.is_hide_set());
    let named = shown.filter_map(Arg::get_long);
    named.filter(|option| !ANY_VALUE.contains(option)).collect()
}

/// Returns those of `options` with which no row begins, after `start`.
fn without_row(options: &[&str], rows: &[Row], start: &str) -> Vec<String> {
    let lines = options.iter().map(|option| format!("{start}--{option}"));
    let begins = |row: &Row, line: &str| {
        row.args.strip_prefix(line).is_some_and(|rest| rest.starts_with([' ', '=']))
    };
    lines.filter(|line| !rows.iter().any(|row| begins(row, line))).collect()
}

#[test]
fn socket_is_required() {
    let row = row("no option", "--socket-path", OPTIONS);
    let dir = tempfile::tempdir().unwrap();
    for args in ["", "--endpoint 00:02.0,sim=DIR/endpoint"] {
        assert_rejected(&row, args, row.message, dir.path());
    }
}

#[test]
fn realtime_without_permission_is_rejected() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let mut command = daemon::command(10);
    command.args(["--realtime", "--socket-path", &path("vhost")]);
    command.args(["--endpoint", &format!("00:02.0,sim={}", path("endpoint"))]);
    // SAFETY: these functions are async-signal-safe. Dropping a capability fails only for a
    // process without capabilities.
    unsafe {
        command.pre_exec(|| {
            libc::prctl(libc::PR_CAPBSET_DROP, CAP_SYS_NICE, 0, 0, 0);
            let none = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
            libc::setrlimit(libc::RLIMIT_RTPRIO, &none);
            Ok(())
        });
    }
    let output = command.output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(REALTIME), "{error}");
    assert!(error.contains("--realtime") && error.contains("RTPRIO"), "{error}");
}

/// linux/capability.h
const CAP_SYS_NICE: libc::c_ulong = 23;

#[test]
fn socket_of_a_running_daemon_is_not_replaced() {
    let mut vm = Vm::realized("");
    let args = "--socket-path DIR/vhost --endpoint 00:02.0,sim=DIR/other";
    let row = row(args, "DIR/vhost", SOCKET);
    assert_rejected(&row, args, row.message, vm.daemon.socket().parent().unwrap());
    vm.start();
    vm.assert_works();
    vm.replace_front_end();
    vm.assert_works();
}

#[test]
fn help_and_version_go_to_standard_output() {
    for option in ["--help", "--version"] {
        let output = run(&[option]);
        assert_eq!(output.status.code(), Some(0), "{option}");
        assert!(!output.stdout.is_empty() && output.stderr.is_empty(), "{option}");
    }
    let help = String::from_utf8(run(&["--help"]).stdout).unwrap();
    for option in ["--socket-path", "--endpoint", "--page-size", "--boot-bypass"] {
        assert!(help.contains(option), "{option} is not in the help");
    }
}

#[test]
fn print_capabilities_ignores_other_arguments() {
    for args in [&["--print-capabilities"][..], &["--nonsense", "--print-capabilities", "x"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0));
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed["type"], "iommu");
    }
}

#[test]
fn socket_group_and_mode_apply_to_the_sockets() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let group = std::fs::metadata("/proc/self").unwrap().gid();
    let daemon = testing::vm::daemon(&format!("--socket-group {group}"));
    for socket in [daemon.socket(), daemon.endpoint_socket(0)] {
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{}", socket.display());
    }
    let daemon = testing::vm::daemon("--socket-mode 600");
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
