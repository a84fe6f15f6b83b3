//! The IOMMU's driver leaves and comes back.

use super::{Guest, check_groups, for_each_guest, give_to_vfio, groups};
use crate::bed::Kernel;
use crate::vm::{A, B, Vm};

for_each_guest!(driver_leaves_and_comes_back);

fn driver_leaves_and_comes_back(guest: Guest) {
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

/// Takes the endpoints away first: Linux 7.3 follows a null pointer when the driver is unbound
/// with endpoints behind it (viommu_remove removes the sysfs entries that are used after it).
fn reload(vm: &mut Vm, kernel: Kernel) {
    for endpoint in [A, B] {
        vm.run(&format!("echo 1 >/sys/bus/pci/devices/0000:{endpoint}/remove"));
    }
    assert_eq!(groups(vm), []);
    match kernel {
        Kernel::Stock => vm.run("modprobe -r virtio-iommu && modprobe virtio-iommu"),
        Kernel::Small => vm.run(
            "cd /sys/bus/virtio/drivers/virtio_iommu && name=$(basename $(ls -d virtio*)) && \
             echo $name >unbind && echo $name >bind",
        ),
    };
    vm.run("echo 1 >/sys/bus/pci/rescan");
}
