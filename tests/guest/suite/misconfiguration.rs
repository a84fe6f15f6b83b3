//! Misconfigurations by the user.

use super::{SMALL, check_groups, give_to_vfio};
use crate::kernel::Kernel;
use crate::vm::{A, B, Vm};

const GRANULE: &str = "granule 0x10000 larger than system page size 0x1000";

/// The guest's kernel reports it, and only endpoints do not work.
#[test]
fn kernel_reports_pages_larger_than_its_own() {
    let options = "--page-size 64K";
    let mut vm = Vm::builder(Kernel::Small).options(options).tolerate(GRANULE).boot();
    assert!(vm.kernel_log().contains(GRANULE), "the kernel does not report: {GRANULE}");
    let output = vm.run_to_fail(&format!("guest-dma verify {A}"));
    assert!(output.contains("0000:00:02.0 is not behind an IOMMU"), "{output}");
    vm.finish();
}

/// The endpoint is not behind the IOMMU, and the others work.
#[test]
fn endpoint_missing_in_viot_is_not_translated() {
    let mut vm = Vm::builder(Kernel::Small).unlisted("00:05.0").boot();
    check_groups(&mut vm);
    let output = vm.run_to_fail("guest-dma verify 00:05.0");
    assert!(output.contains("0000:00:05.0"), "{output}");
    give_to_vfio(&mut vm);
    SMALL.dma(&mut vm, &format!("two {A} {B} --iova 0x6000000000"));
    vm.expect_faults(&[A, B, B].map(|endpoint| (endpoint, 0x60_0000_0000, 'R')));
    vm.finish();
}
