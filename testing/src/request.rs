//! Requests of the virtio-iommu request queue in the layout of the specification (virtio 1.3,
//! 5.13.6), and those of the page request extension.

use crate::virtqueue::Chain;

/// Statuses of a request: `VIRTIO_IOMMU_S_*`.
#[expect(missing_docs, reason = "the specification's names")]
pub mod status {
    pub const OK: u8 = 0;
    pub const UNSUPP: u8 = 2;
    pub const INVAL: u8 = 4;
    pub const RANGE: u8 = 5;
    pub const NOENT: u8 = 6;
    pub const NOMEM: u8 = 8;
}

/// `VIRTIO_IOMMU_MAP_F_READ`
pub const READ: u32 = 1;
/// `VIRTIO_IOMMU_MAP_F_WRITE`
pub const WRITE: u32 = 2;
/// `VIRTIO_IOMMU_MAP_F_MMIO`
pub const MMIO: u32 = 4;
/// [`READ`] and [`WRITE`].
pub const RW: u32 = READ | WRITE;
/// `VIRTIO_IOMMU_ATTACH_F_BYPASS`
pub const ATTACH_BYPASS: u32 = 1;

/// Size of `struct virtio_iommu_req_tail`, in bytes.
pub const TAIL: usize = 4;

/// The device-readable bytes of a request, and the number of its device-writable bytes.
///
/// ```
/// use testing::request::attach;
///
/// let request = attach(1, 0x10).patched(16, 1);
/// assert_eq!(request.bytes.len(), 20);
/// assert_eq!(request.writable, 4);
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    /// The device-readable bytes.
    pub bytes: Vec<u8>,
    /// Number of device-writable bytes.
    pub writable: usize,
}

impl Request {
    /// Creates a request of type `kind` that ends after `head.reserved` and has a tail.
    pub fn new(kind: u8) -> Self {
        Self { bytes: vec![kind, 0, 0, 0], writable: TAIL }
    }

    /// Appends a 32-bit field.
    pub fn le32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends a 64-bit field.
    pub fn le64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    /// Appends bytes.
    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    /// Replaces the number of device-writable bytes.
    pub fn writable(self, writable: usize) -> Self {
        Self { writable, ..self }
    }

    /// Replaces the byte at `offset`.
    pub fn patched(mut self, offset: usize, byte: u8) -> Self {
        self.bytes[offset] = byte;
        self
    }

    /// Truncates the device-readable part to `len` bytes.
    pub fn cut(mut self, len: usize) -> Self {
        self.bytes.truncate(len);
        self
    }

    /// Lays the request out in one device-readable and one device-writable descriptor.
    pub fn chain(&self) -> Chain<'_> {
        Chain::new(vec![&self.bytes], vec![self.writable])
    }
}

/// ATTACH without flags.
pub fn attach(domain: u32, endpoint: u32) -> Request {
    attach_with(domain, endpoint, 0)
}

/// ATTACH with `flags`.
pub fn attach_with(domain: u32, endpoint: u32, flags: u32) -> Request {
    Request::new(1).le32(domain).le32(endpoint).le32(flags).le32(0)
}

/// ATTACH of a PASID.
pub fn attach_pasid(domain: u32, endpoint: u32, pasid: u32) -> Request {
    Request::new(1).le32(domain).le32(endpoint).le32(2).le32(pasid)
}

/// DETACH of an endpoint.
pub fn detach(domain: u32, endpoint: u32) -> Request {
    Request::new(2).le32(domain).le32(endpoint).le64(0)
}

/// DETACH of a PASID.
pub fn detach_pasid(domain: u32, endpoint: u32, pasid: u32) -> Request {
    Request::new(2).le32(domain).le32(endpoint).le32(1).le32(pasid)
}

/// MAP of `first..=last` to the guest-physical range that starts at `phys`.
pub fn map(domain: u32, first: u64, last: u64, phys: u64, flags: u32) -> Request {
    Request::new(3).le32(domain).le64(first).le64(last).le64(phys).le32(flags)
}

/// UNMAP of `first..=last`.
pub fn unmap(domain: u32, first: u64, last: u64) -> Request {
    Request::new(4).le32(domain).le64(first).le64(last).le32(0)
}

/// PROBE with space for `properties` bytes and the tail.
pub fn probe(endpoint: u32, properties: usize) -> Request {
    Request::new(5).le32(endpoint).raw(&[0; 64]).writable(properties + TAIL)
}

/// PAGE_RESP to a page request group.
pub fn page_resp(endpoint: u32, pasid: Option<u32>, group: u16, code: u16) -> Request {
    Request::new(8)
        .le32(endpoint)
        .le32(pasid.is_some().into())
        .le32(pasid.unwrap_or(0))
        .le32(u32::from(code) << 16 | u32::from(group))
        .le64(0)
}
