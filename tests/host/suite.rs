//! The tests. Those of `tests/inside` and `tests/frontend` run in the host.

use testing::testbed::report;

use crate::chain::MOCK;
use crate::host::{EDU, Host, Kernel, NVME};

/// Limit of a wait of tests in the host, which is slow.
const WAIT_LIMIT_SECONDS: u32 = 120;

/// Runs tests in the host: of each program, those whose names contain one of the texts and none of
/// `skip`. QEMU and the host's kernel may report what is `tolerated`.
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
        let passed = passed.unwrap_or_else(|| panic!("no result of the tests in\n{output}"));
        assert_ne!(passed, 0, "there is no test in {tests}:\n{output}");
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

/// How many, in what the test harness of Rust says.
fn passed(output: &str) -> Option<usize> {
    let result = output.lines().find_map(|line| line.strip_prefix("test result: ok. "))?;
    result.split_once(" passed")?.0.parse().ok()
}

/// Front-end tests that do not hold of the kernel's endpoints, and why.
const OTHERWISE: [&str; 26] = [
    // The kernel's mock makes groups of one page.
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
    // It does not hear of FAILURE, nor are requests reported that come through no attachment.
    "failure_stops_the_endpoint",
    "outstanding::requests_while_no_front_end",
    "page_request::where_nothing_is_attached",
    // Memory comes with the driver's start, not with the VMM's own connection.
    "bypass::a_write_of_bypass_takes_effect",
    "bypass::bypass_holds_before_and_after",
    "bypass::dma_works_before_there_is_a_front_end",
    "dma::memory_that_the_vmm_takes_away",
    // A mapping to no memory is a hole in the kernel's page table.
    "dma::a_mapping_to_what_is_not_memory",
    // Addresses have 38 bits.
    "config::the_defaults_are_shown",
    "config::the_options_are_shown",
    "dma::mappings_at_both_ends",
    "map::ranges_at_both_ends",
    "unmap::the_whole_address_space",
    // Takes too long in an emulated machine: 65,552 groups one after the other.
    "page_request::an_id_is_not_used_again",
];

#[test]
fn the_front_ends_tests_on_the_kernels_mock() {
    run(Kernel::Small, &[("frontend", "suite::")], &OTHERWISE, &[]);
}

#[test]
fn faults_and_mappings_of_the_kernels_mock_while_it_checks_its_locks() {
    let programs =
        [("inside", "mock:: queue:: sweep::"), ("frontend", "stress::seed_1 outstanding::")];
    run(Kernel::Debug, &programs, &OTHERWISE, &[]);
}

#[test]
fn devices_on_a_hardware_iommu() {
    // What QEMU says of accesses that its IOMMU stops, as it is meant to.
    let stopped = ["vtd_iommu_translate: ", "vtd_iova_to_", "New fault is not recorded"];
    run(Kernel::Small, &[("inside", "vfio::")], &[], &stopped);
}

/// Needed by the rest: what tests in the host find there.
#[test]
fn a_host_has_an_iommu_and_devices_to_assign() {
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

/// From the process's page fault to the host's `/dev/iommu`, and back.
#[test]
fn a_process_in_a_guest_and_an_accelerator_on_the_kernels_mock() {
    let mut host = Host::boot(Kernel::Small, "2G");
    let counters = MOCK.run(&mut host, &["touch", "refuse"]);
    assert!(counters["invalid"] > 0, "{counters:?}");
    host.finish(&[]);
}
