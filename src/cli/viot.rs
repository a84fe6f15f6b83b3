//! The Virtual I/O Translation table (VIOT, ACPI 6.5, 5.2.34), which lists the PCI functions
//! behind the virtio-iommu device.
//!
//! QEMU builds none for a vhost-user device, but loads one with `-acpitable file=`.

use crate::cli::bdf::Bdf;

/// Sizes of the header and of the nodes, in bytes.
const HEADER: usize = 48;
const NODE_PCI_IOMMU: usize = 16;
const NODE_PCI_RANGE: usize = 24;

/// Node types.
const TYPE_PCI_RANGE: u8 = 1;
const TYPE_VIRTIO_PCI_IOMMU: u8 = 3;

/// Offset of the checksum in the header.
const CHECKSUM: usize = 9;

/// An IOMMU and endpoints that no table can describe.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ViotError {
    /// The IOMMU is listed as an endpoint.
    #[error("{0} is the IOMMU, which cannot be an endpoint")]
    IommuIsEndpoint(Bdf),
    /// An endpoint is listed twice.
    #[error("endpoint {0} is given twice")]
    DuplicateEndpoint(Bdf),
    /// More endpoints than the 16-bit node count and offsets can express.
    #[error("{number} endpoints; the table can list at most {max}")]
    TooManyEndpoints {
        /// The number of endpoints.
        number: usize,
        /// The maximum.
        max: usize,
    },
}

/// Builds the table for one virtio-iommu function and the endpoints behind it. Each endpoint has
/// its own range node; functions that are not listed are not translated.
///
/// ```
/// use vhost_user_iommu::cli::viot;
///
/// let table = viot::table("00:01.0".parse()?, &["00:02.0".parse()?])?;
/// assert_eq!(&table[..4], b"VIOT");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the IOMMU is an endpoint, an endpoint is listed twice, or there are too many.
pub fn table(iommu: Bdf, endpoints: &[Bdf]) -> Result<Vec<u8>, ViotError> {
    check(iommu, endpoints)?;
    let length = HEADER + NODE_PCI_IOMMU + endpoints.len() * NODE_PCI_RANGE;
    let mut table = header(length as u32, endpoints.len() as u16 + 1);
    table.extend(iommu_node(iommu));
    table.extend(endpoints.iter().flat_map(|&endpoint| range_node(endpoint)));
    table[CHECKSUM] = table.iter().fold(0u8, |sum, byte| sum.wrapping_sub(*byte));
    Ok(table)
}

/// Checks an IOMMU and its endpoints, as [`table`] does.
pub(super) fn check(iommu: Bdf, endpoints: &[Bdf]) -> Result<(), ViotError> {
    const MAX: usize = (u16::MAX as usize - HEADER - NODE_PCI_IOMMU) / NODE_PCI_RANGE;
    if endpoints.contains(&iommu) {
        return Err(ViotError::IommuIsEndpoint(iommu));
    }
    for (index, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..index].contains(endpoint) {
            return Err(ViotError::DuplicateEndpoint(*endpoint));
        }
    }
    if endpoints.len() > MAX {
        return Err(ViotError::TooManyEndpoints { number: endpoints.len(), max: MAX });
    }
    Ok(())
}

/// Returns the standard ACPI header, followed by node count, offset of the first node, and
/// reserved bytes.
fn header(length: u32, nodes: u16) -> Vec<u8> {
    let mut header = Vec::with_capacity(length as usize);
    header.extend(b"VIOT");
    header.extend(length.to_le_bytes());
    header.extend([0, 0]); // revision, checksum
    header.extend(b"VUIOMM"); // OEM ID
    header.extend(b"VHOSTUSR"); // OEM table ID
    header.extend(1u32.to_le_bytes()); // OEM revision
    header.extend(b"VUIO"); // creator ID
    header.extend(1u32.to_le_bytes()); // creator revision
    header.extend(nodes.to_le_bytes());
    header.extend((HEADER as u16).to_le_bytes());
    header.extend([0; 8]);
    header
}

/// Returns the node of the IOMMU's PCI function.
fn iommu_node(iommu: Bdf) -> [u8; NODE_PCI_IOMMU] {
    let mut node = [0; NODE_PCI_IOMMU];
    node[0] = TYPE_VIRTIO_PCI_IOMMU;
    node[2..4].copy_from_slice(&(NODE_PCI_IOMMU as u16).to_le_bytes());
    node[4..6].copy_from_slice(&iommu.segment.to_le_bytes());
    node[6..8].copy_from_slice(&iommu.requester_id().to_le_bytes());
    node
}

/// Returns the node of one function, translated by the only IOMMU node.
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
    use crate::address::EndpointId;

    fn bdf(text: &str) -> Bdf {
        text.parse().unwrap()
    }

    #[test]
    fn table_lists_each_endpoint_and_sums_to_zero() {
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
    fn contradictions_are_rejected() {
        let [a, b] = [bdf("00:01.0"), bdf("00:02.0")];
        assert_eq!(table(a, &[a]), Err(ViotError::IommuIsEndpoint(a)));
        assert_eq!(table(a, &[b, b]), Err(ViotError::DuplicateEndpoint(b)));
        assert!(ViotError::IommuIsEndpoint(a).to_string().contains("0000:00:01.0"));
        assert!(ViotError::DuplicateEndpoint(b).to_string().contains("0000:00:02.0"));
    }

    #[test]
    fn table_is_limited_by_its_16_bit_offsets() {
        let functions = |count: u32| (8..8 + count).map(|id| EndpointId(id).into());
        let iommu = bdf("ffff:00:01.0");
        assert_eq!(table(iommu, &functions(2727).collect::<Vec<_>>()).unwrap().len(), 65512);
        let error = table(iommu, &functions(2728).collect::<Vec<_>>()).unwrap_err();
        assert_eq!(error, ViotError::TooManyEndpoints { number: 2728, max: 2727 });
    }
}
