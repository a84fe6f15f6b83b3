//! The configuration file: the options of the daemon in TOML, under their names on the command
//! line.
//!
//! A value can be a string, a number or a boolean; its text is parsed as on the command line. An
//! option that can be repeated on the command line is an array, and each element a string or a
//! table. The file is the default of options that the command line does not give.

use std::fmt;
use std::io;
use std::marker::PhantomData;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::de::value::MapAccessDeserializer;
use serde::de::{Error, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};

use crate::address::IovaRange;
use crate::cli::args::DaemonArgs;
use crate::cli::bdf::Bdf;
use crate::cli::value::{RegionOrNone, ValueError};
use crate::endpoint::{EndpointConfig, EndpointKind};
use crate::host::{ReservedKind, ReservedRegion};

/// A configuration file that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("{}: {reason}", path.display())]
pub struct ConfigError {
    path: PathBuf,
    #[source]
    reason: Reason,
}

#[derive(Debug, thiserror::Error)]
enum Reason {
    #[error("cannot read the file: {0}")]
    Read(#[from] io::Error),
    #[error("line {line}: {}\n  | {text}", source.message())]
    Invalid { line: usize, text: String, source: Box<toml::de::Error> },
    #[error("--socket-path and --fd exclude each other")]
    TwoSockets,
}

/// Reads a configuration file. Options that are not in the file have their defaults.
///
/// # Errors
/// When the file cannot be read, is not TOML, or has an unknown option or an invalid value.
pub(super) fn read(path: &Path) -> Result<DaemonArgs, ConfigError> {
    parse(path).map_err(|reason| ConfigError { path: path.into(), reason })
}

fn parse(path: &Path) -> Result<DaemonArgs, Reason> {
    let text = std::fs::read_to_string(path)?;
    let args: DaemonArgs = toml::from_str(&text).map_err(|error| Reason::invalid(&text, error))?;
    if args.socket_path.is_some() && args.fd.is_some() {
        return Err(Reason::TwoSockets);
    }
    Ok(args)
}

impl Reason {
    fn invalid(text: &str, source: toml::de::Error) -> Self {
        let start = source.span().map_or(0, |span| span.start);
        let line = text[..start].matches('\n').count();
        let shown = text.lines().nth(line).unwrap_or_default().trim().to_owned();
        Self::Invalid { line: line + 1, text: shown, source: Box::new(source) }
    }
}

/// Deserializes an option from a string, a number or a boolean.
pub(super) fn value<'de, T, D>(deserializer: D) -> Result<T, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    deserializer.deserialize_any(Scalar(PhantomData))
}

/// Deserializes an option without a default.
pub(super) fn optional<'de, T, D>(deserializer: D) -> Result<Option<T>, D::Error>
where
    T: FromStr<Err: fmt::Display>,
    D: Deserializer<'de>,
{
    value(deserializer).map(Some)
}

/// Deserializes an option that has no value on the command line.
pub(super) fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    bool::deserialize(deserializer)
}

/// Parses the text of a scalar.
struct Scalar<T>(PhantomData<T>);

impl<T: FromStr<Err: fmt::Display>> Visitor<'_> for Scalar<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, a number or a boolean")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        if text.is_empty() {
            return Err(E::custom("invalid value '': must not be empty"));
        }
        text.parse().map_err(|error| E::custom(format_args!("invalid value '{text}': {error}")))
    }

    fn visit_i64<E: Error>(self, number: i64) -> Result<T, E> {
        self.visit_str(&number.to_string())
    }

    fn visit_f64<E: Error>(self, number: f64) -> Result<T, E> {
        // With a fraction even if it is 0, so that integers stay integers.
        self.visit_str(&format!("{number:?}"))
    }

    fn visit_bool<E: Error>(self, value: bool) -> Result<T, E> {
        self.visit_str(&value.to_string())
    }
}

/// An option that the file can give several times.
pub(super) trait Entry: FromStr<Err = ValueError> {
    /// Its form as a table.
    type Table: for<'de> Deserialize<'de> + TryInto<Self, Error: fmt::Display>;
}

impl Entry for EndpointConfig {
    type Table = EndpointTable;
}

impl Entry for RegionOrNone {
    type Table = RegionTable;
}

/// An element of `[[endpoint]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct EndpointTable {
    #[serde(deserialize_with = "value")]
    address: Bdf,
    #[serde(default, deserialize_with = "optional")]
    sim: Option<PathBuf>,
    #[serde(default, deserialize_with = "optional")]
    vfio: Option<PathBuf>,
    #[cfg(feature = "selftest")]
    #[serde(default, deserialize_with = "optional")]
    mock: Option<PathBuf>,
}

