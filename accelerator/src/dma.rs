//! Access to memory through an IOMMU.

/// Process address space identifier (PASID): 20 bits, never 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pasid(pub u32);

/// Direction of an access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The access reads memory.
    Read,
    /// The access writes memory.
    Write,
}

/// Reason why an access failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DmaCause {
    /// The requester is attached to no domain and does not bypass the IOMMU.
    #[error("not attached to a domain")]
    NoDomain,
    /// The domain has no mapping for the address that permits the access.
    #[error("no mapping permits the access")]
    NotMapped,
    /// The address was translated, but the result is not the address of guest memory.
    #[error("no memory at the translated address")]
    NotMemory,
}

/// An access that failed before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("cannot access I/O virtual address {address:#x}: {cause}")]
pub struct DmaError {
    /// First I/O virtual address that was not accessed, in bytes.
    pub address: u64,
    /// Number of bytes that were accessed before it.
    pub done: usize,
    /// Reason of the failure.
    pub cause: DmaCause,
}

/// Translated access to guest memory.
///
/// An implementation translates each page and checks its permissions. Addresses are I/O virtual
/// addresses in bytes, in the address space of the PASID if there is one, else in that of the
/// function.
pub trait Dma: Send + Sync {
    /// Reads `buf.len()` bytes from `address`.
    ///
    /// # Errors
    /// The first failure. No byte at or after the address in the error has been read.
    fn read(&self, pasid: Option<Pasid>, address: u64, buf: &mut [u8]) -> Result<(), DmaError>;

    /// Writes `buf` to `address`.
    ///
    /// # Errors
    /// The first failure. No byte at or after the address in the error has been written.
    fn write(&self, pasid: Option<Pasid>, address: u64, buf: &[u8]) -> Result<(), DmaError>;
}
