//! The programming interface of the accelerator: PCI identity, registers, descriptors and
//! completion records. `docs/accelerator.md` specifies their use.
//!
//! This module uses only `core`, so that a guest program can include the file. All multi-byte
//! values are little-endian.

/// PCI vendor ID: Red Hat (virtual devices).
pub const VENDOR_ID: u16 = 0x1af4;
/// PCI device ID: the first of 0x10f0-0x10ff, which QEMU's `docs/specs/pci-ids.rst` reserves for
/// experiments without registration. Linux's virtio-pci matches the vendor but rejects this range,
/// so no driver binds.
pub const DEVICE_ID: u16 = 0x10f0;
/// PCI class code: base class 0x12 (processing accelerator), subclass 0, programming interface 0.
pub const CLASS_CODE: [u8; 3] = [0x12, 0x00, 0x00];

/// Size of BAR 0 (the registers), in bytes.
pub const BAR0_SIZE: u32 = 0x4_0000;
/// Size of BAR 1 (the MSI-X table and pending bits), in bytes.
pub const BAR1_SIZE: u32 = 0x1000;
/// Offset of the MSI-X table in BAR 1, in bytes.
pub const MSIX_TABLE_OFFSET: u32 = 0;
/// Offset of the MSI-X pending bits in BAR 1, in bytes.
pub const MSIX_PBA_OFFSET: u32 = 0x800;

/// Offset of the PASID extended capability (PCI Express base specification, 7.8.9) in the
/// configuration space, in bytes.
pub const PASID_CAPABILITY: u32 = 0x100;
/// Offset of the ATS extended capability (10.5.1) in the configuration space, in bytes.
pub const ATS_CAPABILITY: u32 = 0x110;
/// Offset of the page request extended capability (10.5.2) in the configuration space, in bytes.
pub const PRI_CAPABILITY: u32 = 0x120;
/// Maximum number of outstanding page requests (pages, not groups) of the function.
pub const PRI_CAPACITY: u32 = 64;

/// Number of channels.
pub const CHANNELS: usize = 32;
/// Number of MSI-X vectors: one per channel.
pub const VECTORS: usize = CHANNELS;
/// Minimum number of entries of a descriptor ring.
pub const MIN_RING: u32 = 2;
/// Maximum number of entries of a descriptor ring.
pub const MAX_RING: u32 = 4096;
/// Maximum length of a descriptor in bytes (inclusive).
pub const MAX_LENGTH: u64 = 1 << 32;

// Registers of the function: page 0 of BAR 0.

/// `u32`, read-only: [`ID_VALUE`].
pub const ID: u32 = 0x00;
/// `u32`, read-only: [`VERSION_VALUE`].
pub const VERSION: u32 = 0x04;
/// `u32`, read-only: `FEATURE_*` bits.
pub const FEATURES: u32 = 0x08;
/// `u32`, read-only: number of channels.
pub const CHANNEL_COUNT: u32 = 0x0c;
/// `u32`, read-only: number of MSI-X vectors.
pub const VECTOR_COUNT: u32 = 0x10;
/// `u32`, read-only: maximum number of entries of a ring.
pub const RING_LIMIT: u32 = 0x14;
/// `u64`, read-only: maximum length of a descriptor in bytes.
pub const LENGTH_LIMIT: u32 = 0x18;
/// `u32`, write 1 to clear: channel n sets bit n when it raises its interrupt.
pub const INT_STATUS: u32 = 0x20;
/// `u32`, write-only: `CONTROL_*` bits.
pub const CONTROL: u32 = 0x24;

/// Value of [`ID`]: the characters "VDMA".
pub const ID_VALUE: u32 = u32::from_le_bytes(*b"VDMA");
/// Value of [`VERSION`].
pub const VERSION_VALUE: u32 = 1;
/// [`FEATURES`]: accesses of a channel can have a PASID.
pub const FEATURE_PASID: u32 = 1 << 0;
/// [`FEATURES`]: channels can make page requests.
pub const FEATURE_PAGE_REQUEST: u32 = 1 << 1;
/// [`CONTROL`]: reset all channels and [`INT_STATUS`].
pub const CONTROL_RESET: u32 = 1 << 0;

// Registers of a channel, relative to its page.

