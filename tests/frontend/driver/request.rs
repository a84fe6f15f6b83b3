//! Requests, written out byte by byte as the specification lays them out.

use super::ring::Shape;

/// `VIRTIO_IOMMU_S_*`
pub mod status {
    pub const OK: u8 = 0;
    pub const UNSUPP: u8 = 2;
    pub const INVAL: u8 = 4;
    pub const RANGE: u8 = 5;
    pub const NOENT: u8 = 6;
    pub const NOMEM: u8 = 8;
}

pub const READ: u32 = 1;
pub const WRITE: u32 = 2;
pub const MMIO: u32 = 4;
pub const RW: u32 = READ | WRITE;
pub const ATTACH_BYPASS: u32 = 1;

pub const TAIL: usize = 4;

/// The device-readable bytes of a request, and how many device-writable ones follow them.
#[derive(Clone, Debug, PartialEq)]
pub struct Request {
    pub bytes: Vec<u8>,
    pub room: usize,
}

impl Request {
    /// Type and `head.reserved`, with room for a tail.
    pub fn new(kind: u8) -> Self {
        Self { bytes: vec![kind, 0, 0, 0], room: TAIL }
    }

    pub fn le32(self, value: u32) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn le64(self, value: u64) -> Self {
        self.raw(&value.to_le_bytes())
    }

    pub fn raw(mut self, bytes: &[u8]) -> Self {
        self.bytes.extend_from_slice(bytes);
        self
    }

    pub fn room(self, room: usize) -> Self {
        Self { room, ..self }
    }

    /// The same request with the byte at `offset` replaced.
    pub fn patched(mut self, offset: usize, byte: u8) -> Self {
        self.bytes[offset] = byte;
        self
    }

    /// The same request, cut off after `len` readable bytes.
    pub fn cut(mut self, len: usize) -> Self {
        self.bytes.truncate(len);
        self
    }

    /// One descriptor to read, one to write.
    pub fn shape(&self) -> Shape<'_> {
        Shape::new(vec![&self.bytes], vec![self.room])
    }
}

pub fn attach(domain: u32, endpoint: u32) -> Request {
    attach_with(domain, endpoint, 0)
}

pub fn attach_with(domain: u32, endpoint: u32, flags: u32) -> Request {
    Request::new(1).le32(domain).le32(endpoint).le32(flags).le32(0)
}

pub fn detach(domain: u32, endpoint: u32) -> Request {
    Request::new(2).le32(domain).le32(endpoint).le64(0)
}

pub fn attach_pasid(domain: u32, endpoint: u32, pasid: u32) -> Request {
    Request::new(1).le32(domain).le32(endpoint).le32(2).le32(pasid)
}

pub fn detach_pasid(domain: u32, endpoint: u32, pasid: u32) -> Request {
    Request::new(2).le32(domain).le32(endpoint).le32(1).le32(pasid)
}

/// MAP of `first..=last` to `phys`.
pub fn map(domain: u32, first: u64, last: u64, phys: u64, flags: u32) -> Request {
    Request::new(3).le32(domain).le64(first).le64(last).le64(phys).le32(flags)
}

pub fn unmap(domain: u32, first: u64, last: u64) -> Request {
    Request::new(4).le32(domain).le64(first).le64(last).le32(0)
}

/// PAGE_RESP for a group.
pub fn page_resp(endpoint: u32, pasid: Option<u32>, group: u16, code: u16) -> Request {
    Request::new(8)
        .le32(endpoint)
        .le32(pasid.is_some().into())
        .le32(pasid.unwrap_or(0))
        .le32(u32::from(code) << 16 | u32::from(group))
        .le64(0)
}

/// PROBE with room for `properties` bytes and the tail.
pub fn probe(endpoint: u32, properties: usize) -> Request {
    Request::new(5).le32(endpoint).raw(&[0; 64]).room(properties + TAIL)
}
