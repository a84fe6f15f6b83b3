//! The virtio-iommu driver's reports of faults.

use crate::common::kernel_log::driver_lines;

/// Those in a kernel log, from the reason on.
pub fn all(log: &str) -> Vec<&str> {
    driver_lines(log).filter(|text| text.contains(" fault from EP ")).collect()
}

/// A fault as the driver reports it.
pub fn report(endpoint: &str, address: u64, access: char) -> String {
    format!("page fault from EP {} at {address:#x} [{access}]", endpoint_id(endpoint))
}

/// A function's number for the virtual IOMMU, from `BB:DD.F`.
fn endpoint_id(bdf: &str) -> u32 {
    let number = |text: &str| u32::from_str_radix(text, 16).unwrap();
    let (bus, rest) = bdf.split_once(':').unwrap();
    let (device, function) = rest.split_once('.').unwrap();
    number(bus) << 8 | number(device) << 3 | number(function)
}
