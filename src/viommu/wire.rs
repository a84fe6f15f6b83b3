//! The wire format: structures and constants of the device (virtio 1.4, 5.13) and of the page
//! request extension (`docs/page-requests.md`).
//!
//! Names are those of the specification without the prefix `virtio_iommu_` or `VIRTIO_IOMMU_`. All
//! fields are little-endian, and every structure can be read from and written to bytes at any
//! alignment. A request consists of a device-readable part, which the `Req*` structures describe,
//! and a device-writable part that ends with [`ReqTail`].

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// Feature bit: `input_range` of the configuration space is valid.
pub const F_INPUT_RANGE: u32 = 0;
/// Feature bit: `domain_range` of the configuration space is valid.
pub const F_DOMAIN_RANGE: u32 = 1;
/// Feature bit: MAP and UNMAP requests are available.
pub const F_MAP_UNMAP: u32 = 2;
/// Feature bit: PROBE requests are available.
pub const F_PROBE: u32 = 4;
/// Feature bit: `bypass` of the configuration space and bypass domains are available.
pub const F_BYPASS_CONFIG: u32 = 6;
/// Feature bit of the extension: ATTACH and DETACH can specify a PASID. Experimental, not assigned
/// by the specification.
pub const F_PASID: u32 = 20;
/// Feature bit of the extension: page requests are delivered, and PAGE_RESP requests are
/// available. Experimental, not assigned by the specification.
pub const F_PAGE_REQUEST: u32 = 21;

/// Request type ATTACH.
pub const T_ATTACH: u8 = 1;
/// Request type DETACH.
pub const T_DETACH: u8 = 2;
/// Request type MAP.
pub const T_MAP: u8 = 3;
/// Request type UNMAP.
pub const T_UNMAP: u8 = 4;
/// Request type PROBE.
pub const T_PROBE: u8 = 5;
/// Request type PAGE_RESP (extension).
pub const T_PAGE_RESP: u8 = 8;

/// ATTACH: the domain is a bypass domain.
pub const ATTACH_F_BYPASS: u32 = 1 << 0;
/// ATTACH: attach the PASID, not the endpoint itself (extension).
pub const ATTACH_F_PASID: u32 = 1 << 1;
/// DETACH: detach the PASID, not the endpoint itself (extension).
pub const DETACH_F_PASID: u32 = 1 << 0;

/// MAP: reads are allowed.
pub const MAP_F_READ: u32 = 1 << 0;
/// MAP: writes are allowed.
pub const MAP_F_WRITE: u32 = 1 << 1;

/// PAGE_RESP: `pasid` is valid (extension).
pub const PAGE_RESP_F_PASID: u32 = 1 << 0;
/// PAGE_RESP code: the pages are mapped, retry the access (extension).
pub const PAGE_RESP_SUCCESS: u16 = 0;
/// PAGE_RESP code: the access is invalid (extension).
pub const PAGE_RESP_INVALID: u16 = 1;
/// PAGE_RESP code: the access failed, make no further page requests (extension).
pub const PAGE_RESP_FAILURE: u16 = 2;

/// PROBE property: a reserved memory region.
pub const PROBE_T_RESV_MEM: u16 = 1;
/// PROBE property: the PASID width of an endpoint (extension).
pub const PROBE_T_PASID: u16 = 0x801;
/// PROBE property: the page request interface of an endpoint (extension).
pub const PROBE_T_PAGE_REQUEST: u16 = 0x802;
/// Reserved memory that cannot be mapped.
pub const RESV_MEM_T_RESERVED: u8 = 0;
/// Reserved memory where writes are message-signaled interrupts.
pub const RESV_MEM_T_MSI: u8 = 1;
/// Page request property: a response to a page request with a PASID has to specify the PASID
/// (extension).
pub const PAGE_REQUEST_F_NEEDS_PASID: u8 = 1 << 0;