/// `u32`: `CH_CONTROL_*` bits.
pub const CH_CONTROL: u32 = 0x00;
/// `u32`, read-only: the state (`STATE_*`) in bits 7:0, `CH_STATUS_BUSY`.
pub const CH_STATUS: u32 = 0x04;
/// `u64`: address of the ring, a multiple of [`DESCRIPTOR_SIZE`]. Read-only while enabled.
pub const CH_RING_BASE: u32 = 0x08;
/// `u32`: number of entries of the ring, a power of two. Read-only while enabled.
pub const CH_RING_SIZE: u32 = 0x10;
/// `u32`: MSI-X vector of the channel. Read-only while enabled.
pub const CH_VECTOR: u32 = 0x14;
/// `u32`: [`CH_PASID_VALID`] and the PASID in bits 19:0. Read-only while enabled.
pub const CH_PASID: u32 = 0x18;
/// `u32`, read-only: error code (`ERROR_*`) in bits 15:0; for [`ERROR_DESCRIPTOR`] the status of
/// the descriptor in bits 31:16.
pub const CH_ERROR: u32 = 0x1c;
/// `u64`, read-only: address of the failed access, or 0.
pub const CH_ERROR_ADDRESS: u32 = 0x20;
/// `u32`: index of the entry after the last valid one (tail). A write starts the channel.
pub const CH_DOORBELL: u32 = 0x28;
/// `u32`, read-only: index of the first entry that is not complete.
pub const CH_HEAD: u32 = 0x2c;
/// `u32`: maximum number of pages of a page request group, 1 to [`MAX_GROUP_PAGES`]; 0 counts as
/// 1, a larger value as [`MAX_GROUP_PAGES`]. Read-only while enabled.
pub const CH_GROUP_PAGES: u32 = 0x30;

/// Offset of the register page of channel 0 in BAR 0, in bytes.
pub const CHANNEL_BASE: u32 = 0x1000;
/// Distance between the register pages of two channels, in bytes.
pub const CHANNEL_STRIDE: u32 = 0x1000;

/// Returns the offset of a register of channel `channel` in BAR 0.
pub const fn channel_register(channel: u32, register: u32) -> u32 {
    CHANNEL_BASE + channel * CHANNEL_STRIDE + register
}

/// [`CH_CONTROL`]: the channel executes the descriptors of its ring.
pub const CH_CONTROL_ENABLE: u32 = 1 << 0;
/// [`CH_CONTROL`]: translation faults of the channel (ring, data, completion records) become page
/// requests. Latched when the channel is enabled.
pub const CH_CONTROL_PAGE_REQUEST: u32 = 1 << 1;
/// [`CH_STATUS`]: mask of the state.
pub const CH_STATUS_STATE: u32 = 0xff;
/// [`CH_STATUS`]: enabled, and entries before the tail are not complete.
pub const CH_STATUS_BUSY: u32 = 1 << 8;
/// [`CH_PASID`]: the accesses of the channel have the PASID.
pub const CH_PASID_VALID: u32 = 1 << 31;

/// Disabled: the channel makes no access, and its configuration is writable.
pub const STATE_DISABLED: u32 = 0;
/// Enabled without error.
pub const STATE_RUNNING: u32 = 1;
/// Stopped by an error: the channel makes no access until the driver disables and enables it.
pub const STATE_ERROR: u32 = 2;

/// No error.
pub const ERROR_NONE: u32 = 0;
/// Enabled with an invalid ring or vector, or with a PASID while PASID Enable is clear.
pub const ERROR_CONFIG: u32 = 1;
/// The value written to the doorbell is not below the number of entries.
pub const ERROR_INDEX: u32 = 2;
/// Translation fault at a descriptor read.
pub const ERROR_RING_FAULT: u32 = 3;
/// Bus error at a descriptor read: no memory at the translated address.
pub const ERROR_RING_BUS: u32 = 4;
/// Translation fault at the write of a completion record.
pub const ERROR_COMPLETION_FAULT: u32 = 5;
/// Bus error at the write of a completion record: no memory at the translated address.
pub const ERROR_COMPLETION_BUS: u32 = 6;
/// The address of a completion record is not a multiple of [`COMPLETION_SIZE`].
pub const ERROR_COMPLETION_ALIGN: u32 = 7;
/// A descriptor without completion record failed.
pub const ERROR_DESCRIPTOR: u32 = 8;
/// Internal error of the accelerator.
pub const ERROR_INTERNAL: u32 = 9;
/// The response to a page request group was FAILURE: all channels fail until the page request
/// interface is disabled or reset, or the function is reset.
pub const ERROR_PAGE_RESPONSE: u32 = 10;

