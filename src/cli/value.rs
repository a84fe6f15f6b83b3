//! The types of option values, read from the command line or from the configuration file.
//!
//! Each type implements [`FromStr`], which both readers use.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::address::IovaRange;
use crate::cli::bdf::{Bdf, ParseBdfError};
use crate::endpoint::{EndpointConfig, EndpointKind};
use crate::host::{ReservedKind, ReservedRegion};

/// The reason why an option value is invalid: the values that the option accepts.
///
/// The message does not repeat the value: the parsers of the command line and of the
/// configuration file add it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ValueError {
    /// Not a page size.
    #[error("must be a power of two from 4K to 1G")]
    PageSize,
    /// Not a number of descriptors that a virtqueue can have.
    #[error("must be a power of two from 1 to 32768")]
    QueueSize,
    /// Not an integer, or outside the range of the option.
    #[error("{}", integer_from(*.min, *.max))]
    Integer {
        /// The smallest accepted value.
        min: u64,
        /// The largest accepted value.
        max: u64,
    },
    /// Not a range of addresses.
    #[error("must be FIRST-LAST in hexadecimal, as in 0x1000-0xffffff")]
    Range,
    /// Not a type of reserved region.
    #[error("the type must be msi or reserved")]
    RegionType,
    /// No group has this name.
    #[error("must be a group of this system, by name or number; see getent group")]
    Group,
    /// Not a file mode.
    #[error("must be permissions in octal from 0 to 777, as in 660")]
    FileMode,
    /// Not a time, or outside the range of the option.
    #[error("must be seconds from 0.001 to 86400")]
    Seconds,
    /// Not a boolean.
    #[error("must be on or off")]
    Switch,
    /// Not an amount of guest memory.
    #[error("must be a multiple of 1M from 16M to 512G; a number without a suffix is in MiB")]
    Memory,
    /// Not a PCI address.
    #[error(transparent)]
    Address(#[from] ParseBdfError),
    /// Not an endpoint.
    #[error(
        "must be BDF,sim=SOCKET, as in 00:02.0,sim=/run/accel.sock, or BDF,vfio=DEVICE, as in \
         00:02.0,vfio=/dev/vfio/devices/vfio0"
    )]
    Endpoint,
    /// An endpoint table with no kind, or with several.
    #[error("must have exactly one of sim and vfio")]
    EndpointTable,
}

fn integer_from(min: u64, max: u64) -> String {
    match (min, max) {
        (1, u64::MAX) => "must be a positive integer".into(),
        (min, max) => format!("must be an integer from {min} to {max}"),
    }
}

/// An integer from `MIN` to `MAX`.
///
/// ```
/// use vhost_user_iommu::cli::value::Integer;
///
/// assert_eq!("100".parse::<Integer<1, 100>>().unwrap().0, 100);
/// let error = "101".parse::<Integer<1, 100>>().unwrap_err();
/// assert_eq!(error.to_string(), "must be an integer from 1 to 100");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Integer<const MIN: u64, const MAX: u64 = { u64::MAX }>(pub u64);

impl<const MIN: u64, const MAX: u64> FromStr for Integer<MIN, MAX> {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let number = text.parse().ok().filter(|number| (MIN..=MAX).contains(number));
        number.map(Self).ok_or(ValueError::Integer { min: MIN, max: MAX })
    }
}

impl<const MIN: u64, const MAX: u64> fmt::Display for Integer<MIN, MAX> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A page size in bytes, a power of two; read with an optional suffix K, M or G.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageSize(pub u64);

impl FromStr for PageSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (digits, unit) = split_unit(text);
        bytes(digits, unit.unwrap_or(1))
            .filter(|bytes| bytes.is_power_of_two() && (4 << 10..=1 << 30).contains(bytes))
            .map(Self)
            .ok_or(ValueError::PageSize)
    }
}

/// An amount of guest memory in MiB; read with an optional suffix K, M, G or T. Without, the
/// number is in MiB, as for QEMU's `-m`.
///
/// QEMU rejects a memory backend whose size is not a multiple of the page size, and its default
/// CPU model cannot address a terabyte.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory(u64);