impl TryFrom<EndpointTable> for EndpointConfig {
    type Error = ValueError;

    fn try_from(table: EndpointTable) -> Result<Self, ValueError> {
        let kinds = [
            table.sim.map(EndpointKind::Sim),
            table.vfio.map(EndpointKind::Vfio),
            #[cfg(feature = "selftest")]
            table.mock.map(EndpointKind::Mock),
        ];
        let mut kinds = kinds.into_iter().flatten();
        match (kinds.next(), kinds.next()) {
            (Some(kind), None) => Ok(Self { id: table.address.endpoint(), kind }),
            _ => Err(ValueError::EndpointTable),
        }
    }
}

/// An element of `[[reserved-region]]`.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RegionTable {
    #[serde(deserialize_with = "value")]
    range: IovaRange,
    #[serde(rename = "type", default, deserialize_with = "optional")]
    kind: Option<ReservedKind>,
}

impl From<RegionTable> for RegionOrNone {
    fn from(RegionTable { range, kind }: RegionTable) -> Self {
        let kind = kind.unwrap_or(ReservedKind::Reserved);
        Self(Some(ReservedRegion { range, kind }))
    }
}

/// Deserializes an option that can be repeated: one string, or an array of strings and tables.
pub(super) fn entries<'de, T, D>(deserializer: D) -> Result<Vec<T>, D::Error>
where
    T: Entry,
    D: Deserializer<'de>,
{
    deserializer.deserialize_any(Entries(PhantomData))
}

/// Deserializes the reserved regions; an empty array stands for the default.
pub(super) fn regions<'de, D>(deserializer: D) -> Result<Vec<RegionOrNone>, D::Error>
where
    D: Deserializer<'de>,
{
    let regions: Vec<_> = entries(deserializer)?;
    Ok(if regions.is_empty() { DaemonArgs::default().reserved_regions } else { regions })
}

struct Entries<T>(PhantomData<T>);

impl<'de, T: Entry> Visitor<'de> for Entries<T> {
    type Value = Vec<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string, or an array of strings and tables")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<Vec<T>, E> {
        Ok(vec![Scalar(PhantomData).visit_str(text)?])
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Vec<T>, A::Error> {
        let mut entries = Vec::new();
        while let Some(OneEntry(entry)) = seq.next_element()? {
            entries.push(entry);
        }
        Ok(entries)
    }
}

struct OneEntry<T>(T);

impl<'de, T: Entry> Deserialize<'de> for OneEntry<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(EntryVisitor(PhantomData)).map(Self)
    }
}

struct EntryVisitor<T>(PhantomData<T>);

