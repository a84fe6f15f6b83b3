//! PCI addresses in their text form.

use std::str::FromStr;

use crate::address::EndpointId;

/// Text that is not a PCI address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("must be a PCI address, BB:DD.F or SSSS:BB:DD.F, as in 00:02.0")]
pub struct ParseBdfError;

/// The address of a PCI function, `[SSSS:]BB:DD.F` in hexadecimal.
///
/// ```
/// use vhost_user_iommu::cli::bdf::Bdf;
///
/// let function: Bdf = "00:02.1".parse()?;
/// assert_eq!((function.bus, function.device, function.function), (0, 2, 1));
/// assert_eq!(function.to_string(), "0000:00:02.1");
/// # Ok::<(), vhost_user_iommu::cli::bdf::ParseBdfError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bdf {
    /// Segment (domain) of the PCI hierarchy.
    pub segment: u16,
    /// Bus number.
    pub bus: u8,
    /// Device number, 0 to 31.
    pub device: u8,
    /// Function number, 0 to 7.
    pub function: u8,
}

impl Bdf {
    /// Returns the requester ID: bus, device and function, packed into 16 bits.
    pub fn requester_id(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }

    /// Returns the endpoint ID of the function at the virtual IOMMU.
    pub fn endpoint(self) -> EndpointId {
        EndpointId(u32::from(self.segment) << 16 | u32::from(self.requester_id()))
    }
}

impl From<EndpointId> for Bdf {
    fn from(EndpointId(id): EndpointId) -> Self {
        Self {
            segment: (id >> 16) as u16,
            bus: (id >> 8) as u8,
            device: (id >> 3) as u8 & 0x1f,
            function: id as u8 & 7,
        }
    }
}

impl std::fmt::Display for Bdf {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.endpoint().fmt(f)
    }
}

impl FromStr for Bdf {
    type Err = ParseBdfError;

    fn from_str(text: &str) -> Result<Self, ParseBdfError> {
        parse(text).ok_or(ParseBdfError)
    }
}

fn parse(text: &str) -> Option<Bdf> {
    let (rest, function) = text.split_once('.')?;
    let mut parts = rest.rsplit(':');
    let (device, bus, segment) = (parts.next()?, parts.next()?, parts.next());
    let bdf = Bdf {
        segment: hex(segment.unwrap_or("0"), 4)?,
        bus: hex(bus, 2)?.try_into().ok()?,
        device: hex(device, 2)?.try_into().ok()?,
        function: hex(function, 1)?.try_into().ok()?,
    };
    (parts.next().is_none() && bdf.device < 32 && bdf.function < 8).then_some(bdf)
}

/// Parses one to `digits` hexadecimal digits, without a sign or prefix.
fn hex(text: &str, digits: usize) -> Option<u16> {
    let valid = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u16::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_parses_with_and_without_segment() {
        let bdf: Bdf = "00:02.0".parse().unwrap();
        assert_eq!(bdf.endpoint(), EndpointId(0x10));
        let bdf: Bdf = "0001:ff:1f.7".parse().unwrap();
        assert_eq!(bdf.endpoint(), EndpointId(0x1_ffff));
        assert_eq!(Bdf::from(bdf.endpoint()), bdf);
        assert_eq!(bdf.to_string(), "0001:ff:1f.7");
    }

    #[test]
    fn other_text_is_rejected() {
        for text in ["", "2.0", "00:20.0", "00:02.8", "0:0:0:2.0", "00:02", "+0:02.0", "100:2.0.0"]
        {
            assert_eq!(text.parse::<Bdf>(), Err(ParseBdfError), "'{text}'");
        }
    }
}