impl FromStr for Memory {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        const MIB: u64 = 1 << 20;
        let (digits, unit) = split_unit(text);
        bytes(digits, unit.unwrap_or(MIB))
            .filter(|bytes| bytes.is_multiple_of(MIB) && (16 << 20..=512 << 30).contains(bytes))
            .map(|bytes| Self(bytes / MIB))
            .ok_or(ValueError::Memory)
    }
}

/// Prints the amount with a suffix, as QEMU's options accept it.
impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            mebibytes if mebibytes.is_multiple_of(1024) => write!(f, "{}G", mebibytes / 1024),
            mebibytes => write!(f, "{mebibytes}M"),
        }
    }
}

/// Splits a number from its suffix, and returns the unit in bytes that the suffix stands for.
fn split_unit(text: &str) -> (&str, Option<u64>) {
    const SUFFIXES: [(char, u64); 4] =
        [('K', 1 << 10), ('M', 1 << 20), ('G', 1 << 30), ('T', 1 << 40)];
    for (suffix, unit) in SUFFIXES {
        if let Some(digits) = text.strip_suffix([suffix, suffix.to_ascii_lowercase()]) {
            return (digits, Some(unit));
        }
    }
    (text, None)
}

fn bytes(digits: &str, unit: u64) -> Option<u64> {
    digits.parse::<u64>().ok()?.checked_mul(unit)
}

/// The size of a virtqueue in descriptors, a power of two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueSize(pub u16);

impl FromStr for QueueSize {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let size = text.parse().ok().filter(|size: &u16| size.is_power_of_two());
        size.map(Self).ok_or(ValueError::QueueSize)
    }
}

/// A group, by its number; read as a name or a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group(pub u32);

impl FromStr for Group {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if let Ok(number) = text.parse() {
            return Ok(Self(number));
        }
        let group = uzers::get_group_by_name(text).ok_or(ValueError::Group)?;
        Ok(Self(group.gid()))
    }
}

/// The permissions of a file; read in octal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileMode(pub u32);

impl FromStr for FileMode {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        // The standard library accepts a sign, too.
        let number = if text.starts_with('+') { None } else { u32::from_str_radix(text, 8).ok() };
        number.filter(|mode| *mode <= 0o777).map(Self).ok_or(ValueError::FileMode)
    }
}

/// A time; read in seconds, with fractions.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Seconds(pub Duration);

impl FromStr for Seconds {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let seconds = text.parse().ok().filter(|seconds| (0.001..=86400.0).contains(seconds));
        seconds.map(|seconds| Self(Duration::from_secs_f64(seconds))).ok_or(ValueError::Seconds)
    }
}

/// A boolean; read as `on` or `off`, or in one of the other usual forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Switch(pub bool);

impl FromStr for Switch {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text.to_ascii_lowercase().as_str() {
            "on" | "true" | "t" | "yes" | "y" | "1" => Ok(Self(true)),
            "off" | "false" | "f" | "no" | "n" | "0" => Ok(Self(false)),
            _ => Err(ValueError::Switch),
        }
    }
}

impl FromStr for IovaRange {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (first, last) = text.split_once('-').ok_or(ValueError::Range)?;
        IovaRange::new(address(first)?, address(last)?).ok_or(ValueError::Range)
    }
}

fn address(text: &str) -> Result<u64, ValueError> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    // The standard library accepts a sign, too.
    if digits.starts_with('+') {
        return Err(ValueError::Range);
    }
    u64::from_str_radix(digits, 16).map_err(|_| ValueError::Range)
}

/// A reserved region, or `none` for an empty list of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RegionOrNone(pub Option<ReservedRegion>);

impl FromStr for RegionOrNone {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        if text == "none" {
            return Ok(Self(None));
        }
        let (range, kind) = text.split_once(",type=").unwrap_or((text, "reserved"));
        Ok(Self(Some(ReservedRegion { range: range.parse()?, kind: kind.parse()? })))
    }
}

