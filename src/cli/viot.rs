//! The ACPI table that tells a guest which PCI functions are behind the virtio-iommu device.
//!
//! Virtual I/O Translation table, ACPI 6.5, 5.2.34. QEMU makes none for a vhost-user device, but
//! takes one with `-acpitable file=`.

use crate::cli::bdf::Bdf;

/// Sizes in bytes.
const HEADER: usize = 48;
const NODE_PCI_IOMMU: usize = 16;
const NODE_PCI_RANGE: usize = 24;

/// Types of nodes.
const TYPE_PCI_RANGE: u8 = 1;
const TYPE_VIRTIO_PCI_IOMMU: u8 = 3;

/// Where the checksum is in the header.
const CHECKSUM: usize = 9;

/// The table for one virtio-iommu function and the endpoints behind it. Every endpoint has a
/// range node of its own: what is not listed is not translated.
///
/// # Errors
/// When the IOMMU is listed as its own endpoint, an endpoint is listed twice, or the table gets
/// too long for its 16-bit node count and offsets.
pub fn table(iommu: Bdf, endpoints: &[Bdf]) -> Result<Vec<u8>, String> {
    check(iommu, endpoints)?;
    let length = HEADER + NODE_PCI_IOMMU + endpoints.len() * NODE_PCI_RANGE;
    let mut table = header(length as u32, endpoints.len() as u16 + 1);
    table.extend(iommu_node(iommu));
    table.extend(endpoints.iter().flat_map(|&endpoint| range_node(endpoint)));
    table[CHECKSUM] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    Ok(table)
}

fn check(iommu: Bdf, endpoints: &[Bdf]) -> Result<(), String> {
    if endpoints.contains(&iommu) {
        return Err(format!("{iommu} is the IOMMU and cannot be an endpoint behind itself"));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..index].contains(endpoint) {
            return Err(format!("endpoint {endpoint} is given twice"));
        }
    }
    let most = (usize::from(u16::MAX) - HEADER - NODE_PCI_IOMMU) / NODE_PCI_RANGE;
    if endpoints.len() > most {
        return Err(format!("{} endpoints; the table has room for {most}", endpoints.len()));
    }
    Ok(())
}

/// The standard header, then node count, offset of the first node, reserved.
fn header(length: u32, nodes: u16) -> Vec<u8> {
    let mut header = Vec::with_capacity(length as usize);
    header.extend(b"VIOT");
    header.extend(length.to_le_bytes());
    header.extend([0, 0]); // revision, checksum
    header.extend(b"VUIOMM"); // OEM
    header.extend(b"VHOSTUSR"); // OEM's name of the table
    header.extend(1u32.to_le_bytes()); // OEM revision
    header.extend(b"VUIO"); // creator
    header.extend(1u32.to_le_bytes()); // creator's revision
    header.extend(nodes.to_le_bytes());
    header.extend((HEADER as u16).to_le_bytes());
    header.extend([0; 8]);
    header
}

fn iommu_node(iommu: Bdf) -> [u8; NODE_PCI_IOMMU] {
    let mut node = [0; NODE_PCI_IOMMU];
    node[0] = TYPE_VIRTIO_PCI_IOMMU;
    node[2..4].copy_from_slice(&(NODE_PCI_IOMMU as u16).to_le_bytes());
    node[4..6].copy_from_slice(&iommu.segment.to_le_bytes());
    node[6..8].copy_from_slice(&iommu.requester_id().to_le_bytes());
    node
}

/// One function, translated by the only IOMMU node.
fn range_node(endpoint: Bdf) -> [u8; NODE_PCI_RANGE] {
    let mut node = [0; NODE_PCI_RANGE];
    node[0] = TYPE_PCI_RANGE;
    node[2..4].copy_from_slice(&(NODE_PCI_RANGE as u16).to_le_bytes());
    node[4..8].copy_from_slice(&endpoint.endpoint().0.to_le_bytes());
    node[8..10].copy_from_slice(&endpoint.segment.to_le_bytes());
    node[10..12].copy_from_slice(&endpoint.segment.to_le_bytes());
    node[12..14].copy_from_slice(&endpoint.requester_id().to_le_bytes());
    node[14..16].copy_from_slice(&endpoint.requester_id().to_le_bytes());
    node[16..18].copy_from_slice(&(HEADER as u16).to_le_bytes());
    node
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn the_table_lists_each_endpoint_and_sums_to_zero() {
        let table = table(bdf("00:01.0"), &[bdf("00:02.0"), bdf("00:03.1")]).unwrap();
        assert_eq!(&table[..4], b"VIOT");
        assert_eq!(table.len(), 48 + 16 + 2 * 24);
        assert_eq!(u32::from_le_bytes(table[4..8].try_into().unwrap()) as usize, table.len());
        assert_eq!(table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(table[36..40], [3, 0, 48, 0]);
        assert_eq!(table[48..64], [3, 0, 16, 0, 0, 0, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        let node = [1, 0, 24, 0, 0x19, 0, 0, 0, 0, 0, 0, 0, 0x19, 0, 0x19, 0, 48, 0];
        assert_eq!(table[88..106], node);
    }

    #[test]
    fn contradictions_are_refused() {
        let [a, b] = [bdf("00:01.0"), bdf("00:02.0")];
        assert!(table(a, &[a]).unwrap_err().contains("0000:00:01.0"));
        assert!(table(a, &[b, b]).unwrap_err().contains("0000:00:02.0"));
    }
}
