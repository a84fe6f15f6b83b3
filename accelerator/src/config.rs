//! The PCI configuration space of the function.

use super::pri;
use super::regs::*;

/// Size of the configuration space, in bytes.
pub const CONFIG_SIZE: usize = 4096;

// Offsets of the type 0 header (PCI Express base specification, 7.5.1).
const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const REVISION: usize = 0x08;
const CACHE_LINE: usize = 0x0c;
const BAR0: usize = 0x10;
const BAR1: usize = 0x14;
const SUBSYSTEM: usize = 0x2c;
const CAPABILITIES: usize = 0x34;
const INTERRUPT_LINE: usize = 0x3c;

/// Command: memory space, bus master, parity error response, SERR#, interrupt disable.
const COMMAND_WRITABLE: u16 = 0x0546;
const COMMAND_MEMORY: u8 = 1 << 1;
const COMMAND_BUS_MASTER: u8 = 1 << 2;
const STATUS_CAPABILITIES: u16 = 1 << 4;

/// The PCI Express capability (7.5.3), 0x3c bytes.
const EXPRESS: usize = 0x40;
const DEVICE_CONTROL: usize = EXPRESS + 0x08;
/// Error reporting, relaxed ordering, payload size, no snoop, read request size.
const DEVICE_CONTROL_WRITABLE: u16 = 0x78ff;
/// After reset: relaxed ordering, no snoop, read requests of 512 bytes.
const DEVICE_CONTROL_RESET: u16 = 0x2810;
/// In the second byte of Device Control; reads as 0.
const INITIATE_FLR: u8 = 1 << 7;
/// Role-based error reporting, function level reset.
const DEVICE_CAPABILITIES: u32 = 1 << 15 | 1 << 28;
/// End-End TLP Prefix Supported, Max End-End TLP Prefixes 1: a PASID is a TLP prefix.
const DEVICE_CAPABILITIES_2: u32 = 1 << 21 | 1 << 22;
/// One lane of 2.5 GT/s, in Link Capabilities and Link Status.
const LINK: u32 = 0x11;

/// The MSI-X capability (7.7.2), 12 bytes.
const MSIX: usize = 0x80;
/// MSI-X enable and function mask.
const MSIX_CONTROL_WRITABLE: u16 = 0xc000;
/// The table and the pending bits are in BAR 1.
const MSIX_BAR: u32 = 1;

/// The PASID extended capability (7.8.9), 8 bytes. The list of extended capabilities starts at
/// 0x100.
const PASID: usize = PASID_CAPABILITY as usize;
const PASID_HEADER: u32 = extended(0x1b, ATS_CAPABILITY);
/// Width of a PASID in bits. No execute permission, no privileged mode.
const PASID_WIDTH: u16 = 20;
const PASID_CONTROL: usize = PASID + 6;
const PASID_ENABLE: u8 = 1 << 0;

/// The ATS extended capability (10.5.1), 8 bytes.
const ATS: usize = ATS_CAPABILITY as usize;
const ATS_HEADER: u32 = extended(0x0f, PRI_CAPABILITY);
/// Page Aligned Request. Nothing is cached, so the invalidate queue depth (0 stands for 32) has
/// no effect.
const ATS_ALIGNED: u16 = 1 << 5;
const ATS_CONTROL: usize = ATS + 6;
/// Enable and Smallest Translation Unit.
const ATS_CONTROL_WRITABLE: u16 = 1 << 15 | 0x1f;
/// In the second byte of the control register.
const ATS_ENABLE: u8 = 1 << 7;

/// The page request extended capability (10.5.2), 16 bytes.
const PRI: usize = PRI_CAPABILITY as usize;
const PRI_HEADER: u32 = extended(0x13, 0);
/// [`pri::Pri`] owns the registers after the header; the configuration space has a copy.
const PRI_REGISTERS: usize = PRI + 4;

const CAPABILITY_EXPRESS: u8 = 0x10;
const CAPABILITY_MSIX: u8 = 0x11;

/// Returns the header of an extended capability of version 1 (7.6.3). `next` 0 ends the list.
const fn extended(id: u32, next: u32) -> u32 {
    next << 20 | 1 << 16 | id
}

