//! Numbers of the wire format (virtio 1.4, IOMMU device; `linux/virtio_iommu.h`).
//!
//! `virtio-bindings` does not cover this device, hence these. All fields are little-endian.

/// Feature bits, as shifts.
pub mod feature {
    /// `input_range` in the configuration space is valid.
    pub const INPUT_RANGE: u32 = 0;
    /// `domain_range` in the configuration space is valid.
    pub const DOMAIN_RANGE: u32 = 1;
    /// MAP and UNMAP exist.
    pub const MAP_UNMAP: u32 = 2;
    /// PROBE exists.
    pub const PROBE: u32 = 4;
    /// `bypass` in the configuration space, and bypass domains, exist.
    pub const BYPASS_CONFIG: u32 = 6;
    /// ATTACH and DETACH can name a PASID. An extension (`docs/page-requests.md`); experimental, so far
    /// from the bits of the standard.
    pub const PASID: u32 = 20;
    /// Recoverable faults are delivered, and PAGE_RESP exists. As above.
    pub const PAGE_REQUEST: u32 = 21;
}

/// Request types: the first byte of a request.
pub mod request {
    pub const ATTACH: u8 = 1;
    pub const DETACH: u8 = 2;
    pub const MAP: u8 = 3;
    pub const UNMAP: u8 = 4;
    pub const PROBE: u8 = 5;
    /// Extension.
    pub const PAGE_RESP: u8 = 8;
}

/// Sizes in bytes of the parts of requests that the driver writes: head and body.
pub mod size {
    pub const HEAD: usize = 4;
    pub const ATTACH: usize = 20;
    pub const DETACH: usize = 20;
    pub const MAP: usize = 36;
    pub const UNMAP: usize = 28;
    pub const PROBE: usize = 72;
    pub const PAGE_RESP: usize = 28;
    /// The longest of them.
    pub const MAX: usize = PROBE;
    /// What the device writes behind each request: status and three reserved bytes.
    pub const TAIL: usize = 4;
    /// A fault event.
    pub const FAULT: usize = 24;
    /// A fault event for a driver that takes page requests (extension).
    pub const LONG_FAULT: usize = 48;
    /// The head of a property: type and length.
    pub const PROPERTY_HEAD: usize = 4;
    /// The configuration space.
    pub const CONFIG: usize = 40;
}

/// ATTACH: the domain is a bypass domain.
pub const ATTACH_F_BYPASS: u32 = 1 << 0;

/// ATTACH: the domain is for a PASID of the endpoint (extension).
pub const ATTACH_F_PASID: u32 = 1 << 1;
/// DETACH: of a PASID of the endpoint (extension).
pub const DETACH_F_PASID: u32 = 1 << 0;

/// PAGE_RESP: the PASID is valid (extension).
pub const PAGE_RESP_F_PASID: u32 = 1 << 0;
/// PAGE_RESP: how the group is answered (extension).
pub mod page_resp {
    pub const SUCCESS: u16 = 0;
    pub const INVALID: u16 = 1;
    pub const FAILURE: u16 = 2;
}

/// MAP: the mapping can be read.
pub const MAP_F_READ: u32 = 1 << 0;
/// MAP: the mapping can be written.
pub const MAP_F_WRITE: u32 = 1 << 1;

/// PROBE: a reserved memory region.
pub const PROBE_T_RESV_MEM: u16 = 1;
/// PROBE: the PASIDs that an endpoint can use (extension).
pub const PROBE_T_PASID: u16 = 0x801;
/// PROBE: the page requests that an endpoint makes (extension).
pub const PROBE_T_PAGE_REQUEST: u16 = 0x802;
/// The answer to a page request has to name its PASID.
pub const PAGE_REQUEST_F_NEEDS_PASID: u8 = 1 << 0;
/// Reserved memory that is never mapped.
pub const RESV_MEM_T_RESERVED: u8 = 0;
/// Reserved memory where message-signalled interrupts are written.
pub const RESV_MEM_T_MSI: u8 = 1;

/// Fault event: reasons and flags.
pub mod fault {
    pub const R_DOMAIN: u8 = 1;
    pub const R_MAPPING: u8 = 2;
    pub const F_READ: u32 = 1 << 0;
    pub const F_WRITE: u32 = 1 << 1;
    // The rest but ADDRESS is of the extension.
    pub const F_EXEC: u32 = 1 << 2;
    pub const F_PRIVILEGED: u32 = 1 << 3;
    pub const F_LAST: u32 = 1 << 4;
    pub const F_PAGE_REQ: u32 = 1 << 5;
    pub const F_ADDRESS: u32 = 1 << 8;
    pub const F_PASID: u32 = 1 << 9;
    pub const F_GROUP_ID: u32 = 1 << 10;
}
