//! Descriptor chains: bytes out of them, bytes into them, in any framing.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// The most bytes that the device writes into one chain. Requests need far less; what a driver
/// offers beyond is left alone.
pub const MAX_WRITTEN: usize = 64 << 10;

/// The readable bytes of a chain, as many as there is room for, and its writable part.
pub struct Gathered<'a> {
    /// The first readable bytes.
    pub bytes: &'a [u8],
    /// Size of the writable part in bytes, at most [`MAX_WRITTEN`].
    pub room: usize,
    /// The first writable descriptor: mostly the only one.
    first_writable: Option<(GuestAddress, usize)>,
}

/// Walks a chain once. Bytes behind an address that is no memory are taken as missing.
pub fn gather<'a>(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    buffer: &'a mut [u8],
) -> Gathered<'a> {
    let (mut len, mut room, mut first_writable) = (0, 0usize, None);
    let mut intact = true;
    for descriptor in chain {
        let size = descriptor.len() as usize;
        if descriptor.is_write_only() {
            room = room.saturating_add(size).min(MAX_WRITTEN);
            first_writable = first_writable.or(Some((descriptor.addr(), size)));
        } else if intact {
            let end = len + size.min(buffer.len() - len);
            intact = memory.read_slice(&mut buffer[len..end], descriptor.addr()).is_ok();
            len = if intact { end } else { len };
        }
    }
    Gathered { bytes: &buffer[..len], room, first_writable }
}

impl Gathered<'_> {
    /// Writes `bytes` into the writable part of `chain`, the one that was gathered from; returns
    /// how many arrived before the first address that is no memory.
    pub fn scatter(
        &self,
        chain: DescriptorChain<&GuestMemoryMmap>,
        memory: &GuestMemoryMmap,
        bytes: &[u8],
    ) -> usize {
        if let Some((address, size)) = self.first_writable
            && bytes.len() <= size
        {
            return memory.write_slice(bytes, address).map_or(0, |()| bytes.len());
        }
        let mut done = 0;
        for descriptor in chain.writable() {
            let end = done + (descriptor.len() as usize).min(bytes.len() - done);
            if memory.write_slice(&bytes[done..end], descriptor.addr()).is_err() {
                break;
            }
            done = end;
        }
        done
    }
}
