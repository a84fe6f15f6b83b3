//! The tests. Those of `tests/inside` and `tests/frontend` run in the host.

use testing::daemon::NOT_ON_MOCK;
use testing::testbed::report;

use crate::chain::MOCK;
use crate::host::{EDU, Host, Kernel, NVME};

/// Limit of a wait of tests in the host, which is slow.
const WAIT_LIMIT_SECONDS: u32 = 120;

/// Runs tests in the host: of each program, those with a name that contains one of the given
/// strings and none of `skip`. Reports of QEMU and of the host's kernel may contain `tolerated`.
fn run(kernel: Kernel, programs: &[(&str, &str)], skip: &[&str], tolerated: &[&str]) {
    let mut host = Host::boot(kernel, "1G");
    host.run(&format!("give_to_vfio {} {EDU}", NVME.join(" ")));
    let skip: String = skip.iter().map(|name| format!(" --skip {name}")).collect();
    // The debug kernel has no seccomp.
    let sandbox = if matches!(kernel, Kernel::Debug) { "VUI_SANDBOX=off" } else { "" };
    for (program, tests) in programs {
        let command = format!("/host/{program} --test-threads=1 {tests}{skip}");
        let output = host.run(&format!("cd /tmp && {} {sandbox} {command} 2>&1", variables()));
        let passed = passed(&output);
        let passed = passed.unwrap_or_else(|| panic!("the tests failed:\n{output}"));
        assert_ne!(passed, 0, "no tests match {tests}:\n{output}");
        report(&format!("{program} {tests}: {passed} tests passed in the host"));
    }
    host.finish(tolerated);
}

/// Environment variables of the tests in the host, for a shell.
fn variables() -> String {
    format!(
        "VUI_DAEMON=/host/vhost-user-iommu VUI_ENDPOINT_KIND=mock \
         VUI_WAIT_LIMIT={WAIT_LIMIT_SECONDS} VUI_NVME='{}' VUI_EDU={EDU}",
        NVME.join(" ")
    )
}

/// Returns the number of passed tests from the output of Rust's test harness.
fn passed(output: &str) -> Option<usize> {
    let result = output.lines().find_map(|line| line.strip_prefix("test result: ok. "))?;
    result.split_once(" passed")?.0.parse().ok()
}

#[test]
fn front_end_tests_pass_on_mock_devices() {
    run(Kernel::Small, &[("frontend", "suite::")], &NOT_ON_MOCK, &[]);
}

#[test]
fn mock_devices_work_with_lockdep_and_kasan() {
    let programs =
        [("inside", "mock:: queue:: sweep::"), ("frontend", "stress::seed_1 outstanding::")];
    run(Kernel::Debug, &programs, &NOT_ON_MOCK, &[]);
}

#[test]
fn vfio_devices_work_on_a_hardware_iommu() {
    // QEMU reports accesses that its IOMMU blocks, as the tests expect.
    let blocked = ["vtd_iommu_translate: ", "vtd_iova_to_", "New fault is not recorded"];
    run(Kernel::Small, &[("inside", "vfio::")], &[], &blocked);
}

/// The prerequisites of the other tests.
#[test]
fn host_has_iommufd_and_assignable_devices() {
    let mut host = Host::boot(Kernel::Small, "1G");
    host.run("[ -c /dev/iommu ]");
    for function in NVME.into_iter().chain([EDU]) {
        let device = format!("/sys/bus/pci/devices/{function}");
        let group = host.run(&format!("basename $(readlink {device}/iommu_group)"));
        assert_eq!(host.run(&format!("ls {device}/iommu_group/devices")), function);
        host.run(&format!("give_to_vfio {function}"));
        let cdev = host.run(&format!("ls {device}/vfio-dev"));
        host.run(&format!("[ -c /dev/vfio/devices/{cdev} ]"));
        report(&format!("{function}: IOMMU group {group}, {cdev}"));
    }
    host.finish(&[]);
}

/// From a page fault of the process to the host's `/dev/iommu`, and back.
#[test]
fn nested_guest_process_shares_memory_with_mock_device() {
    let mut host = Host::boot(Kernel::Small, "2G");
    let counters = MOCK.run(&mut host, &["touch", "forbidden"]);
    assert!(counters["invalid"] > 0, "{counters:?}");
    host.finish(&[]);
}