impl FromStr for ReservedKind {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        match text {
            "msi" => Ok(Self::Msi),
            "reserved" => Ok(Self::Reserved),
            _ => Err(ValueError::RegionType),
        }
    }
}

impl FromStr for EndpointConfig {
    type Err = ValueError;

    fn from_str(text: &str) -> Result<Self, ValueError> {
        let (address, kind) = text.split_once(',').ok_or(ValueError::Endpoint)?;
        let id = address.parse::<Bdf>()?.endpoint();
        let (kind, path) = kind.split_once('=').ok_or(ValueError::Endpoint)?;
        if path.is_empty() {
            return Err(ValueError::Endpoint);
        }
        let kind = match kind {
            "sim" => EndpointKind::Sim(path.into()),
            "vfio" => EndpointKind::Vfio(path.into()),
            #[cfg(feature = "selftest")]
            "mock" => EndpointKind::Mock(path.into()),
            _ => return Err(ValueError::Endpoint),
        };
        Ok(Self { id, kind })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn assert_invalid<T: FromStr<Err = ValueError> + fmt::Debug>(
        texts: &[&str],
        expected: ValueError,
    ) {
        for text in texts {
            assert_eq!(text.parse::<T>().unwrap_err(), expected, "'{text}'");
        }
    }

    #[test]
    fn file_mode_is_octal() {
        assert_eq!(("660".parse(), "0600".parse()), (Ok(FileMode(0o660)), Ok(FileMode(0o600))));
        let invalid = ["", "8", "rw", "-1", "+7", "1000", "77777777777"];
        assert_invalid::<FileMode>(&invalid, ValueError::FileMode);
    }

    #[test]
    fn group_is_a_name_or_a_number() {
        for (text, number) in [("0", 0), ("root", 0), ("1234", 1234)] {
            assert_eq!(text.parse(), Ok(Group(number)));
        }
        assert_invalid::<Group>(&["no such"], ValueError::Group);
    }

    #[test]
    fn page_size_has_an_optional_suffix() {
        for (text, bytes) in [("4096", 4096), ("4K", 4096), ("2m", 2 << 20), ("1G", 1 << 30)] {
            assert_eq!(text.parse(), Ok(PageSize(bytes)));
        }
        let invalid = ["", "K", "2048", "2G", "5K", "99999999999999999999G", "-4K", "1T"];
        assert_invalid::<PageSize>(&invalid, ValueError::PageSize);
    }

    #[test]
    fn memory_without_suffix_is_in_mebibytes() {
        let rows = [
            ("512", "512M"),
            ("1024", "1G"),
            ("512M", "512M"),
            ("524288K", "512M"),
            ("1536m", "1536M"),
            ("1G", "1G"),
            ("2g", "2G"),
            ("512G", "512G"),
        ];
        for (text, printed) in rows {
            assert_eq!(text.parse::<Memory>().unwrap().to_string(), printed);
        }
        let invalid =
            ["", "0", "G", "15M", "513G", "1T", "-1G", "1.5G", "1GB", "lots", "16385K", "1G,x=1"];
        assert_invalid::<Memory>(&invalid, ValueError::Memory);
    }

    #[test]
    fn range_is_hexadecimal_with_inclusive_ends() {
        assert_eq!("0-0xffffffffffffffff".parse(), Ok(IovaRange::ALL));
        let invalid = ["", "1", "2-1", "0-g", "0-10000000000000000", "+1-2", "0x-1"];
        assert_invalid::<IovaRange>(&invalid, ValueError::Range);
    }

    #[test]
    fn switch_accepts_the_usual_forms() {
        for (text, on) in
            [("on", true), ("Yes", true), ("1", true), ("off", false), ("FALSE", false)]
        {
            assert_eq!(text.parse(), Ok(Switch(on)));
        }
        assert_invalid::<Switch>(&["", "2", "maybe"], ValueError::Switch);
    }
}
