//! The command line.

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::{Args as ClapArgs, Parser, Subcommand};

use crate::address::IovaRange;
use crate::cli::CliError;
use crate::cli::bdf::Bdf;
use crate::endpoint::{EndpointConfig, EndpointKind};
use crate::host::{ReservedKind, ReservedRegion};
use crate::iopf::{Limits as FaultLimits, MAX_GROUPS};
use crate::sandbox;
use crate::socket::SocketAccess;
use crate::vhost::{Options, Scheduling};
use crate::viommu::{Limits, Settings};

/// The virtio-iommu device of one virtual machine, as a vhost-user back end for QEMU.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
pub struct Args {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(Subcommand, Debug)]
pub enum Command {
    /// Write the ACPI VIOT table that tells the guest which functions are behind the IOMMU.
    Viot(ViotArgs),
    /// Print the QEMU options that match a daemon command line.
    QemuArgs(Box<QemuArgs>),
    /// Show what a running daemon does, from its --metrics-socket.
    Status(StatusArgs),
}

/// What the daemon runs with.
#[derive(ClapArgs, Debug, Clone)]
pub struct DaemonArgs {
    /// Socket for QEMU's vhost-user device.
    #[arg(long, value_name = "PATH", required_unless_present = "fd")]
    pub socket_path: Option<PathBuf>,

    /// Instead of --socket-path: the descriptor of that socket, which whoever starts the daemon
    /// has opened, 3 or more. Of a socket that listens, as systemd passes it, front ends are
    /// served one after the other; of one that is connected, this front end, and then the daemon
    /// ends.
    #[arg(long, value_name = "N", conflicts_with = "socket_path",
          value_parser = clap::value_parser!(i32).range(3..))]
    pub fd: Option<i32>,

    /// Options in a file, in TOML: `page-size = "4K"`, `endpoint = ["00:02.0,sim=/run/a"]`.
    /// An option on the command line stands in place of the file's.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// The group of all sockets, for who runs QEMU: a name or a number. They are then open to it
    /// (mode 0660) unless --socket-mode says otherwise.
    #[arg(long, value_name = "GROUP", value_parser = group)]
    pub socket_group: Option<u32>,

    /// The permissions of the sockets, in octal; without, what the umask leaves.
    #[arg(long, value_name = "MODE", value_parser = mode)]
    pub socket_mode: Option<u32>,

    /// An endpoint behind the IOMMU: its PCI address in the guest, `[SSSS:]BB:DD.F`, and what it
    /// is. `sim=SOCKET`: an emulated DMA accelerator, for QEMU's vfio-user-pci.
    /// `vfio=/dev/vfio/devices/vfioN`: a device of the host. Repeatable.
    #[arg(long = "endpoint", value_name = "BDF,KIND=PATH", required = true)]
    pub endpoints: Vec<EndpointConfig>,

    /// The granule of mappings in bytes, a power of two; the host's, where that is larger. A guest
    /// whose pages are smaller cannot use the device.
    #[arg(long, value_name = "BYTES", default_value = "4K", value_parser = page_size)]
    pub page_size: u64,

    /// Addresses that the guest can map, in hexadecimal, both ends included; without those that
    /// the host's IOMMU does not have.
    #[arg(long, value_name = "FIRST-LAST", default_value = "0-0xffffffffffffffff",
          value_parser = range)]
    pub input_range: IovaRange,

    /// Whether endpoints that no driver has attached reach guest memory untranslated at start.
    #[arg(long, value_name = "on|off", default_value = "on", value_parser = BoolishValueParser::new(),
          action = clap::ArgAction::Set, hide_possible_values = true)]
    pub boot_bypass: bool,

    /// Addresses that the guest must not map. Given at least once, it replaces the default, the
    /// window of message-signalled interrupts on x86. `type` is `reserved` unless given.
    /// `none` alone: no region. Repeatable.
    #[arg(
        long = "reserved-region",
        value_name = "FIRST-LAST[,type=msi|reserved]",
        default_value = "0xfee00000-0xfeefffff,type=msi"
    )]
    pub reserved_regions: Vec<ReservedArg>,

    /// The longest queue accepted, in descriptors, a power of two. QEMU decides the size
    /// (vq_size).
    #[arg(long, value_name = "N", default_value = "1024", value_parser = queue_size)]
    pub queue_size: u16,

    /// How many domains the guest can make.
    #[arg(long, value_name = "N", default_value_t = Limits::default().domains,
          value_parser = at_least_one)]
    pub max_domains: usize,

    /// How many mappings the guest can make, over all domains.
    #[arg(long, value_name = "N", default_value_t = Limits::default().mappings,
          value_parser = at_least_one)]
    pub max_mappings: usize,

    /// How many endpoints, and PASIDs of endpoints, the guest can attach to one domain.
    #[arg(long, value_name = "N", default_value_t = Limits::default().endpoints_per_domain,
          value_parser = at_least_one)]
    pub max_endpoints_per_domain: usize,

    /// How many faults wait for the guest per endpoint; more are counted and dropped.
    #[arg(long, value_name = "N", default_value = "64", value_parser = at_least_one)]
    pub fault_queue_depth: usize,

    /// How many groups of page requests of one endpoint can wait for the guest's answer; an
    /// endpoint that has more is held back.
    #[arg(long, value_name = "N", default_value_t = Limits::default().page_groups,
          value_parser = clap::value_parser!(u16).range(1..=MAX_GROUPS as i64))]
    pub max_page_groups: u16,

    /// How long the guest can take to answer a group of page requests, in seconds; then the
    /// daemon answers that the access is invalid; fractions are allowed. Time in which the guest is
    /// stopped does not count.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = response_time)]
    pub page_response_timeout: Duration,

    /// How long the request queue is polled after work before the daemon sleeps, in
    /// microseconds, at most; 0: never.
    #[arg(long, value_name = "MICROSECONDS", default_value = "200",
          value_parser = clap::value_parser!(u32).range(..=1_000_000))]
    pub poll_us: u32,

    /// Serve requests with real-time priority (SCHED_RR, 1). Worth it where guest CPUs leave no
    /// core to spare; needs the right to it (CAP_SYS_NICE or RLIMIT_RTPRIO), and lets a guest
    /// that floods the device take a core from others.
    #[arg(long)]
    pub realtime: bool,

    /// Serve figures on this socket, in the text format of OpenMetrics over HTTP: `GET /metrics`.
    #[arg(long, value_name = "PATH")]
    pub metrics_socket: Option<PathBuf>,

    /// Print what QEMU's conventions for back-end programs ask for, and end; whatever else is on
    /// the command line.
    #[arg(long)]
    pub print_capabilities: bool,

    /// What becomes of system calls that the daemon does not make unless it is led astray: `on`
    /// refuses them, `kill` ends the process, for tests. `off`: no sandbox at all.
    #[arg(long, value_name = "on|off|kill", default_value = "on")]
    pub sandbox: sandbox::Mode,

    /// Instead of serving, try what the sandbox is to refuse, with the files in a directory.
    #[cfg(feature = "selftest")]
    #[arg(long, value_name = "DIRECTORY[,ROLE,ATTEMPT]", hide = true)]
    pub sandbox_attempts: Option<sandbox::attempts::Attempts>,

    /// What is logged: error, warn, info, debug or trace. RUST_LOG, when set, is obeyed instead.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    pub log_level: log::LevelFilter,
}