/// Fault reason: the endpoint is attached to no domain.
pub const FAULT_R_DOMAIN: u8 = 1;
/// Fault reason: no mapping allows the access.
pub const FAULT_R_MAPPING: u8 = 2;
/// Fault flag: the access reads.
pub const FAULT_F_READ: u32 = 1 << 0;
/// Fault flag: the access writes.
pub const FAULT_F_WRITE: u32 = 1 << 1;
/// Fault flag: the access fetches instructions (extension).
pub const FAULT_F_EXEC: u32 = 1 << 2;
/// Fault flag: the access is privileged (extension).
pub const FAULT_F_PRIVILEGED: u32 = 1 << 3;
/// Fault flag: the last page request of its group (extension).
pub const FAULT_F_LAST: u32 = 1 << 4;
/// Fault flag: a page request, which expects a response (extension).
pub const FAULT_F_PAGE_REQ: u32 = 1 << 5;
/// Fault flag: `address` is valid.
pub const FAULT_F_ADDRESS: u32 = 1 << 8;
/// Fault flag: `pasid` is valid (extension).
pub const FAULT_F_PASID: u32 = 1 << 9;
/// Fault flag: `group_id` is valid (extension).
pub const FAULT_F_GROUP_ID: u32 = 1 << 10;

/// Defines a structure of the wire format and checks its size.
macro_rules! wire_struct {
    ($(#[$doc:meta])* $name:ident, $size:literal bytes {
        $($(#[$field_doc:meta])* $field:ident: $type:ty,)*
    }) => {
        $(#[$doc])*
        #[derive(
            Clone, Copy, Debug, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned,
        )]
        #[repr(C)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: $type,)*
        }

        const _: () = assert!(size_of::<$name>() == $size);
    };
}

wire_struct! {
    /// Head of a request (5.13.6).
    ReqHead, 4 bytes {
        /// Request type, `T_*`.
        r#type: u8,
        /// Ignored.
        reserved: [u8; 3],
    }
}

wire_struct! {
    /// Tail of a request (5.13.6), written by the device.
    ReqTail, 4 bytes {
        /// [`Status`](super::status::Status) of the request.
        status: u8,
        /// Zero.
        reserved: [u8; 3],
    }
}

wire_struct! {
    /// ATTACH request (5.13.6.3).
    ReqAttach, 20 bytes {
        /// Head.
        head: ReqHead,
        /// Domain, created if it does not exist.
        domain: U32,
        /// Endpoint to attach.
        endpoint: U32,
        /// `ATTACH_F_*`.
        flags: U32,
        /// PASID to attach with [`ATTACH_F_PASID`] (extension), otherwise reserved: must be zero.
        pasid: U32,
    }
}

wire_struct! {
    /// DETACH request (5.13.6.4).
    ReqDetach, 20 bytes {
        /// Head.
        head: ReqHead,
        /// Domain that the endpoint is attached to.
        domain: U32,
        /// Endpoint to detach.
        endpoint: U32,
        /// `DETACH_F_*` with [`F_PASID`] (extension), otherwise reserved: ignored.
        flags: U32,
        /// PASID to detach with [`DETACH_F_PASID`] (extension), otherwise ignored.
        pasid: U32,
    }
}

wire_struct! {
    /// MAP request (5.13.6.5).
    ReqMap, 36 bytes {
        /// Head.
        head: ReqHead,
        /// Domain.
        domain: U32,
        /// First I/O virtual address.
        virt_start: U64,
        /// Last I/O virtual address (inclusive).
        virt_end: U64,
        /// Guest-physical address that `virt_start` translates to.
        phys_start: U64,
        /// `MAP_F_*`.
        flags: U32,
    }
}

wire_struct! {
    /// UNMAP request (5.13.6.6).
    ReqUnmap, 28 bytes {
        /// Head.
        head: ReqHead,
        /// Domain.
        domain: U32,
        /// First I/O virtual address.
        virt_start: U64,
        /// Last I/O virtual address (inclusive).
        virt_end: U64,
        /// Ignored: Linux leaves it uninitialized.
        reserved: [u8; 4],
    }
}

