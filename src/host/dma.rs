//! Access to guest memory by emulated endpoints: helpers for implementations of
//! [`accelerator::Dma`].

use accelerator::{DmaCause, DmaError};

use crate::address::{Access, Iova, Pasid};

/// Maximum size of a piece in bytes. Longer accesses are split, so that UNMAP and DETACH wait for
/// at most one piece.
pub const MAX_PIECE: usize = 4096;

impl From<accelerator::Pasid> for Pasid {
    fn from(pasid: accelerator::Pasid) -> Self {
        Self(pasid.0)
    }
}

impl From<Pasid> for accelerator::Pasid {
    fn from(pasid: Pasid) -> Self {
        Self(pasid.0)
    }
}

impl From<accelerator::Access> for Access {
    fn from(access: accelerator::Access) -> Self {
        match access {
            accelerator::Access::Read => Self::READ,
            accelerator::Access::Write => Self::WRITE,
        }
    }
}

/// Splits the access to `len` bytes at `address` and calls `piece(address, offset, len)` for each
/// piece in ascending order, until it fails. `piece` returns the number of bytes accessed, at
/// least 1.
pub(super) fn in_pieces(
    address: u64,
    len: usize,
    mut piece: impl FnMut(Iova, usize, usize) -> Result<usize, DmaCause>,
) -> Result<(), DmaError> {
    let mut done = 0;
    while done < len {
        let Some(next) = address.checked_add(done as u64) else {
            return Err(DmaError { address: u64::MAX, done, cause: DmaCause::NotMapped });
        };
        let piece_len = (len - done).min(MAX_PIECE - next as usize % MAX_PIECE);
        done += piece(Iova(next), done, piece_len).map_err(|cause| DmaError {
            address: next,
            done,
            cause,
        })?;
    }
    Ok(())
}
