//! The mappings of a domain, in the kernel: an IOAS that follows the domain's books.
//!
//! A mapping becomes one area for each region of guest memory that it touches, and never shares
//! an area with another mapping. So the areas follow from books and regions, and the kernel need
//! not be asked what it has. What leads to no memory gets no area until memory appears there.

use std::sync::Arc;

use rustix::io::Errno;

use super::kernel::{Kernel, KernelError, Object};
use super::ram::{Identity, Piece, Ram};
use crate::address::IovaRange;
use crate::host::{AddressSpace, HostError, Mapping};

/// An address space of the kernel's, and the books that it follows.
pub(super) struct Space {
    kernel: Arc<Kernel>,
    ioas: Object,
    books: Arc<AddressSpace>,
}

impl Space {
    /// An address space with all the mappings of `books`.
    pub(super) fn new(
        kernel: &Arc<Kernel>,
        ram: &Ram,
        books: Arc<AddressSpace>,
    ) -> Result<Self, HostError> {
        let ioas = kernel.new_ioas().map_err(|error| error.refuse(HostError::Unsupported))?;
        let space = Self { kernel: kernel.clone(), ioas, books };
        for mapping in space.books.mappings_in(IovaRange::ALL) {
            space.map(ram, &mapping)?;
        }
        Ok(space)
    }

    /// The kernel's object.
    pub(super) fn ioas(&self) -> &Object {
        &self.ioas
    }

    /// Adds a mapping, wholly or not at all.
    pub(super) fn map(&self, ram: &Ram, mapping: &Mapping) -> Result<(), HostError> {
        for piece in ram.pieces(mapping) {
            if let Err(error) = self.add(ram, &piece, mapping) {
                let added = ram.pieces(mapping).take_while(|earlier| earlier.iova < piece.iova);
                added.for_each(|earlier| self.remove(&earlier));
                return Err(error.refuse(HostError::Refused));
            }
        }
        Ok(())
    }

    /// The books say that nothing is there. If something is, it was left by an UNMAP that the
    /// kernel has refused and that could not be undone either.
    fn add(&self, ram: &Ram, piece: &Piece, mapping: &Mapping) -> Result<(), KernelError> {
        match ram.copy_to(&self.ioas, piece, mapping.access) {
            Err(error) if error.errno == Errno::EXIST => {
                self.remove(piece);
                ram.copy_to(&self.ioas, piece, mapping.access)
            }
            result => result,
        }
    }

    /// Removes the mappings inside `range`, which the books still have and which it does not cut:
    /// all of them or none.
    pub(super) fn unmap(&self, ram: &Ram, range: IovaRange) -> Result<(), HostError> {
        match self.kernel.unmap(&self.ioas, range) {
            Ok(()) => Ok(()),
            // There is none, for it cuts none: all of them lead to no memory.
            Err(error) if error.errno == Errno::NOENT => self.unmap_pieces(ram, range),
            Err(error) => {
                self.restore(ram, range);
                Err(error.refuse(HostError::Failed))
            }
        }
    }

    /// What an address leads to may not depend on whether the kernel agrees with the books.
    fn unmap_pieces(&self, ram: &Ram, range: IovaRange) -> Result<(), HostError> {
        for mapping in self.books.mappings_in(range) {
            for piece in ram.pieces(&mapping) {
                if let Err(error) = self.unmap_piece(&piece) {
                    self.restore(ram, range);
                    return Err(error.refuse(HostError::Failed));
                }
            }
        }
        Ok(())
    }

    /// Puts back what a refused UNMAP has removed: the kernel goes area by area.
    fn restore(&self, ram: &Ram, range: IovaRange) {
        for mapping in self.books.mappings_in(range) {
            for piece in ram.pieces(&mapping) {
                match ram.copy_to(&self.ioas, &piece, mapping.access) {
                    Err(error) if error.errno != Errno::EXIST => {
                        log::error!("an UNMAP that failed could not be undone: {error}");
                    }
                    _ => {}
                }
            }
        }
    }

    /// Memory has appeared: mappings that led there so far in vain lead to it now.
    pub(super) fn cover(&self, ram: &Ram, region: &Identity) -> Result<(), KernelError> {
        for mapping in self.books.mappings_in(IovaRange::ALL) {
            if let Some(piece) = region.piece(&mapping) {
                self.add(ram, &piece, &mapping)?;
            }
        }
        Ok(())
    }

    /// Memory goes: no mapping leads there any more.
    pub(super) fn uncover(&self, region: &Identity) -> Result<(), KernelError> {
        for mapping in self.books.mappings_in(IovaRange::ALL) {
            if let Some(piece) = region.piece(&mapping) {
                self.unmap_piece(&piece)?;
            }
        }
        Ok(())
    }

    fn remove(&self, piece: &Piece) {
        if let Err(error) = self.unmap_piece(piece) {
            log::error!("a mapping stays in force that should not: {error}");
        }
    }

    fn unmap_piece(&self, piece: &Piece) -> Result<(), KernelError> {
        let Some(range) = piece.range() else { return Ok(()) };
        match self.kernel.unmap(&self.ioas, range) {
            Err(error) if error.errno != Errno::NOENT => Err(error),
            _ => Ok(()),
        }
    }
}
