//! Reading from and writing to descriptor chains, independent of their framing.

use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// Maximum number of bytes written to one chain. The longest reply is far shorter; the remaining
/// device-writable buffers of a longer chain are not used.
pub const MAX_WRITTEN: usize = 64 << 10;

/// The contents of the device-readable part of a chain, and the size of its device-writable part.
pub struct Gathered<'a> {
    /// The device-readable bytes, truncated to the size of the buffer.
    pub bytes: &'a [u8],
    /// Size of the device-writable part in bytes, at most [`MAX_WRITTEN`].
    pub writable_size: usize,
    /// Address and size of the first device-writable buffer. Most chains have only one.
    first_writable: Option<(GuestAddress, usize)>,
}

/// Reads the device-readable part of a chain into `buffer`. Reading stops at the first address
/// that is not guest memory.
pub fn gather<'a>(
    chain: DescriptorChain<&GuestMemoryMmap>,
    memory: &GuestMemoryMmap,
    buffer: &'a mut [u8],
) -> Gathered<'a> {
    let (mut len, mut writable_size, mut first_writable) = (0, 0usize, None);
    let mut valid = true;
    for descriptor in chain {
        let size = descriptor.len() as usize;
        if descriptor.is_write_only() {
            writable_size = writable_size.saturating_add(size).min(MAX_WRITTEN);
            first_writable = first_writable.or(Some((descriptor.addr(), size)));
        } else if valid {
            let end = len + size.min(buffer.len() - len);
            valid = memory.read_slice(&mut buffer[len..end], descriptor.addr()).is_ok();
            len = if valid { end } else { len };
        }
    }
    Gathered { bytes: &buffer[..len], writable_size, first_writable }
}

impl Gathered<'_> {
    /// Writes `bytes` to the device-writable part of `chain`, from which `self` was gathered.
    /// Returns the number of bytes written, fewer if an address is not guest memory.
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
        let mut written = 0;
        for descriptor in chain.writable() {
            let end = written + (descriptor.len() as usize).min(bytes.len() - written);
            if memory.write_slice(&bytes[written..end], descriptor.addr()).is_err() {
                break;
            }
            written = end;
        }
        written
    }
}