/// No operation; succeeds.
pub const OP_NOOP: u8 = 0;
/// Copies `source` to `destination`.
pub const OP_COPY: u8 = 1;
/// Fills `destination` with the repeated 8 bytes of `operand`.
pub const OP_FILL: u8 = 2;
/// Compares `source` with `destination`; reads both.
pub const OP_COMPARE: u8 = 3;
/// CRC-32C of `source`, starting from the value in bits 31:0 of `operand` (0 for a new checksum).
pub const OP_CRC32C: u8 = 4;

/// Write a completion record to `completion`.
pub const FLAG_COMPLETION: u8 = 1 << 0;
/// Raise the interrupt of the channel on completion.
pub const FLAG_INTERRUPT: u8 = 1 << 1;

/// Initial value, which the driver writes before it submits the descriptor.
pub const STATUS_PENDING: u8 = 0;
/// All bytes processed (for a comparison: they are equal).
pub const STATUS_SUCCESS: u8 = 1;
/// The buffers differ; `result` is the offset of the first difference.
pub const STATUS_MISMATCH: u8 = 2;
/// Translation fault; see `fault_address` and `fault_flags`.
pub const STATUS_FAULT: u8 = 3;
/// Bus error: no memory at the translated address; see `fault_address` and `fault_flags`.
pub const STATUS_BUS_ERROR: u8 = 4;
/// Undefined operation.
pub const STATUS_BAD_OPCODE: u8 = 5;
/// Undefined flag, or a reserved field that is not 0.
pub const STATUS_BAD_FLAGS: u8 = 6;
/// Length 0 or above [`MAX_LENGTH`].
pub const STATUS_BAD_LENGTH: u8 = 7;
/// A buffer ends beyond 2^64 - 1.
pub const STATUS_BAD_ADDRESS: u8 = 8;

/// `fault_flags`: the access was a write.
pub const FAULT_WRITE: u8 = 1 << 0;
/// `fault_flags`: the response to the page request was INVALID.
pub const FAULT_PAGE_REQUEST: u8 = 1 << 1;

/// Maximum number of pages of a page request group.
pub const MAX_GROUP_PAGES: u32 = 32;
/// Page size of page requests, in bytes.
pub const REQUEST_PAGE_SIZE: u64 = 4096;

/// Size and alignment of a descriptor, in bytes.
pub const DESCRIPTOR_SIZE: usize = 64;
/// Size and alignment of a completion record, in bytes.
pub const COMPLETION_SIZE: usize = 32;

/// A descriptor, as stored in a ring.
#[repr(C, align(64))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Descriptor {
    /// `OP_*`.
    pub opcode: u8,
    /// `FLAG_*` bits.
    pub flags: u8,
    /// Must be 0.
    pub reserved0: u16,
    /// Any value; copied to the completion record.
    pub tag: u32,
    /// Address of the first buffer.
    pub source: u64,
    /// Address of the second buffer.
    pub destination: u64,
    /// Size of each buffer in bytes, 1 to [`MAX_LENGTH`]; ignored by [`OP_NOOP`].
    pub length: u64,
    /// Pattern or initial value, depending on the operation.
    pub operand: u64,
    /// Address of the completion record, used with [`FLAG_COMPLETION`].
    pub completion: u64,
    /// Must be 0.
    pub reserved1: [u64; 2],
}

/// A completion record, as stored in memory. The first 8 bytes are written last.
#[repr(C, align(32))]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Completion {
    /// `STATUS_*`.
    pub status: u8,
    /// `FAULT_*` bits, for [`STATUS_FAULT`] and [`STATUS_BUS_ERROR`].
    pub fault_flags: u8,
    /// 0.
    pub reserved: u16,
    /// Tag of the descriptor.
    pub tag: u32,
    /// Number of bytes processed, from the start of the buffers.
    pub bytes_done: u64,
    /// First address that was not accessed, for [`STATUS_FAULT`] and [`STATUS_BUS_ERROR`];
    /// otherwise 0.
    pub fault_address: u64,
    /// CRC-32C of the processed bytes, or offset of the first difference; otherwise 0.
    pub result: u64,
}

const _: () = assert!(size_of::<Descriptor>() == DESCRIPTOR_SIZE);
const _: () = assert!(size_of::<Completion>() == COMPLETION_SIZE);