#[derive(ClapArgs, Debug)]
pub struct ViotArgs {
    /// PCI address of the virtio-iommu device in the guest.
    #[arg(long, value_name = "BDF")]
    pub iommu: Bdf,

    /// PCI addresses of the endpoints behind it. Repeatable.
    #[arg(long = "endpoint", value_name = "BDF", required = true, num_args = 1..)]
    pub endpoints: Vec<Bdf>,

    /// File to write; `-` for standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

#[derive(ClapArgs, Debug)]
pub struct QemuArgs {
    /// PCI address of the virtio-iommu device in the guest.
    #[arg(long, value_name = "BDF", default_value = "00:01.0")]
    pub iommu: Bdf,

    /// Guest memory, with QEMU's suffixes.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub memory: String,

    /// The table that `vhost-user-iommu viot` has written.
    #[arg(long, value_name = "FILE", default_value = "viot.bin")]
    pub viot: PathBuf,

    #[command(flatten)]
    pub daemon: DaemonArgs,
}

#[derive(ClapArgs, Debug)]
pub struct StatusArgs {
    /// The socket that the daemon was started with.
    #[arg(long, value_name = "PATH")]
    pub metrics_socket: PathBuf,

    /// Show it again each second, with rates, until interrupted.
    #[arg(long)]
    pub watch: bool,
}

impl FromStr for EndpointConfig {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (bdf, kind) = text.split_once(',').ok_or_else(|| usage(text))?;
        let id = bdf.parse::<Bdf>()?.endpoint();
        let (kind, path) = kind.split_once('=').ok_or_else(|| usage(text))?;
        if path.is_empty() {
            return Err(usage(text));
        }
        let kind = match kind {
            "sim" => EndpointKind::Sim(path.into()),
            "vfio" => EndpointKind::Vfio(path.into()),
            #[cfg(feature = "selftest")]
            "mock" => EndpointKind::Mock(path.into()),
            _ => return Err(usage(text)),
        };
        Ok(Self { id, kind })
    }
}

