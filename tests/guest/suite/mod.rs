//! The tests. Those of a [`Guest`] run for each of them.

mod devices;
mod driver;
mod machine;
mod misconfiguration;
mod sva;

use crate::kernel::Kernel;
use crate::vm::{A, B, Vm};

/// A kernel, and the interface of VFIO that programs use in it.
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

    /// Runs guest-dma, which must succeed.
    fn dma(self, vm: &mut Vm, arguments: &str) -> String {
        vm.run(&format!("guest-dma --api {} {arguments}", self.api))
    }
}

/// Makes a test for each guest of functions that take one.
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

/// Gives both accelerators to programs.
fn give_to_vfio(vm: &mut Vm) {
    vm.run(&format!("give_to_vfio 0000:{A} 0000:{B}"));
}

/// `ADDRESS GROUP` for each PCI function that is in an IOMMU group.
fn groups(vm: &mut Vm) -> Vec<(String, String)> {
    let text = vm.run(
        "for link in /sys/bus/pci/devices/*/iommu_group; do \
         if [ -e $link ]; then echo $(basename $(dirname $link)) $(basename $(readlink $link)); fi; \
         done",
    );
    let pair = |line: &str| {
        let (function, group) = line.split_once(' ').unwrap();
        (function.to_owned(), group.to_owned())
    };
    text.lines().map(pair).collect()
}

/// That exactly the functions of the VIOT table are behind the IOMMU, each in its own group.
fn check_groups(vm: &mut Vm) {
    let groups = groups(vm);
    let functions: Vec<_> = groups.iter().map(|(function, _)| function.as_str()).collect();
    assert_eq!(functions, [format!("0000:{A}"), format!("0000:{B}")], "{groups:?}");
    assert_ne!(groups[0].1, groups[1].1, "{groups:?}");
}
