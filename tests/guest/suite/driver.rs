//! Unloading and reloading the virtio-iommu driver.

use super::{Guest, check_groups, for_each_guest, give_to_vfio, groups};
use crate::kernel::Kernel;
use crate::vm::{A, B, Vm};

for_each_guest!(dma_works_after_the_driver_is_reloaded);

fn dma_works_after_the_driver_is_reloaded(guest: Guest) {
    let mut vm = guest.boot();
    give_to_vfio(&mut vm);
    guest.dma(&mut vm, &format!("verify {A} --pages 64"));
    for _ in 0..2 {
        reload(&mut vm, guest.kernel);
        check_groups(&mut vm);
        give_to_vfio(&mut vm);
        guest.dma(&mut vm, &format!("verify {A} --pages 64"));
        guest.dma(&mut vm, &format!("fault {B} --read --iova 0x123456000"));
        vm.expect_faults(&[(B, 0x1_2345_6000, 'R')]);
    }
    vm.finish();
}

fn reload(vm: &mut Vm, kernel: Kernel) {
    match kernel {
        Kernel::Stock => reload_module(vm),
        Kernel::Small | Kernel::Debug => rebind(vm),
    }
}

/// Removes the endpoints first: Linux 7.3 dereferences a null pointer when the driver is unloaded
/// while it has endpoints. The small kernel has a fix (guest/linux).
fn reload_module(vm: &mut Vm) {
    for endpoint in [A, B] {
        vm.run(&format!("echo 1 >/sys/bus/pci/devices/0000:{endpoint}/remove"));
    }
    vm.run("modprobe -r virtio-iommu");
    assert_eq!(groups(vm), []);
    vm.run("modprobe virtio-iommu");
    vm.run("echo 1 >/sys/bus/pci/rescan");
}

/// Unbinds the driver while it has endpoints; only their own drivers are unbound before.
fn rebind(vm: &mut Vm) {
    for endpoint in [A, B] {
        vm.run(&format!("echo 0000:{endpoint} >/sys/bus/pci/drivers/vfio-pci/unbind"));
    }
    let drivers = "/sys/bus/virtio/drivers/virtio_iommu";
    let name = vm.run(&format!("basename $(ls -d {drivers}/virtio*)"));
    vm.run(&format!("echo {name} >{drivers}/unbind"));
    assert_eq!(groups(vm), []);
    vm.run(&format!("echo {name} >{drivers}/bind"));
}
