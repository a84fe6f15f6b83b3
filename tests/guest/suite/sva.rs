//! Processes that share their address spaces with accelerators, on a kernel that checks its locks.
//!
//! `guest-dma sva` does it, and verifies; see `examples/guest-dma/sva`.

use crate::kernel::Kernel;
use crate::vm::{A, B, Builder, C, D, Vm};
use testing::counters::{self, Counters};
use testing::machine::kernel_log;

/// Page requests one by one, and in groups; and how the program waits.
const WAYS: [&str; 2] = ["--poll", "--group-pages 32"];

const SWAP_MIB: u64 = 256;
const DISK_MIB: u64 = 64;

fn builder() -> Builder {
    Vm::builder(Kernel::Debug)
}

/// Boots, and gives these accelerators to whoever opens them.
fn boot(builder: Builder, endpoints: &[&'static str]) -> Vm {
    let mut vm = builder.endpoints(endpoints).boot();
    for endpoint in endpoints {
        vm.run(&format!("give_to_sva 0000:{endpoint}"));
    }
    vm
}

/// Runs a scenario on an endpoint, each way.
fn sva(vm: &mut Vm, endpoint: &str, scenario: &str) {
    for way in WAYS {
        sva_once(vm, endpoint, &format!("{way} {scenario}"));
    }
}

fn sva_once(vm: &mut Vm, endpoint: &str, arguments: &str) {
    let output = vm.run(&format!("guest-dma sva {endpoint} {arguments}"));
    assert!(output.starts_with("ok: "), "{output}");
}

/// Ends the machine, whose kernel must still check its locks.
fn finish(mut vm: Vm) -> Vec<Counters> {
    check_locks(&mut vm);
    finish_counted(vm)
}

/// Ends the machine. All endpoints must have been at work, and all groups been answered in time.
fn finish_counted(vm: Vm) -> Vec<Counters> {
    let counts = vm.finish();
    counts.iter().for_each(counters::assert_all_answered);
    counts
}

/// The kernel must still check its locks.
fn check_locks(vm: &mut Vm) {
    let answer = vm.run(kernel_log::LOCKDEP_COMMAND);
    kernel_log::assert_lockdep_active(&answer, &vm.kernel_log());
}

#[test]
fn memory_that_the_device_touches_first() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "touch");
    sva(&mut vm, A, "stack");
    sva_once(&mut vm, A, "--group-pages 32 stream --total 128");
    let counts = finish(vm);
    assert!(counts[0]["requests"] > counts[0]["groups"], "no group of several: {counts:?}");
}

#[test]
fn accesses_that_the_process_may_not_make() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "refuse");
    let counts = finish(vm);
    assert!(counts[0]["invalid"] > 0, "{counts:?}");
}

#[test]
fn files_and_huge_pages() {
    let mut vm = boot(builder().disk(DISK_MIB), &[A]);
    vm.run("use_disk /dev/vda /mnt");
    for dir in ["/tmp", "/mnt"] {
        sva(&mut vm, A, &format!("file --dir {dir}"));
    }
    sva(&mut vm, A, "huge");
    vm.run("umount /mnt");
    finish(vm);
}

#[test]
fn copy_on_write_and_mappings_that_change_under_dma() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "fork");
    sva(&mut vm, A, "change");
    finish(vm);
}

#[test]
fn pages_that_are_swapped_out_or_move_under_dma() {
    let mut vm = boot(builder().disk(SWAP_MIB), &[A]);
    vm.run("use_swap /dev/vda");
    sva(&mut vm, A, "swap");
    sva(&mut vm, A, "migrate");
    finish(vm);
}

#[test]
fn processes_killed_in_mid_dma_and_32_on_one_accelerator() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "kill");
    sva(&mut vm, A, "processes");
    finish(vm);
}

#[test]
fn four_accelerators_at_once() {
    let all = [A, B, C, D];
    let mut vm = boot(builder(), &all);
    sva(&mut vm, A, &format!("several {B} {C} {D}"));
    // Processes of their own, each with one of them.
    let run = |endpoint| format!("guest-dma sva {endpoint} touch & ");
    let wait = "for job in $(jobs -p); do wait $job || exit; done";
    vm.run(&format!("{}{wait}", all.map(run).concat()));
    assert_eq!(finish(vm).len(), all.len());
}

/// The machine has not the memory to keep what the device has touched. Checks of locks would take
/// minutes here.
#[test]
fn a_gibibyte_through_64_mebibytes() {
    let mut vm = boot(Vm::builder(Kernel::Small).memory("512M"), &[A]);
    vm.run("echo 1 >/proc/sys/vm/overcommit_memory");
    sva_once(&mut vm, A, "--group-pages 32 stream");
    finish_counted(vm);
}

#[test]
fn machines_that_are_paused_and_restarted_in_mid_dma() {
    let mut vm = boot(builder(), &[A]);
    start(&mut vm, "latency --faults 4000");
    for _ in 0..5 {
        vm.qmp("stop");
        assert_eq!(vm.qmp("query-status")["status"], "paused");
        vm.qmp("cont");
        vm.run("sleep 0.1");
    }
    let output = vm.run("wait_for_file /tmp/status; cat /tmp/output /tmp/status");
    assert!(output.starts_with("ok: latency") && output.ends_with("\n0"), "{output}");

    start(&mut vm, "endless");
    vm.run("until grep -q running /tmp/output; do sleep 0.1; done");
    vm.reset();
    vm.run(&format!("give_to_sva 0000:{A}"));
    sva(&mut vm, A, "touch");
    check_locks(&mut vm);
    let counts = vm.finish();
    assert_eq!(counts[0]["timed out"], 0, "{counts:?}");
}

/// Runs a scenario in the background.
fn start(vm: &mut Vm, scenario: &str) {
    let command = format!("guest-dma sva {A} {scenario} >/tmp/output 2>&1");
    vm.run(&format!("({command}; echo $? >/tmp/status) &"));
}
