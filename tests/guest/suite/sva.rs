//! Shared virtual addressing: processes whose address spaces accelerators use, on a kernel that
//! checks its locks. `guest-dma sva` runs and verifies each scenario; see `examples/guest-dma/sva`.

use crate::kernel::Kernel;
use crate::vm::{A, B, Builder, C, D, Vm};
use testing::counters::{self, Counters};
use testing::machine::kernel_log;

/// Options of `guest-dma sva`: groups of one page request and of several, polling and interrupts.
const VARIANTS: [&str; 2] = ["--poll", "--group-pages 32"];

const SWAP_MIB: u64 = 256;
const DISK_MIB: u64 = 64;

fn builder() -> Builder {
    Vm::builder(Kernel::Debug)
}

/// Boots, and binds these accelerators to the driver for shared virtual addressing.
fn boot(builder: Builder, endpoints: &[&'static str]) -> Vm {
    let mut vm = builder.endpoints(endpoints).boot();
    for endpoint in endpoints {
        vm.run(&format!("give_to_sva 0000:{endpoint}"));
    }
    vm
}

/// Runs a scenario on an endpoint, in all variants.
fn sva(vm: &mut Vm, endpoint: &str, scenario: &str) {
    for options in VARIANTS {
        sva_once(vm, endpoint, &format!("{options} {scenario}"));
    }
}

fn sva_once(vm: &mut Vm, endpoint: &str, arguments: &str) {
    let output = vm.run(&format!("guest-dma sva {endpoint} {arguments}"));
    assert!(output.starts_with("ok: "), "{output}");
}

/// Powers the machine off; its kernel must still check its locks.
fn finish(mut vm: Vm) -> Vec<Counters> {
    check_locks(&mut vm);
    finish_counted(vm)
}

/// Powers the machine off. All endpoints must have made page requests, and all groups must have been
/// completed in time.
fn finish_counted(vm: Vm) -> Vec<Counters> {
    let counts = vm.finish();
    counts.iter().for_each(counters::assert_all_completed_by_driver);
    counts
}

/// Checks that the kernel still checks its locks.
fn check_locks(vm: &mut Vm) {
    let answer = vm.run(kernel_log::LOCKDEP_COMMAND);
    kernel_log::assert_lockdep_active(&answer, &vm.kernel_log());
}

#[test]
fn device_touches_pages_first() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "touch");
    sva(&mut vm, A, "stack");
    sva_once(&mut vm, A, "--group-pages 32 stream --total 128");
    let counts = finish(vm);
    assert!(
        counts[0]["requests"] > counts[0]["groups"],
        "no group has several page requests: {counts:?}"
    );
}

#[test]
fn forbidden_accesses_are_denied() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "forbidden");
    let counts = finish(vm);
    assert!(counts[0]["invalid"] > 0, "{counts:?}");
}

#[test]
fn file_mappings_and_huge_pages_work() {
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
fn dma_follows_copy_on_write_and_changed_mappings() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "fork");
    sva(&mut vm, A, "change");
    finish(vm);
}

#[test]
fn dma_follows_swapped_and_migrated_pages() {
    let mut vm = boot(builder().disk(SWAP_MIB), &[A]);
    vm.run("use_swap /dev/vda");
    sva(&mut vm, A, "swap");
    sva(&mut vm, A, "migrate");
    finish(vm);
}

#[test]
fn processes_are_killed_during_dma_and_share_an_accelerator() {
    let mut vm = boot(builder(), &[A]);
    sva(&mut vm, A, "kill");
    sva(&mut vm, A, "processes");
    finish(vm);
}

#[test]
fn four_accelerators_work_concurrently() {
    let all = [A, B, C, D];
    let mut vm = boot(builder(), &all);
    sva(&mut vm, A, &format!("several {B} {C} {D}"));
    // One process for each of them.
    let run = |endpoint| format!("guest-dma sva {endpoint} touch & ");
    let wait = "for job in $(jobs -p); do wait $job || exit; done";
    vm.run(&format!("{}{wait}", all.map(run).concat()));
    assert_eq!(finish(vm).len(), all.len());
}

/// The device touches more than the machine's memory; the program keeps 64 MiB of it resident. Lock
/// checks would take minutes here.
#[test]
fn stream_larger_than_memory_completes() {
    let mut vm = boot(Vm::builder(Kernel::Small).memory("512M"), &[A]);
    vm.run("echo 1 >/proc/sys/vm/overcommit_memory");
    sva_once(&mut vm, A, "--group-pages 32 stream");
    finish_counted(vm);
}

#[test]
fn dma_continues_after_a_stop_and_ends_with_a_reset() {
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
