//! Restarts and stops of the machine.

use super::{Guest, check_groups, for_each_guest, give_to_vfio};
use crate::vm::{A, B, Vm};
use testing::machine::wait_until;

for_each_guest!(restart_clears_all_state, mappings_survive_a_stop);

fn restart_clears_all_state(guest: Guest) {
    let mut vm = guest.boot();
    check_translation(&mut vm, guest);

    // A reboot by the guest, which stops drivers first.
    vm.run_to_restart("reboot -f");
    vm.run("load_modules virtio-iommu");
    check_translation(&mut vm, guest);

    // A reset of the machine during DMA.
    start_loop(&mut vm, guest);
    vm.reset();
    vm.run("load_modules virtio-iommu");
    check_translation(&mut vm, guest);
    vm.finish();
}

fn check_translation(vm: &mut Vm, guest: Guest) {
    check_groups(vm);
    give_to_vfio(vm);
    guest.dma(vm, &format!("verify {A} --pages 64"));
    guest.dma(vm, &format!("fault {B} --read --iova 0x123456000"));
    vm.expect_faults(&[(B, 0x1_2345_6000, 'R')]);
}

fn mappings_survive_a_stop(guest: Guest) {
    let mut vm = guest.boot();
    give_to_vfio(&mut vm);
    start_loop(&mut vm, guest);
    for _ in 0..3 {
        vm.qmp("stop");
        assert_eq!(vm.qmp("query-status")["status"], "paused");
        vm.qmp("cont");
        let rounds = rounds(&mut vm);
        wait_for_rounds(&mut vm, rounds + 5);
    }
    let output = vm.run("touch /tmp/stop; wait_for_file /tmp/status; cat /tmp/loop /tmp/status");
    assert!(output.ends_with("rounds verified\n0"), "{output}");

    // New domains and faults still work.
    check_translation(&mut vm, guest);
    vm.finish();
}

/// Starts DMA in the background, and waits for the first rounds.
fn start_loop(vm: &mut Vm, guest: Guest) {
    let command = format!("guest-dma --api {} loop {A}", guest.api);
    let files = "--until-file /tmp/stop --progress /tmp/rounds >/tmp/loop 2>&1";
    vm.run(&format!("({command} {files}; echo $? >/tmp/status) &"));
    wait_for_rounds(vm, 5);
}

fn wait_for_rounds(vm: &mut Vm, count: u64) {
    wait_until(&format!("round {count} of the loop"), || {
        let ended = vm.try_run("cat /tmp/loop /tmp/status");
        assert_ne!(ended.status, 0, "the loop has exited:\n{}", ended.text);
        (rounds(vm) >= count).then_some(())
    });
}

/// Returns the number of completed rounds.
fn rounds(vm: &mut Vm) -> u64 {
    let output = vm.try_run("cat /tmp/rounds 2>/dev/null");
    if output.status == 0 { output.text.parse().unwrap() } else { 0 }
}
