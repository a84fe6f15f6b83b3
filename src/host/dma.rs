//! How an emulated endpoint reaches guest memory: through its IOMMU, like any device.

use crate::address::{Iova, Pasid};

/// Accesses longer than this are done in pieces, so that nobody who waits for an access to end
/// (UNMAP, DETACH) waits for more than one piece, in bytes.
pub const MAX_PIECE: usize = 4096;

/// Why an access did not take place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DmaCause {
    /// The endpoint (or the PASID) is attached to no domain and does not bypass the IOMMU.
    NoDomain,
    /// The domain has no mapping for the address, or none with the permission.
    NotMapped,
    /// Translated, but what lies there is no guest memory.
    NotMemory,
}

/// An access that stopped before its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DmaError {
    /// The first address that was not accessed.
    pub address: Iova,
    /// Bytes accessed before it.
    pub done: usize,
    /// What stopped it.
    pub cause: DmaCause,
}

/// The bus side of an endpoint. Every access is translated page by page with its permissions.
///
/// Once UNMAP or DETACH has returned, no access through the old translation is under way.
pub trait Dma: Send + Sync {
    /// Reads `buf.len()` bytes from `address`; no byte past an error has been read.
    fn read(&self, pasid: Option<Pasid>, address: Iova, buf: &mut [u8]) -> Result<(), DmaError>;

    /// Writes `buf` to `address`; no byte past an error has been written.
    fn write(&self, pasid: Option<Pasid>, address: Iova, buf: &[u8]) -> Result<(), DmaError>;
}

/// Runs `piece(address, offset, room)` for one piece after the other of an access to `len` bytes.
/// It returns how many bytes it did, at least 1.
pub(super) fn in_pieces(
    address: Iova,
    len: usize,
    mut piece: impl FnMut(Iova, usize, usize) -> Result<usize, DmaCause>,
) -> Result<(), DmaError> {
    let mut done = 0;
    while done < len {
        let here = address.0.checked_add(done as u64);
        let stopped = |cause| DmaError { address: Iova(here.unwrap_or(u64::MAX)), done, cause };
        let here = here.ok_or(stopped(DmaCause::NotMapped))?;
        let room = (len - done).min(MAX_PIECE - here as usize % MAX_PIECE);
        done += piece(Iova(here), done, room).map_err(stopped)?;
    }
    Ok(())
}
