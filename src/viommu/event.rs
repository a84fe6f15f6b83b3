//! Fault events: from a fault to the bytes that the driver reads.

use super::wire::{fault as wire, size};
use crate::iopf::{Fault, Reason};

/// `struct virtio_iommu_fault`, 24 bytes.
pub fn encode(fault: &Fault) -> [u8; size::FAULT] {
    let mut event = [0; size::FAULT];
    event[0] = match fault.reason {
        Reason::Domain => wire::R_DOMAIN,
        Reason::Mapping => wire::R_MAPPING,
    };
    event[4..8].copy_from_slice(&flags(fault).to_le_bytes());
    event[8..12].copy_from_slice(&fault.endpoint.0.to_le_bytes());
    event[16..24].copy_from_slice(&fault.address.0.to_le_bytes());
    event
}

fn flags(fault: &Fault) -> u32 {
    let read = if fault.access.read { wire::F_READ } else { 0 };
    let write = if fault.access.write { wire::F_WRITE } else { 0 };
    wire::F_ADDRESS | read | write
}
