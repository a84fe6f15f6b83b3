//! Fault reports of the guest's virtio-iommu driver.

/// Returns the report of a page fault.
pub fn report(endpoint: &str, address: u64, access: char) -> String {
    format!("page fault from EP {} at {address:#x} [{access}]", endpoint_id(endpoint))
}

/// Returns the endpoint ID of the function `BB:DD.F`.
fn endpoint_id(bdf: &str) -> u32 {
    let number = |text: &str| u32::from_str_radix(text, 16).unwrap();
    let (bus, rest) = bdf.split_once(':').unwrap();
    let (device, function) = rest.split_once('.').unwrap();
    number(bus) << 8 | number(device) << 3 | number(function)
}
