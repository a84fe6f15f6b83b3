//! The tests. Those of `tests/inside` and `tests/frontend` run in the host.

use testing::testbed::report;

use crate::chain::MOCK;
use crate::host::{EDU, Host, Kernel, NVME};

/// Limit of a wait of tests in the host, which is slow.
const WAIT_LIMIT_SECONDS: u32 = 120;

/// Runs tests in the host: of each program, those whose names contain one of the texts and none of
/// `skip`, each of which has to match a test of the front end. QEMU and the host's kernel may report
/// what is `tolerated`.
fn run(kernel: Kernel, programs: &[(&str, &str)], skip: &[&str], tolerated: &[&str]) {
    let mut host = Host::boot(kernel, "1G");
    host.run(&format!("give_to_vfio {} {EDU}", NVME.join(" ")));
    let tests = host.run("/host/frontend --list");
    let stale: Vec<_> = skip.iter().filter(|name| !tests.contains(**name)).collect();
    assert!(stale.is_empty(), "no test matches {stale:?}");
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

/// Front-end tests that cannot pass with endpoints on the mock device, with reasons.
const NOT_ON_MOCK: [&str; 26] = [
    // The mock device makes groups of one page.
    "outstanding::a_group_of_which_a_part_was_delivered",
    "outstanding::after_a_reset_no_event_of_a_group_before",
    "page_request::a_buffer_below_48_bytes",
    "page_request::the_requests_of_a_group_follow_each_other",
    "page_request::without_the_feature_each_request",
    "page_response::a_group_of_which_a_part_was_delivered",
    "starved::a_group_larger_than_the_queue",
    "starved::endpoints_take_turns_group_by_group",
    "starved::nor_do_faults_that_are_only_reported",
    "starved::nothing_comes_between_the_events_of_a_group",
    "starved::requests_are_served_while_groups_wait",
    "starved::the_turns_hold_for_groups_of_any_length",
    // It does not receive FAILURE, and the kernel does not report requests without attachment.
    "failure_stops_the_endpoint",
    "outstanding::requests_while_no_front_end",
    "page_request::where_nothing_is_attached",
    // Guest memory is that of the vhost-user connection, not that of the vfio-user connection.
    "bypass::writing_bypass_takes_effect_immediately",
    "bypass::bypass_applies_before_and_after_driver_start",
    "bypass::boot_bypass_allows_dma_before_front_end",
    "dma::memory_that_the_vmm_takes_away",
    // A mapping to addresses without memory is not in the kernel's page table.
    "dma::a_mapping_to_what_is_not_memory",
    // Addresses have 38 bits.
    "config::config_space_contains_defaults",
    "config::config_space_contains_options",
    "dma::mappings_at_both_ends",
    "map::map_and_unmap_at_both_ends",
    "unmap::unmap_of_whole_address_space",
    // Too slow in an emulated machine: 65,552 sequential groups.
    "page_request::an_id_is_not_used_again",
];

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
    let counters = MOCK.run(&mut host, &["touch", "refuse"]);
    assert!(counters["invalid"] > 0, "{counters:?}");
    host.finish(&[]);
}