fn usage(text: &str) -> String {
    format!(
        "'{text}' is no endpoint; write BDF,sim=SOCKET, as in 00:02.0,sim=/run/accel.sock, or \
         BDF,vfio=DEVICE, as in 00:02.0,vfio=/dev/vfio/devices/vfio0"
    )
}

/// A reserved region, or `none` for an empty list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ReservedArg(Option<ReservedRegion>);

impl FromStr for ReservedArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text == "none" {
            return Ok(Self(None));
        }
        let (addresses, kind) = text.split_once(",type=").unwrap_or((text, "reserved"));
        let kind = match kind {
            "msi" => ReservedKind::Msi,
            "reserved" => ReservedKind::Reserved,
            _ => return Err(format!("'{kind}' is no type of region; write msi or reserved")),
        };
        Ok(Self(Some(ReservedRegion { range: range(addresses)?, kind })))
    }
}

impl DaemonArgs {
    /// What the device is made with.
    ///
    /// # Errors
    /// Options that contradict each other, in a sentence.
    pub fn settings(&self) -> Result<Settings, CliError> {
        let reserved: Vec<_> = self.reserved_regions.iter().filter_map(|arg| arg.0).collect();
        check_regions(&reserved)?;
        check_endpoints(&self.endpoints)?;
        if !self.input_range.is_aligned(self.page_size) {
            return Err(CliError::Invalid(format!(
                "--input-range {} does not begin and end on a page of {:#x} bytes",
                self.input_range, self.page_size
            )));
        }
        Ok(Settings {
            page_size: self.page_size,
            input_range: self.input_range,
            boot_bypass: self.boot_bypass,
            reserved,
            limits: Limits {
                domains: self.max_domains,
                mappings: self.max_mappings,
                endpoints_per_domain: self.max_endpoints_per_domain,
                page_groups: self.max_page_groups,
            },
        })
    }

    /// Who may connect to the sockets.
    pub fn socket_access(&self) -> SocketAccess {
        SocketAccess { group: self.socket_group, mode: self.socket_mode }
    }

    /// What the transport is made with.
    pub fn transport(&self) -> Options {
        let max_poll = Duration::from_micros(self.poll_us.into());
        let scheduling = if self.realtime { Scheduling::Realtime } else { Scheduling::Normal };
        let timer_period = clock_period(self.page_response_timeout);
        let time_batches = self.metrics_socket.is_some();
        Options { queue_size: self.queue_size, max_poll, scheduling, timer_period, time_batches }
    }

    /// What the fault path keeps.
    pub fn fault_limits(&self) -> FaultLimits {
        // The clock of the fault path can be a period ahead of a fault.
        let response_timeout =
            self.page_response_timeout + clock_period(self.page_response_timeout);
        let groups = self.max_page_groups.into();
        FaultLimits { faults: self.fault_queue_depth, groups, response_timeout }
    }
}

/// The specification allows one MSI region and no overlap (virtio 1.4, 5.13.6.7.2).
fn check_regions(regions: &[ReservedRegion]) -> Result<(), String> {
    for (index, region) in regions.iter().enumerate() {
        let others = &regions[..index];
        if others.iter().any(|other| other.range.overlaps(&region.range)) {
            return Err(format!("--reserved-region {} overlaps another one", region.range));
        }
        let is_msi = |region: &ReservedRegion| region.kind == ReservedKind::Msi;
        if is_msi(region) && others.iter().any(is_msi) {
            return Err(format!("--reserved-region {}: only one can be of type msi", region.range));
        }
    }
    // What one PROBE can carry: more would make every answer to it huge.
    if regions.len() > 64 {
        return Err(format!("{} reserved regions; at most 64 are supported", regions.len()));
    }
    Ok(())
}

fn check_endpoints(endpoints: &[EndpointConfig]) -> Result<(), String> {
    for (index, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..index].iter().any(|other| other.id == endpoint.id) {
            return Err(format!("--endpoint {} is given twice", endpoint.id));
        }
    }
    Ok(())
}

