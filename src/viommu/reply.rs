//! Replies to requests: the device-writable part.

use zerocopy::IntoBytes;

use super::status::Status;
use super::wire::ReqTail;

/// The reply to a request.
#[derive(Debug, PartialEq, Eq)]
pub struct Reply<'a> {
    /// The status in the tail.
    pub status: Status,
    /// Offset of the tail in the device-writable part, in bytes.
    pub tail_offset: usize,
    /// The properties, which precede the tail.
    pub properties: &'a [u8],
}

impl Reply<'_> {
    /// The reply to a request whose handling panicked.
    pub const INTERNAL_ERROR: Self =
        Reply { status: Status::DevErr, tail_offset: 0, properties: &[] };

    /// Replaces the contents of `buffer` by a device-writable part of `size` bytes: properties,
    /// padding, tail, padding. Padding is zero.
    ///
    /// The reply always fills the device-writable part: Linux ignores the status in a reply of any
    /// other length, so that a failed request would look successful.
    pub fn encode(&self, size: usize, buffer: &mut Vec<u8>) {
        buffer.clear();
        buffer.extend_from_slice(self.properties);
        buffer.resize(self.tail_offset, 0);
        buffer
            .extend_from_slice(ReqTail { status: self.status as u8, reserved: [0; 3] }.as_bytes());
        buffer.resize(size, 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reply_fills_the_device_writable_part() {
        let mut buffer = vec![0xff; 99];
        let probe = Reply { status: Status::Ok, tail_offset: 5, properties: &[7, 8] };
        probe.encode(11, &mut buffer);
        assert_eq!(buffer, [7, 8, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
        Reply::INTERNAL_ERROR.encode(6, &mut buffer);
        assert_eq!(buffer, [3, 0, 0, 0, 0, 0]);
        Reply::INTERNAL_ERROR.encode(0, &mut buffer);
        assert!(buffer.is_empty());
    }
}