impl<'de, T: Entry> Visitor<'de> for EntryVisitor<T> {
    type Value = T;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string or a table")
    }

    fn visit_str<E: Error>(self, text: &str) -> Result<T, E> {
        Scalar(PhantomData).visit_str(text)
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        let table = T::Table::deserialize(MapAccessDeserializer::new(map))?;
        table.try_into().map_err(A::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;
    use toml::{Table, Value};

    use crate::cli::CliError;
    use crate::cli::args::{Args, Command, DaemonArgs};
    use crate::cli::value::PageSize;
    use crate::endpoint::EndpointKind;

    /// Parses a command line in which FILE stands for the path of a file with this text.
    fn parse(file: &str, line: &str) -> Result<Args, CliError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.toml");
        std::fs::write(&path, file).unwrap();
        Args::parse_line(line.replace("FILE", path.to_str().unwrap()).split_whitespace())
    }

    fn daemon(file: &str, options: &str) -> Result<DaemonArgs, CliError> {
        parse(file, &format!("vhost-user-iommu --config FILE {options}")).map(|args| args.daemon)
    }

    const FILE: &str = r#"
        socket-path = "/run/vm1"
        endpoint = ["00:02.0,sim=/run/a", "00:03.0,sim=/run/b"] # two
        page-size = "16K"
        poll-us = 7
        page-response-timeout = 1.5
        boot-bypass = false
        realtime = true
    "#;

    #[test]
    fn values_are_strings_numbers_and_booleans() {
        let args = daemon(FILE, "").unwrap();
        assert_eq!(args.socket_path.as_deref(), Some("/run/vm1".as_ref()));
        let (page_size, poll_us) = (args.page_size.0, args.poll_us.0);
        assert_eq!((args.endpoints.len(), page_size, poll_us), (2, 16 << 10, 7));
        assert_eq!(args.page_response_timeout.0.as_millis(), 1500);
        assert!(!args.boot_bypass.0 && args.realtime);
        let off = FILE.replace("realtime = true", "realtime = false");
        assert!(!daemon(&off, "").unwrap().realtime);
    }

    #[test]
    fn every_value_can_be_a_string_or_a_number() {
        const SOCKET: &str = "socket-path = 's'\nendpoint = '00:02.0,sim=/run/a'\n";
        for option in [
            "page-size = 4096",
            "page-size = '4K'",
            "queue-size = '256'",
            "max-domains = 0x10",
            "poll-us = '7'",
            "page-response-timeout = 30",
            "page-response-timeout = '0.5'",
            "boot-bypass = 'on'",
            "boot-bypass = 0",
            "socket-group = 0",
            "socket-group = 'root'",
            "socket-mode = 660",
            "sandbox = 'off'",
            "log-level = 'DEBUG'",
            "metrics-socket = 1",
            "reserved-region = 'none'",
            "reserved-region = []",
        ] {
            daemon(&format!("{SOCKET}{option}"), "").unwrap_or_else(|error| panic!("{error}"));
        }
        daemon("endpoint = []", "--fd 3 --endpoint 00:02.0,sim=/run/a").unwrap();
    }

    #[test]
    fn empty_list_of_regions_is_the_default() {
        let regions = |text: &str| daemon(&format!("{FILE}\n{text}"), "").unwrap().reserved_regions;
        assert_eq!(regions("reserved-region = []"), DaemonArgs::default().reserved_regions);
        assert_eq!(regions("reserved-region = 'none'").len(), 1);
    }

    #[test]
    fn endpoints_and_regions_can_be_tables() {
        let file = r#"
            fd = 3
            [[endpoint]]
            address = "00:02.0"
            sim = "/run/a"
            [[endpoint]]
            address = "00:03.0"
            vfio = "/dev/vfio/devices/vfio0"
            [[reserved-region]]
            range = "0x1000-0x1fff"
            [[reserved-region]]
            range = "0x2000-0x2fff"
            type = "msi"
        "#;
        let args = daemon(file, "").unwrap();
        let strings = r#"
            fd = 3
            endpoint = [
                "00:02.0,sim=/run/a",
                { address = "0000:00:03.0", vfio = "/dev/vfio/devices/vfio0" },
            ]
            reserved-region = ["0x1000-0x1fff", "0x2000-0x2fff,type=msi"]
        "#;
        assert_eq!(args.endpoints[1].kind, EndpointKind::Vfio("/dev/vfio/devices/vfio0".into()));
        let strings = daemon(strings, "").unwrap();
        assert_eq!(args.endpoints, strings.endpoints);
        assert_eq!(args.reserved_regions, strings.reserved_regions);
    }

    #[test]
    fn command_line_takes_precedence() {
        let args = daemon(FILE, "--page-size 4K --endpoint 00:04.0,sim=/run/c").unwrap();
        assert_eq!((args.page_size, args.endpoints.len()), (PageSize(4 << 10), 1));
        assert_eq!((args.poll_us.0, args.boot_bypass.0, args.realtime), (7, false, true));
        let off = FILE.replace("realtime = true", "realtime = false");
        let args = daemon(&off, "--realtime --boot-bypass on").unwrap();
        assert_eq!((args.poll_us.0, args.boot_bypass.0, args.realtime), (7, true, true));
        let args = daemon(FILE, "--fd 3").unwrap();
        assert_eq!((args.inherited_fd(), args.socket_path), (Some(3), None));
        let args = daemon("fd = 3\nendpoint = '00:02.0,sim=/a'", "--socket-path /run/b").unwrap();
        assert_eq!((args.inherited_fd(), args.socket_path), (None, Some("/run/b".into())));
    }

    #[test]
    fn qemu_args_reads_the_file() {
        let args = parse(FILE, "vhost-user-iommu qemu-args --memory 2G --config FILE").unwrap();
        match args.command {
            Some(Command::QemuArgs(args)) => assert_eq!(args.daemon.endpoints.len(), 2),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn error_names_file_and_value() {
        let rows = [
            ("page-size = ", "line 1"),
            ("page_size = 4096", "page_size"),
            ("config = 'other.toml'", "config"),
            ("help = true", "help"),
            ("version = true", "version"),
            ("print-capabilities = true", "print-capabilities"),
            ("page-size = 3000", "3000"),
            ("page-size = ''", "page-size"),
            ("page-size = ['4K']", "page-size"),
            ("page-size = { bytes = 4096 }", "bytes"),
            ("poll-us = 200.0", "200.0"),
            ("realtime = 'yes'", "yes"),
            ("realtime = 1", "realtime"),
            ("socket-path = ''", "socket-path"),
            ("endpoint = ['00:02.0']", "00:02.0"),
            ("endpoint = [['00:02.0,sim=/run/a']]", "endpoint"),
            ("endpoint = 2", "endpoint"),
            ("fd = 3\nsocket-path = '/run/vm1'", "--fd"),
            ("started = 2026-01-01", "started"),
            ("socket-path = 2026-01-01", "2026"),
            ("\n[[endpoint]]\naddress = '2'\nsim = '/a'", "line 3: invalid value '2'"),
            ("[[endpoint]]\naddress = '00:02.0'", "exactly one of sim and vfio"),
            ("[[endpoint]]\naddress = '00:02.0'\nsim = ''", "sim = ''"),
            ("[[endpoint]]\naddress = '00:02.0'\nsim = '/a'\nvfio = '/b'", "exactly one"),
            ("[[endpoint]]\nsim = '/run/a'", "address"),
            ("[[endpoint]]\naddress = '00:02.0'\nreal = '/a'", "line 3: unknown field `real`"),
            ("[[reserved-region]]\nrange = '1'", "line 2: invalid value '1'"),
            ("[[reserved-region]]\nrange = '1-2'\ntype = 'other'", "msi or reserved"),
        ];
        for (file, part) in rows {
            let error = daemon(file, "").unwrap_err().to_string();
            assert!(error.contains("vm.toml: ") && error.contains(part), "{file}: {error}");
            assert!(!error.contains("--help'."), "{file}: {error}");
        }
        let error = Args::parse_line(["x", "--config=/nonexistent/vm.toml"]).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/vm.toml"), "{error}");
    }

    #[test]
    fn error_shows_the_line() {
        let error = daemon("# VM 1\npage-size = 3000", "").unwrap_err().to_string();
        let expected = "vm.toml: line 2: invalid value '3000': must be a power of two from 4K to \
                        1G\n  | page-size = 3000";
        assert!(error.ends_with(expected), "{error}");
    }

    #[test]
    fn value_that_the_command_line_replaces_is_still_checked() {
        let error = daemon("page-size = 3000", "--page-size 4K").unwrap_err().to_string();
        assert!(error.contains("vm.toml: ") && error.contains("3000"), "{error}");
    }

    const EXAMPLE: &str = include_str!("../../systemd/example.toml");

    /// Returns the example with every option set.
    fn whole_example() -> String {
        let set = |line: &str| match line.strip_prefix('#') {
            Some(option) if option.starts_with(|c: char| c.is_ascii_lowercase()) => option.into(),
            _ => line.to_owned(),
        };
        EXAMPLE.lines().map(set).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn example_has_every_option_with_its_default() {
        const NOT_IN_THE_FILE: [&str; 4] = ["config", "help", "version", "print-capabilities"];
        let table: Table = whole_example().parse().unwrap();
        for arg in Args::command().get_arguments() {
            let Some(key) = arg.get_long() else { continue };
            // "fd" is the alternative of "socket-path".
            if NOT_IN_THE_FILE.contains(&key) || key == "fd" || arg.is_hide_set() {
                continue;
            }
            let value = table.get(key).unwrap_or_else(|| panic!("no {key} in the example"));
            // An option without a default has an example.
            if arg.get_action().takes_values() && arg.get_default_values().is_empty() {
                continue;
            }
            let alone = Table::from_iter([(key.to_owned(), value.clone())]);
            let args: DaemonArgs = Value::Table(alone).try_into().unwrap();
            assert_eq!(format!("{args:?}"), format!("{:?}", DaemonArgs::default()), "{key}");
        }
    }

    #[test]
    fn example_is_valid_as_shipped_and_with_every_option() {
        for file in [EXAMPLE, &whole_example()] {
            let args = daemon(file, "").unwrap();
            assert_eq!(args.endpoints.len(), 1);
            args.settings().unwrap();
            assert_eq!(daemon(file, "--fd 3").unwrap().inherited_fd(), Some(3));
        }
    }
}