wire_struct! {
    /// PROBE request (5.13.6.7). The device-writable part has `probe_size` bytes of properties
    /// before the tail.
    ReqProbe, 72 bytes {
        /// Head.
        head: ReqHead,
        /// Endpoint to probe.
        endpoint: U32,
        /// Ignored.
        reserved: [u8; 64],
    }
}

wire_struct! {
    /// PAGE_RESP request (extension).
    ReqPageResp, 28 bytes {
        /// Head.
        head: ReqHead,
        /// Endpoint that made the page requests.
        endpoint: U32,
        /// `PAGE_RESP_F_*`.
        flags: U32,
        /// PASID of the page request group, zero without [`PAGE_RESP_F_PASID`].
        pasid: U32,
        /// Page request group.
        group_id: U16,
        /// `PAGE_RESP_*`.
        code: U16,
        /// Must be zero.
        reserved: [u8; 8],
    }
}

wire_struct! {
    /// Head of a PROBE property (5.13.6.7).
    ProbeProperty, 4 bytes {
        /// Property type, `PROBE_T_*`.
        r#type: U16,
        /// Size of the property without this head, in bytes.
        length: U16,
    }
}

wire_struct! {
    /// Reserved memory region (5.13.6.7.1).
    ProbeResvMem, 24 bytes {
        /// Head.
        head: ProbeProperty,
        /// `RESV_MEM_T_*`.
        subtype: u8,
        /// Zero.
        reserved: [u8; 3],
        /// First I/O virtual address.
        start: U64,
        /// Last I/O virtual address (inclusive).
        end: U64,
    }
}

wire_struct! {
    /// PASID width of an endpoint (extension).
    ProbePasid, 8 bytes {
        /// Head.
        head: ProbeProperty,
        /// Width of the PASID space in bits, 1 to 20.
        bits: u8,
        /// Zero.
        reserved: [u8; 3],
    }
}

wire_struct! {
    /// Page request interface of an endpoint (extension).
    ProbePageRequest, 8 bytes {
        /// Head.
        head: ProbeProperty,
        /// `PAGE_REQUEST_F_*`.
        flags: u8,
        /// Zero.
        reserved: u8,
        /// Maximum number of outstanding page request groups.
        max_groups: U16,
    }
}

wire_struct! {
    /// Fault event (5.13.6.8).
    Fault, 24 bytes {
        /// `FAULT_R_*`.
        reason: u8,
        /// Zero.
        reserved: [u8; 3],
        /// `FAULT_F_*`.
        flags: U32,
        /// Endpoint that issued the access.
        endpoint: U32,
        /// PASID of the access with [`FAULT_F_PASID`] (extension), otherwise zero.
        pasid: U32,
        /// Address of the access.
        address: U64,
    }
}

wire_struct! {
    /// Event for a driver with [`F_PAGE_REQUEST`] (extension).
    ExtendedFault, 48 bytes {
        /// Fault event of the specification.
        fault: Fault,
        /// Page request group, zero without [`FAULT_F_GROUP_ID`].
        group_id: U16,
        /// Zero.
        reserved: [u8; 22],
    }
}

wire_struct! {
    /// Inclusive range of 64-bit values.
    Range64, 16 bytes {
        /// First value.
        start: U64,
        /// Last value.
        end: U64,
    }
}

wire_struct! {
    /// Inclusive range of 32-bit values.
    Range32, 8 bytes {
        /// First value.
        start: U32,
        /// Last value.
        end: U32,
    }
}

wire_struct! {
    /// Configuration space (5.13.4).
    Config, 40 bytes {
        /// Supported page sizes, one bit for each.
        page_size_mask: U64,
        /// I/O virtual addresses that can be mapped.
        input_range: Range64,
        /// Domain identifiers that can be used.
        domain_range: Range32,
        /// Size of the properties in a PROBE request, in bytes.
        probe_size: U32,
        /// Whether unattached endpoints are in bypass mode: 0 or 1. The only writable field.
        bypass: u8,
        /// Zero.
        reserved: [u8; 3],
    }
}