impl Descriptor {
    /// Decodes a descriptor.
    pub fn from_bytes(bytes: &[u8; DESCRIPTOR_SIZE]) -> Self {
        let word = |index| word_at(bytes, index);
        let [opcode, flags, r0, r1, t0, t1, t2, t3] = word(0).to_le_bytes();
        Self {
            opcode,
            flags,
            reserved0: u16::from_le_bytes([r0, r1]),
            tag: u32::from_le_bytes([t0, t1, t2, t3]),
            source: word(1),
            destination: word(2),
            length: word(3),
            operand: word(4),
            completion: word(5),
            reserved1: [word(6), word(7)],
        }
    }

    /// Encodes the descriptor.
    pub fn to_bytes(&self) -> [u8; DESCRIPTOR_SIZE] {
        let first = self.opcode as u64
            | (self.flags as u64) << 8
            | (self.reserved0 as u64) << 16
            | (self.tag as u64) << 32;
        from_words([
            first,
            self.source,
            self.destination,
            self.length,
            self.operand,
            self.completion,
            self.reserved1[0],
            self.reserved1[1],
        ])
    }
}

impl Completion {
    /// Decodes a completion record.
    pub fn from_bytes(bytes: &[u8; COMPLETION_SIZE]) -> Self {
        let word = |index| word_at(bytes, index);
        let [status, fault_flags, r0, r1, t0, t1, t2, t3] = word(0).to_le_bytes();
        Self {
            status,
            fault_flags,
            reserved: u16::from_le_bytes([r0, r1]),
            tag: u32::from_le_bytes([t0, t1, t2, t3]),
            bytes_done: word(1),
            fault_address: word(2),
            result: word(3),
        }
    }

    /// Encodes the completion record.
    pub fn to_bytes(&self) -> [u8; COMPLETION_SIZE] {
        let first = self.status as u64
            | (self.fault_flags as u64) << 8
            | (self.reserved as u64) << 16
            | (self.tag as u64) << 32;
        from_words([first, self.bytes_done, self.fault_address, self.result])
    }
}

/// Returns the little-endian 64-bit word number `index` of `bytes`; 0 beyond the end.
fn word_at(bytes: &[u8], index: usize) -> u64 {
    let mut word = [0; 8];
    for (to, from) in word.iter_mut().zip(bytes.iter().skip(index * 8)) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

/// Returns `words` in little-endian order. `BYTES` must be 8 times `WORDS`.
fn from_words<const WORDS: usize, const BYTES: usize>(words: [u64; WORDS]) -> [u8; BYTES] {
    let mut bytes = [0; BYTES];
    for (to, word) in bytes.chunks_exact_mut(8).zip(words) {
        to.copy_from_slice(&word.to_le_bytes());
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_layout_matches_specification() {
        let descriptor = Descriptor {
            opcode: 1,
            flags: 2,
            reserved0: 0x0403,
            tag: 0x0807_0605,
            source: 0x10,
            destination: 0x20,
            length: 0x30,
            operand: 0x40,
            completion: 0x50,
            reserved1: [0x60, 0x70],
        };
        let bytes = descriptor.to_bytes();
        assert_eq!(bytes[..8], [1, 2, 3, 4, 5, 6, 7, 8]);
        for (index, value) in (1..8).zip([0x10, 0x20, 0x30, 0x40, 0x50, 0x60, 0x70]) {
            assert_eq!(bytes[index * 8], value);
        }
        assert_eq!(Descriptor::from_bytes(&bytes), descriptor);
    }

    #[test]
    fn completion_layout_matches_specification() {
        let completion = Completion {
            status: 1,
            fault_flags: 2,
            reserved: 0x0403,
            tag: 0x0807_0605,
            bytes_done: 0x10,
            fault_address: 0x20,
            result: 0x30,
        };
        let bytes = completion.to_bytes();
        assert_eq!(bytes[..9], [1, 2, 3, 4, 5, 6, 7, 8, 0x10]);
        assert_eq!((bytes[16], bytes[24]), (0x20, 0x30));
        assert_eq!(Completion::from_bytes(&bytes), completion);
    }

    #[test]
    fn channel_pages_fit_in_bar0() {
        let end = channel_register(CHANNELS as u32 - 1, CHANNEL_STRIDE);
        assert!(end <= BAR0_SIZE);
        assert_eq!(channel_register(1, CH_HEAD), 0x202c);
    }
}