/// Enable bits that the driver sets in the configuration space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Enables {
    /// Bus Master Enable: the function may access memory.
    pub bus_master: bool,
    /// PASID Enable: accesses may have a PASID.
    pub pasid: bool,
    /// ATS Enable, which page requests require.
    pub ats: bool,
}

/// The configuration space of the function.
#[derive(Debug)]
pub struct ConfigSpace {
    bytes: Box<[u8]>,
    /// Mask of the writable bits.
    writable: Box<[u8]>,
}

impl Default for ConfigSpace {
    /// Returns the configuration space after reset.
    fn default() -> Self {
        let zeros = vec![0; CONFIG_SIZE].into_boxed_slice();
        let mut space = Self { bytes: zeros.clone(), writable: zeros };
        space.fill_header();
        space.fill_express();
        space.fill_msix();
        space.fill_pasid();
        space.fill_ats();
        space.set(PRI, &PRI_HEADER.to_le_bytes());
        space
    }
}

impl ConfigSpace {
    /// Reads from `offset`. Bytes beyond the end read as all ones.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = self.bytes.get(offset + index).copied().unwrap_or(u8::MAX);
        }
    }

    /// Writes the writable bits at `offset`. Returns whether this initiates a function level reset.
    pub fn write(&mut self, offset: usize, data: &[u8]) -> bool {
        let space = self.bytes.iter_mut().zip(&self.writable).skip(offset);
        for ((byte, writable), value) in space.zip(data) {
            *byte = *byte & !writable | value & writable;
        }
        let flr = (DEVICE_CONTROL + 1).checked_sub(offset).and_then(|index| data.get(index));
        flr.is_some_and(|value| value & INITIATE_FLR != 0)
    }

    /// Returns whether Memory Space Enable is set, without which the BARs are not accessible.
    pub fn memory_enabled(&self) -> bool {
        self.bytes[COMMAND] & COMMAND_MEMORY != 0
    }

    /// Returns the enable bits.
    pub fn enables(&self) -> Enables {
        Enables {
            bus_master: self.bytes[COMMAND] & COMMAND_BUS_MASTER != 0,
            pasid: self.bytes[PASID_CONTROL] & PASID_ENABLE != 0,
            ats: self.bytes[ATS_CONTROL + 1] & ATS_ENABLE != 0,
        }
    }

    /// Updates the copy of the page request interface's registers.
    pub fn set_pri(&mut self, registers: [u8; pri::REGISTERS]) {
        self.set(PRI_REGISTERS, &registers);
    }

    /// Returns the index and the value of each byte of these registers that a write of `data` at
    /// `offset` covers.
    pub fn pri_bytes(offset: usize, data: &[u8]) -> impl Iterator<Item = (usize, u8)> {
        (0..pri::REGISTERS).filter_map(move |byte| {
            let index = (PRI_REGISTERS + byte).checked_sub(offset)?;
            Some((byte, *data.get(index)?))
        })
    }

    fn fill_header(&mut self) {
        self.set(0, &VENDOR_ID.to_le_bytes());
        self.set(2, &DEVICE_ID.to_le_bytes());
        self.allow(COMMAND, &COMMAND_WRITABLE.to_le_bytes());
        self.set(STATUS, &STATUS_CAPABILITIES.to_le_bytes());
        let [base, sub, interface] = CLASS_CODE;
        self.set(REVISION, &[VERSION_VALUE as u8, interface, sub, base]);
        self.allow(CACHE_LINE, &[u8::MAX]);
        // The bits below the writable ones are 0: 32-bit non-prefetchable memory of that size.
        self.allow(BAR0, &(!(BAR0_SIZE - 1)).to_le_bytes());
        self.allow(BAR1, &(!(BAR1_SIZE - 1)).to_le_bytes());
        self.set(SUBSYSTEM, &VENDOR_ID.to_le_bytes());
        self.set(SUBSYSTEM + 2, &DEVICE_ID.to_le_bytes());
        self.set(CAPABILITIES, &[EXPRESS as u8]);
        self.allow(INTERRUPT_LINE, &[u8::MAX]);
    }

    fn fill_express(&mut self) {
        // Capability version 2, PCI Express endpoint.
        self.set(EXPRESS, &[CAPABILITY_EXPRESS, MSIX as u8, 2, 0]);
        self.set(EXPRESS + 0x04, &DEVICE_CAPABILITIES.to_le_bytes());
        self.set(DEVICE_CONTROL, &DEVICE_CONTROL_RESET.to_le_bytes());
        self.allow(DEVICE_CONTROL, &DEVICE_CONTROL_WRITABLE.to_le_bytes());
        self.set(EXPRESS + 0x0c, &LINK.to_le_bytes());
        self.set(EXPRESS + 0x12, &(LINK as u16).to_le_bytes());
        self.set(EXPRESS + 0x24, &DEVICE_CAPABILITIES_2.to_le_bytes());
    }

    fn fill_msix(&mut self) {
        self.set(MSIX, &[CAPABILITY_MSIX, 0, VECTORS as u8 - 1, 0]);
        self.allow(MSIX + 2, &MSIX_CONTROL_WRITABLE.to_le_bytes());
        self.set(MSIX + 4, &(MSIX_TABLE_OFFSET | MSIX_BAR).to_le_bytes());
        self.set(MSIX + 8, &(MSIX_PBA_OFFSET | MSIX_BAR).to_le_bytes());
    }

    fn fill_pasid(&mut self) {
        self.set(PASID, &PASID_HEADER.to_le_bytes());
        self.set(PASID + 4, &(PASID_WIDTH << 8).to_le_bytes());
        self.allow(PASID_CONTROL, &[PASID_ENABLE]);
    }

    fn fill_ats(&mut self) {
        self.set(ATS, &ATS_HEADER.to_le_bytes());
        self.set(ATS + 4, &ATS_ALIGNED.to_le_bytes());
        self.allow(ATS_CONTROL, &ATS_CONTROL_WRITABLE.to_le_bytes());
    }

    fn set(&mut self, offset: usize, value: &[u8]) {
        self.bytes[offset..][..value.len()].copy_from_slice(value);
    }

    fn allow(&mut self, offset: usize, mask: &[u8]) {
        self.writable[offset..][..mask.len()].copy_from_slice(mask);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read32(space: &ConfigSpace, offset: usize) -> u32 {
        let mut bytes = [0; 4];
        space.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn header_identifies_processing_accelerator() {
        let space = ConfigSpace::default();
        assert_eq!(read32(&space, 0), 0x10f0_1af4);
        assert_eq!(read32(&space, 8), 0x1200_0001);
        assert_eq!(read32(&space, 0x0c) >> 16 & 0xff, 0, "type 0 header");
        assert_eq!(read32(&space, 0x3c) >> 8, 0, "no interrupt pin");
    }

    #[test]
    fn bars_report_size_and_keep_address() {
        let mut space = ConfigSpace::default();
        for (bar, size) in [(BAR0, BAR0_SIZE), (BAR1, BAR1_SIZE)] {
            space.write(bar, &u32::MAX.to_le_bytes());
            assert_eq!(!read32(&space, bar) + 1, size);
            space.write(bar, &0xfebf_1234u32.to_le_bytes());
            assert_eq!(read32(&space, bar), 0xfebf_1234 & !(size - 1));
        }
        for absent in (BAR1 + 4..0x28).step_by(4).chain([0x30]) {
            space.write(absent, &u32::MAX.to_le_bytes());
            assert_eq!(read32(&space, absent), 0, "{absent:#x}");
        }
    }

    #[test]
    fn capability_list_has_express_and_msix() {
        let space = ConfigSpace::default();
        assert_ne!(read32(&space, COMMAND) >> 16 & STATUS_CAPABILITIES as u32, 0);
        let mut found = Vec::new();
        let mut at = read32(&space, CAPABILITIES) as usize & 0xff;
        while at != 0 {
            found.push((read32(&space, at) as u8, at));
            at = read32(&space, at) as usize >> 8 & 0xff;
        }
        assert_eq!(found, [(CAPABILITY_EXPRESS, 0x40), (CAPABILITY_MSIX, 0x80)]);
        assert_eq!(read32(&space, MSIX) >> 16, VECTORS as u32 - 1);
        assert_eq!((read32(&space, MSIX + 4), read32(&space, MSIX + 8)), (1, 0x801));
    }

    #[test]
    fn extended_capability_list_has_pasid_ats_and_pri() {
        let space = ConfigSpace::default();
        let mut found = Vec::new();
        let mut at = 0x100;
        while at != 0 {
            let header = read32(&space, at);
            assert_eq!(header >> 16 & 0xf, 1, "version");
            found.push((header & 0xffff, at));
            at = header as usize >> 20;
        }
        assert_eq!(found, [(0x1b, 0x100), (0x0f, 0x110), (0x13, 0x120)]);
        assert_ne!(
            read32(&space, EXPRESS + 0x24) & 1 << 21,
            0,
            "Linux requires End-End TLP prefixes for PASIDs"
        );
    }

    #[test]
    fn pasid_is_disabled_after_reset() {
        let mut space = ConfigSpace::default();
        assert_eq!(read32(&space, PASID + 4), 20 << 8);
        assert!(!space.enables().pasid);
        space.write(PASID + 4, &[0xff; 4]);
        assert_eq!(read32(&space, PASID + 4), 1 << 16 | 20 << 8);
        assert!(space.enables().pasid);
    }

    #[test]
    fn ats_is_disabled_after_reset_and_keeps_stu() {
        let mut space = ConfigSpace::default();
        assert_eq!(read32(&space, ATS + 4), 1 << 5);
        space.write(ATS + 6, &[0x1f, 0]);
        assert!(!space.enables().ats);
        space.write(ATS + 4, &[0xff; 4]);
        assert_eq!(read32(&space, ATS + 4), 0x801f << 16 | 1 << 5);
        assert!(space.enables().ats);
        space.write(ATS + 6, &[0, 0]);
        assert!(!space.enables().ats);
    }

    #[test]
    fn pri_registers_are_a_read_only_copy() {
        let mut space = ConfigSpace::default();
        let registers = std::array::from_fn(|byte| byte as u8 + 1);
        space.set_pri(registers);
        space.write(PRI, &[0xff; 16]);
        assert_eq!(read32(&space, PRI), 0x0001_0013);
        assert_eq!(read32(&space, PRI + 12), 0x0c0b_0a09);
        let bytes = |offset, data: &[u8]| ConfigSpace::pri_bytes(offset, data).collect::<Vec<_>>();
        assert_eq!(bytes(PRI + 4, &[7, 8]), [(0, 7), (1, 8)]);
        assert_eq!(bytes(PRI + 2, &[5, 6, 7, 8]), [(0, 7), (1, 8)]);
        assert_eq!(bytes(PRI + 14, &[1, 2, 3, 4]), [(10, 1), (11, 2)]);
        assert!(bytes(PRI, &[1; 4]).is_empty() && bytes(0, &[1; 0x100]).is_empty());
        assert!(bytes(usize::MAX, &[1; 4]).is_empty());
    }

    #[test]
    fn command_is_zero_after_reset_and_masks_writes() {
        let mut space = ConfigSpace::default();
        assert!(!space.memory_enabled() && !space.enables().bus_master);
        space.write(COMMAND, &[0xff; 4]);
        assert_eq!(read32(&space, COMMAND), 0x0010_0546);
        assert!(space.memory_enabled() && space.enables().bus_master);
    }

    #[test]
    fn read_only_bytes_ignore_writes() {
        let mut space = ConfigSpace::default();
        space.write(0, &[0xff; CONFIG_SIZE]);
        assert_eq!(read32(&space, 0), 0x10f0_1af4);
        assert_eq!(read32(&space, MSIX), 0xc01f_0011);
    }

    #[test]
    fn function_level_reset_bit_is_detected_and_reads_zero() {
        let mut space = ConfigSpace::default();
        assert!(space.write(DEVICE_CONTROL, &[0x10, 0xa8]));
        assert_eq!(read32(&space, DEVICE_CONTROL), 0x2810);
        assert!(space.write(DEVICE_CONTROL + 1, &[0x80]));
        assert!(!space.write(DEVICE_CONTROL, &[0x80]));
        assert!(!space.write(DEVICE_CONTROL, &[0x10, 0x28]));
        assert!(!space.write(DEVICE_CONTROL + 2, &[0x80]));
    }

    #[test]
    fn reads_beyond_end_return_ones() {
        let mut space = ConfigSpace::default();
        assert!(!space.write(CONFIG_SIZE - 2, &[1; 8]));
        let mut bytes = [0; 4];
        space.read(CONFIG_SIZE - 2, &mut bytes);
        assert_eq!(bytes, [0, 0, 0xff, 0xff]);
        space.read(usize::MAX - 8, &mut bytes);
    }
}