fn range(text: &str) -> Result<IovaRange, String> {
    let parse = || {
        let (first, last) = text.split_once('-')?;
        IovaRange::new(hex(first)?, hex(last)?)
    };
    parse().ok_or_else(|| {
        format!("'{text}' is no range; write FIRST-LAST in hexadecimal, as in 0x1000-0xffffff")
    })
}

fn hex(text: &str) -> Option<u64> {
    let digits = text.strip_prefix("0x").unwrap_or(text);
    let valid = !digits.is_empty() && digits.bytes().all(|b| b.is_ascii_hexdigit());
    valid.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
}

fn page_size(text: &str) -> Result<u64, String> {
    let (digits, shift) = match text.as_bytes().last() {
        Some(b'K' | b'k') => (&text[..text.len() - 1], 10),
        Some(b'M' | b'm') => (&text[..text.len() - 1], 20),
        Some(b'G' | b'g') => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let bytes = digits.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift));
    match bytes {
        Some(bytes) if bytes.is_power_of_two() && (4 << 10..=1 << 30).contains(&bytes) => Ok(bytes),
        _ => Err(format!("'{text}' is no page size; write a power of two from 4K to 1G")),
    }
}

fn group(text: &str) -> Result<u32, String> {
    if let Ok(number) = text.parse() {
        return Ok(number);
    }
    match uzers::get_group_by_name(text) {
        Some(group) => Ok(group.gid()),
        None => Err(format!("there is no group '{text}'; see getent group")),
    }
}

fn mode(text: &str) -> Result<u32, String> {
    let digits = !text.is_empty() && text.bytes().all(|b| (b'0'..=b'7').contains(&b));
    let mode = if digits { u32::from_str_radix(text, 8).ok() } else { None };
    mode.filter(|mode| *mode <= 0o777)
        .ok_or_else(|| format!("'{text}' are no permissions; write them in octal, as in 660"))
}

fn queue_size(text: &str) -> Result<u16, String> {
    match text.parse::<u16>() {
        Ok(size) if size.is_power_of_two() && size <= 32768 => Ok(size),
        _ => Err(format!("'{text}' is no queue size; write a power of two from 1 to 32768")),
    }
}

fn response_time(text: &str) -> Result<Duration, String> {
    let seconds = text.parse::<f64>().ok().filter(|seconds| (0.001..=86400.0).contains(seconds));
    seconds
        .map(Duration::from_secs_f64)
        .ok_or_else(|| format!("'{text}' is no time; write seconds from 0.001 to 86400"))
}

/// Often enough that a group is answered soon after its time, seldom enough to cost nothing.
fn clock_period(response_time: Duration) -> Duration {
    (response_time / 8).clamp(Duration::from_millis(1), Duration::from_secs(1))
}

fn at_least_one(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(number) if number > 0 => Ok(number),
        _ => Err(format!("'{text}' is no number from 1 up")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_takes_endpoints_after_one_option_or_after_one_each() {
        for line in ["--endpoint 00:02.0 00:03.0", "--endpoint 00:02.0 --endpoint 00:03.0"] {
            let line = format!("vhost-user-iommu viot --iommu 00:01.0 {line} -o viot.bin");
            match Args::try_parse_from(line.split(' ')).unwrap().command {
                Some(Command::Viot(viot)) => assert_eq!(viot.endpoints.len(), 2, "{line}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn permissions_are_octal_and_groups_have_names_or_numbers() {
        assert_eq!((mode("660"), mode("0600")), (Ok(0o660), Ok(0o600)));
        for text in ["", "8", "rw", "-1", "+7", "1000", "77777777777"] {
            assert!(mode(text).unwrap_err().contains(&format!("'{text}'")));
        }
        assert_eq!((group("0"), group("root"), group("1234")), (Ok(0), Ok(0), Ok(1234)));
        assert!(group("no such").unwrap_err().contains("'no such'"));
    }

    #[test]
    fn sizes_and_ranges_are_read_as_people_write_them() {
        for (text, bytes) in [("4096", 4096), ("4K", 4096), ("2m", 2 << 20), ("1G", 1 << 30)] {
            assert_eq!(page_size(text), Ok(bytes));
        }
        for text in ["", "K", "2048", "2G", "5K", "99999999999999999999G", "-4K"] {
            assert!(page_size(text).unwrap_err().contains(&format!("'{text}'")));
        }
        let all = range("0-0xffffffffffffffff").unwrap();
        assert_eq!(all, IovaRange::ALL);
        for text in ["", "1", "2-1", "0-g", "0-10000000000000000", "+1-2", "0x-1"] {
            assert!(range(text).unwrap_err().contains(&format!("'{text}'")));
        }
    }
}
