//! PCI addresses as people write them.

use std::str::FromStr;

use crate::address::EndpointId;

/// A PCI function, `[SSSS:]BB:DD.F` in hexadecimal.
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
    /// Bus, device and function as PCI packs them into 16 bits.
    pub fn requester_id(self) -> u16 {
        u16::from(self.bus) << 8 | u16::from(self.device) << 3 | u16::from(self.function)
    }

    /// The number by which the virtual IOMMU knows the function.
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
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        parse(text).ok_or_else(|| {
            format!("'{text}' is no PCI address; write BB:DD.F or SSSS:BB:DD.F, as in 00:02.0")
        })
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

/// At most `digits` hexadecimal digits, and nothing else: no sign, no blank.
fn hex(text: &str, digits: usize) -> Option<u16> {
    let valid = (1..=digits).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u16::from_str_radix(text, 16).ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_parse_with_and_without_segment() {
        let bdf: Bdf = "00:02.0".parse().unwrap();
        assert_eq!(bdf.endpoint(), EndpointId(0x10));
        let bdf: Bdf = "0001:ff:1f.7".parse().unwrap();
        assert_eq!(bdf.endpoint(), EndpointId(0x1_ffff));
        assert_eq!(bdf.to_string(), "0001:ff:1f.7");
    }

    #[test]
    fn anything_else_is_refused_and_named() {
        for text in ["", "2.0", "00:20.0", "00:02.8", "0:0:0:2.0", "00:02", "+0:02.0", "100:2.0.0"]
        {
            let error = text.parse::<Bdf>().unwrap_err();
            assert!(error.contains(&format!("'{text}'")), "{error}");
        }
    }
}
