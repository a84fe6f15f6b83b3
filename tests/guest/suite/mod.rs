//! The tests. Functions that accept a [`Guest`] run as a test for each guest.

mod devices;
mod driver;
mod machine;
mod misconfiguration;
mod qemu_args;
mod sva;

use crate::kernel::Kernel;
use crate::vm::{A, B, Vm};

/// A kernel, and the VFIO interface that programs use in it.
#[derive(Clone, Copy)]
pub struct Guest {
    kernel: Kernel,
    api: &'static str,
}

const STOCK: Guest = Guest { kernel: Kernel::Stock, api: "group" };
const SMALL: Guest = Guest { kernel: Kernel::Small, api: "cdev" };
const SMALL_GROUP: Guest = Guest { kernel: Kernel::Small, api: "group" };

impl Guest {
    fn boot(self) -> Vm {
        Vm::boot(self.kernel)
    }

    /// Runs `guest-dma`, which must succeed.
    fn dma(self, vm: &mut Vm, arguments: &str) -> String {
        vm.run(&format!("guest-dma --api {} {arguments}", self.api))
    }
}

/// Defines a test for each guest from functions that accept one.
macro_rules! for_each_guest {
    ($($test:ident),* $(,)?) => {
        mod stock {
            $(#[test] fn $test() { super::$test(crate::suite::STOCK); })*
        }
        mod small {
            $(#[test] fn $test() { super::$test(crate::suite::SMALL); })*
        }
    };
}
use for_each_guest;

/// Binds both accelerators to VFIO.
fn give_to_vfio(vm: &mut Vm) {
    vm.run(&format!("give_to_vfio 0000:{A} 0000:{B}"));
}

/// Returns PCI address and IOMMU group of each function that is in a group.
fn groups(vm: &mut Vm) -> Vec<(String, String)> {
    let text = vm.run(
        "for link in /sys/bus/pci/devices/*/iommu_group; do \
         if [ -e $link ]; then echo $(basename $(dirname $link)) $(basename $(readlink $link)); fi; \
         done",
    );
    let pairs = text.lines().map(|line| line.split_once(' ').unwrap());
    pairs.map(|(function, group)| (function.to_owned(), group.to_owned())).collect()
}

/// Checks that exactly the functions of the VIOT table are behind the IOMMU, each in its own group.
fn check_groups(vm: &mut Vm) {
    let groups = groups(vm);
    let functions: Vec<_> = groups.iter().map(|(function, _)| function.as_str()).collect();
    assert_eq!(functions, [format!("0000:{A}"), format!("0000:{B}")], "{groups:?}");
    assert_ne!(groups[0].1, groups[1].1, "{groups:?}");
}
