//! What the command line refuses, and how it says so.

use std::process::Output;

use crate::daemon;
use crate::vm::Vm;

fn run(args: &[&str]) -> Output {
    daemon::command(10).args(args).output().unwrap()
}

/// Runs with a socket and an endpoint in a directory of their own, and `args`.
fn run_with(args: &str) -> Output {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let mut all: Vec<String> = vec!["--socket-path".into(), at("vhost")];
    if !args.contains("--endpoint ") {
        all.extend(["--endpoint".into(), format!("00:02.0,sim={}", at("endpoint"))]);
    }
    all.extend(args.split_whitespace().map(|arg| arg.replace("DIR", dir.path().to_str().unwrap())));
    daemon::command(10).args(all).output().unwrap()
}

/// A clean end with an error that contains `message`.
fn refusal(output: &Output, message: &str) -> Result<(), String> {
    let error = String::from_utf8_lossy(&output.stderr);
    let refused = matches!(output.status.code(), Some(1..));
    match refused && error.contains(message) && !error.contains("panicked") {
        true => Ok(()),
        false => Err(format!("expected {message:?}, got {}: {error}", output.status)),
    }
}

#[test]
fn a_bad_value_is_named_in_the_message() {
    let rows = [
        ("--page-size 0", "0"),
        ("--page-size 3000", "3000"),
        ("--page-size 2048x", "2048x"),
        ("--page-size=-4096", "-4096"),
        ("--page-size 99999999999999999999", "99999999999999999999"),
        ("--input-range 0x1000", "0x1000"),
        ("--input-range 0x2000-0x1000", "0x2000"),
        ("--input-range 0x2000-0x1fff", "0x2000"),
        ("--input-range zero-0x1fff", "zero"),
        ("--input-range 0-0x10000000000000000", "0x10000000000000000"),
        ("--boot-bypass maybe", "maybe"),
        ("--socket-mode 999", "999"),
        ("--socket-mode rw", "rw"),
        ("--socket-group no-such-group", "no-such-group"),
        ("--queue-size 0", "0"),
        ("--queue-size 100", "100"),
        ("--queue-size 65536", "65536"),
        ("--queue-size many", "many"),
        ("--reserved-region 0x1000", "0x1000"),
        ("--reserved-region 0x2000-0x1000", "0x2000"),
        ("--reserved-region 0x1000-0x1fff,type=other", "other"),
        ("--reserved-region 0x1000-0x1fff,kind=msi", "kind"),
        ("--reserved-region 0x1000-0x2fff --reserved-region 0x2000-0x3fff", "0x2000"),
        (
            "--reserved-region 0x1000-0x1fff,type=msi --reserved-region 0x3000-0x3fff,type=msi",
            "0x3000",
        ),
        ("--max-domains few", "few"),
        ("--max-mappings=-1", "-1"),
        ("--max-endpoints-per-domain none", "none"),
        ("--max-page-groups 0", "0"),
        ("--max-page-groups 32768", "32768"),
        ("--page-response-timeout never", "never"),
        ("--page-response-timeout 0", "0"),
        ("--page-response-timeout=-1", "-1"),
        ("--poll-us soon", "soon"),
        ("--sandbox maybe", "maybe"),
        ("--log-level loud", "loud"),
        ("--no-such-option", "--no-such-option"),
        ("left-over", "left-over"),
        ("--endpoint 00:02.0", "00:02.0"),
        ("--endpoint 00:02.0,sim=", "00:02.0"),
        ("--endpoint 00:02.0,real=DIR/e", "real"),
        ("--endpoint 00:20.0,sim=DIR/e", "00:20.0"),
        ("--endpoint 00:02.8,sim=DIR/e", "00:02.8"),
        ("--endpoint 100:02.0,sim=DIR/e", "100:02.0"),
        ("--endpoint 10000:00:02.0,sim=DIR/e", "10000:00:02.0"),
        ("--endpoint zz:02.0,sim=DIR/e", "zz:02.0"),
        ("--endpoint 02.0,sim=DIR/e", "02.0"),
        ("--endpoint 2,sim=DIR/e", "2"),
        ("--endpoint ,sim=DIR/e", "sim="),
        ("--endpoint 00:02.0,sim=DIR/e --endpoint 00:02.0,sim=DIR/f", "00:02.0"),
        ("--endpoint 00:02.0,sim=DIR/e --endpoint 0000:00:02.0,sim=DIR/f", "00:02.0"),
        ("--endpoint 00:02.0,sim=DIR/e --endpoint 00:03.0,sim=DIR/e", "/e"),
        ("--endpoint 00:02.0,sim=DIR/none/e", "/none/e"),
    ];
    let wrong: Vec<_> =
        rows.iter().filter_map(|(args, message)| refusal(&run_with(args), message).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn a_socket_is_required() {
    refusal(&run(&[]), "--socket-path").unwrap();
    refusal(&run(&["--endpoint", "00:02.0,sim=endpoint"]), "--socket-path").unwrap();
    let absent = "/nonexistent/directory/vhost";
    let dir = tempfile::tempdir().unwrap();
    let endpoint = format!("00:02.0,sim={}/endpoint", dir.path().display());
    refusal(&run(&["--socket-path", absent, "--endpoint", &endpoint]), absent).unwrap();
}

#[test]
fn a_socket_that_somebody_listens_on_is_not_taken_over() {
    let mut vm = Vm::realized("");
    let socket = vm.daemon.socket().display().to_string();
    let endpoint = format!("00:02.0,sim={socket}2");
    let output = run(&["--socket-path", &socket, "--endpoint", &endpoint]);
    refusal(&output, &socket).unwrap();
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
fn capabilities_are_printed_whatever_else_is_asked_for() {
    for args in [&["--print-capabilities"][..], &["--nonsense", "--print-capabilities", "x"]] {
        let output = run(args);
        assert_eq!(output.status.code(), Some(0));
        let printed: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
        assert_eq!(printed["type"], "iommu");
    }
}

#[test]
fn who_may_connect_is_said_by_options() {
    use std::os::unix::fs::{MetadataExt, PermissionsExt};
    let group = std::fs::metadata("/proc/self").unwrap().gid();
    let daemon = crate::vm::daemon(&format!("--socket-group {group}"));
    for socket in [daemon.socket(), daemon.endpoint_socket(0)] {
        let mode = std::fs::metadata(&socket).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o660, "{}", socket.display());
    }
    let daemon = crate::vm::daemon("--socket-mode 600");
    let mode = std::fs::metadata(daemon.socket()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
}
