//! The `status` subcommand.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};

use testing::daemon::command;
use testing::metrics::METRICS;
use testing::paging::{Channel, INVALID};
use testing::request::status::NOENT;
use testing::request::{attach, detach};
use testing::vm::{EP0, NO_ENDPOINT, Vm};

const IOVA: u64 = 0x7000_0000;

fn status(socket: &Path) -> Command {
    let mut command = command(60);
    command.arg("status").arg("--metrics-socket").arg(socket);
    command
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

fn assert_fails(output: &Output, code: i32, words: &[&str]) {
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{error}");
    assert!(words.iter().all(|word| error.contains(word)), "{error}");
}

#[test]
fn status_prints_requests_and_endpoints() {
    let channel = Channel::new(1, 0, None);
    let mut vm = Vm::paging(METRICS);
    vm.open(channel);
    let group = vm.fault(channel, IOVA);
    vm.resolve(&group);
    vm.outcome(channel).unwrap();
    let group = vm.fault(channel, IOVA + 0x5000);
    vm.accel(0).read(IOVA, 8).unwrap_err();
    let output = status(&vm.daemon.file("metrics")).output().unwrap();
    vm.ok(group.response(INVALID));
    let table = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
    let lines: Vec<_> = table.lines().collect();
    assert!(lines[0].ends_with("front end: connected"), "{table}");
    // A DETACH at boot, ATTACH, two MAPs, PAGE_RESP.
    let summary = "requests 5, failed 1, mappings 2, domains 1, attachments 1";
    assert_eq!(lines[1], summary, "{table}");
    assert_eq!(lines.len(), 5 + 3, "{table}");
    // Sorted by address.
    assert_eq!(words(lines[5])[..10], words("0000:00:02.0 1 0 0 0 0 0 0 0 0"), "{table}");
    assert_eq!(words(lines[7])[..10], words("0001:02:03.4 0 0 0 0 1 0 0 0 1"), "{table}");
    assert_eq!(words(lines[5])[10..], ["-", "-"], "{table}");
    assert_eq!(words(lines[7]).len(), 14, "two times with their units: {table}");
}

#[test]
fn status_watch_ends_when_output_is_closed() {
    let mut vm = Vm::new(METRICS);
    let mut command = status(&vm.daemon.file("metrics"));
    let mut watch = command.arg("--watch").stdout(Stdio::piped()).spawn().unwrap();
    let lines = BufReader::new(watch.stdout.take().unwrap()).lines().map(Result::unwrap);
    let mut summaries = lines.filter(|line| line.starts_with("requests "));
    let first = summaries.next().unwrap();
    assert!(first.starts_with("requests 1, failed 1,"), "{first}");
    (0..10).for_each(|_| vm.expect(NOENT, detach(1, NO_ENDPOINT)));
    vm.ok(attach(1, EP0));
    let last = summaries.by_ref().take(5).find(|line| line.starts_with("requests 12 ("));
    assert!(last.is_some_and(|line| line.contains("/s), failed 11, mappings 0")));
    drop(summaries);
    assert_eq!(watch.wait().unwrap().code(), Some(0));
}

#[test]
fn status_reports_missing_metrics_socket() {
    let vm = Vm::new("");
    let absent = vm.daemon.file("absent");
    let output = status(&absent).output().unwrap();
    assert_fails(&output, 3, &[absent.to_str().unwrap(), "cannot connect", "--metrics-socket"]);
    // The socket of an endpoint, not of the metrics.
    let other = vm.daemon.endpoint_socket(0);
    let output = status(&other).output().unwrap();
    assert_fails(&output, 3, &[other.to_str().unwrap(), "--metrics-socket"]);
    // Options of the daemon are rejected.
    let output = command(10).args(["--poll-us", "1", "status"]).output().unwrap();
    assert_fails(&output, 2, &["status"]);
}
