//! MSI-X: the eventfds of the vectors, and the table in BAR 1.

use super::regs::VECTORS;
use std::fs::File;
use std::io::{self, Write};
use std::ops::Range;

/// The client's eventfds, one for each vector.
///
/// The client implements masking, as with VFIO: it removes the eventfd or does not forward the
/// event.
#[derive(Debug, Default)]
pub struct Vectors([Option<File>; VECTORS]);

impl Vectors {
    /// Signals `vector` if it has an eventfd. Does not block.
    pub fn signal(&self, vector: usize) {
        if let Some(Some(event)) = self.0.get(vector)
            && let Err(error) = (&*event).write_all(&1u64.to_ne_bytes())
        {
            log::debug!("cannot signal MSI-X vector {vector}: {error}");
        }
    }

    /// Signals each of `vectors`.
    pub fn signal_all(&self, vectors: Range<usize>) {
        vectors.for_each(|vector| self.signal(vector));
    }

    /// Enables `vectors` with one eventfd each, or disables them if `events` is empty.
    ///
    /// # Errors
    /// `InvalidInput` if a vector does not exist or the number of eventfds differs from that of
    /// the vectors; the error of the system call if an eventfd cannot be made non-blocking. No
    /// vector changes.
    pub fn set(&mut self, vectors: Range<usize>, events: Vec<File>) -> io::Result<()> {
        let count = vectors.len();
        let vectors = self.0.get_mut(vectors).ok_or(io::ErrorKind::InvalidInput)?;
        if !events.is_empty() && events.len() != count {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let events: Vec<_> = events.into_iter().map(nonblocking).collect::<io::Result<_>>()?;
        let mut events = events.into_iter();
        vectors.fill_with(|| events.next());
        Ok(())
    }

    /// Disables all vectors.
    pub fn clear(&mut self) {
        *self = Self::default();
    }
}

/// Makes writes to `event` non-blocking; the client may have sent any descriptor.
fn nonblocking(event: File) -> io::Result<File> {
    rustix::io::ioctl_fionbio(&event, true)?;
    Ok(event)
}

/// Size of an entry of the MSI-X table in bytes (PCI Express base specification, 6.1.4).
const ENTRY: usize = 16;
/// Offset of Vector Control in an entry; bit 0 masks the vector.
const VECTOR_CONTROL: usize = 12;

/// The MSI-X table in BAR 1. It only stores what is written: a client such as QEMU has its own
/// table and enables vectors through [`Vectors`].
#[derive(Debug)]
pub struct Table([u8; VECTORS * ENTRY]);

impl Default for Table {
    /// Returns the table after reset: every vector is masked.
    fn default() -> Self {
        let mut table = [0; VECTORS * ENTRY];
        table.iter_mut().skip(VECTOR_CONTROL).step_by(ENTRY).for_each(|byte| *byte = 1);
        Self(table)
    }
}

impl Table {
    /// Reads from `offset` of BAR 1. Bytes outside the table read as 0: no vector is ever pending.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.0.get(offset + index).copied().unwrap_or(0);
        }
    }

    /// Writes at `offset` of BAR 1. Bytes outside the table are ignored.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (byte, value) in self.0.iter_mut().skip(offset).zip(data) {
            *byte = *value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{PipeReader, Read, pipe};
    use std::os::fd::OwnedFd;

    /// Returns a pipe: the write end replaces an eventfd, the read end counts the signals.
    fn event() -> (PipeReader, File) {
        let (reader, writer) = pipe().unwrap();
        (reader, OwnedFd::from(writer).into())
    }

    /// Counts the signals. The write end must be closed.
    fn signals(mut reader: PipeReader) -> usize {
        reader.read_to_end(&mut Vec::new()).unwrap() / 8
    }

    #[test]
    fn signal_reaches_the_given_vector() {
        let mut vectors = Vectors::default();
        let ((a, file_a), (b, file_b)) = (event(), event());
        vectors.set(2..4, vec![file_a, file_b]).unwrap();
        vectors.signal(3);
        vectors.signal_all(3..5);
        vectors.signal(0);
        vectors.signal(VECTORS);
        vectors.clear();
        assert_eq!((signals(a), signals(b)), (0, 2));
    }

    #[test]
    fn set_without_eventfds_disables_vectors() {
        let mut vectors = Vectors::default();
        let (reader, file) = event();
        vectors.set(0..1, vec![file]).unwrap();
        vectors.set(0..1, vec![]).unwrap();
        vectors.signal(0);
        assert_eq!(signals(reader), 0);
    }

    #[test]
    fn set_rejects_mismatched_eventfd_count() {
        let mut vectors = Vectors::default();
        assert!(vectors.set(VECTORS - 1..VECTORS + 1, vec![]).is_err());
        assert!(vectors.set(VECTORS + 1..VECTORS + 1, vec![]).is_err());
        assert!(vectors.set(0..2, vec![event().1]).is_err());
        assert!(vectors.set(0..0, vec![event().1]).is_err());
    }

    #[test]
    fn signal_of_full_pipe_does_not_block() {
        let mut vectors = Vectors::default();
        let (reader, file) = event();
        vectors.set(0..1, vec![file]).unwrap();
        for _ in 0..100_000 {
            vectors.signal(0);
        }
        vectors.clear();
        assert!(signals(reader) < 100_000);
    }

    #[test]
    fn table_is_masked_after_reset_and_keeps_writes() {
        let mut table = Table::default();
        let mut entry = [0; ENTRY];
        table.read(ENTRY, &mut entry);
        assert_eq!(entry[VECTOR_CONTROL], 1);
        table.write(ENTRY, &[7; ENTRY]);
        table.read(ENTRY, &mut entry);
        assert_eq!(entry, [7; ENTRY]);
        table.write(0x800, &[1; 8]);
        table.read(0x800, &mut entry);
        assert_eq!(entry, [0; ENTRY]);
    }
}
