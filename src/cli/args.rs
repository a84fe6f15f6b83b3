//! The command line.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::parser::ValueSource;
use clap::{ArgMatches, Args as ClapArgs, CommandFactory, FromArgMatches, Parser, Subcommand};
use serde::Deserialize;

use crate::address::IovaRange;
use crate::cli::bdf::Bdf;
use crate::cli::config::{self, entries, flag, optional, regions, value};
use crate::cli::value::{
    FileMode, Group, Integer, Memory, PageSize, QueueSize, RegionOrNone, Seconds, Switch,
};
use crate::cli::{CliError, OptionsError};
use crate::endpoint::EndpointConfig;
use crate::host::{ReservedKind, ReservedRegion};
use crate::iopf::{Limits as FaultLimits, MAX_GROUPS};
use crate::sandbox;
use crate::socket::SocketAccess;
use crate::vhost::{Options, Scheduling};
use crate::viommu::{Limits, Settings};

/// A virtio-iommu device for one virtual machine, as a vhost-user back end for QEMU.
#[derive(Parser, Debug)]
#[command(version, args_conflicts_with_subcommands = true)]
pub struct Args {
    /// The subcommand; without, the daemon runs.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// The options of the daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// The subcommands.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Write the ACPI table (VIOT) that lists the PCI functions behind the IOMMU.
    Viot(ViotArgs),
    /// Print the QEMU options that match a daemon command line.
    ///
    /// Only the slots 1 and 2 collide with QEMU's default devices; if a function is there, the
    /// options disable the default VGA adapter and NIC (`-vga none -nic none`). QEMU places
    /// devices without an address, such as those of `-nic`, in the lowest free slots: use slots
    /// from 10 (hexadecimal) to leave these free.
    ///
    /// The options add a root port for each bus up to the highest in use, and firmware numbers
    /// the buses in the order of the ports: do not add bridges in front of them.
    QemuArgs(Box<QemuArgs>),
    /// Show the state of a running daemon, from its --metrics-socket.
    Status(StatusArgs),
}

/// The options of the daemon: from the command line, from the file of `--config`, or both.
#[derive(Parser, Deserialize, Debug, Clone)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct DaemonArgs {
    /// Unix socket for QEMU's vhost-user device.
    #[arg(long, value_name = "PATH")]
    #[serde(deserialize_with = "optional")]
    pub socket_path: Option<PathBuf>,

    /// Inherited descriptor of a Unix stream socket, instead of --socket-path. A listening socket,
    /// as systemd passes it, accepts front ends sequentially; a connected socket serves one front
    /// end, and the daemon ends with the connection.
    #[arg(long, value_name = "N", conflicts_with = "socket_path")]
    #[serde(deserialize_with = "optional")]
    pub fd: Option<Integer<3, { i32::MAX as u64 }>>,

    /// TOML file with options, under the names of the command line. An option on the command line
    /// replaces that of the file.
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Group of all sockets, by name or number. Without --socket-mode, its members can connect
    /// (mode 0660).
    #[arg(long, value_name = "GROUP")]
    #[serde(deserialize_with = "optional")]
    pub socket_group: Option<Group>,

    /// Permissions of all sockets, in octal. The default is set by the umask.
    #[arg(long, value_name = "MODE")]
    #[serde(deserialize_with = "optional")]
    pub socket_mode: Option<FileMode>,

    /// Endpoint behind the IOMMU: its PCI address in the guest, `[SSSS:]BB:DD.F`, and its kind.
    /// `sim=SOCKET`: an emulated DMA accelerator, for QEMU's vfio-user-pci.
    /// `vfio=/dev/vfio/devices/vfioN`: a physical device. Repeatable.
    #[arg(long = "endpoint", value_name = "BDF,KIND=PATH")]
    #[serde(rename = "endpoint", deserialize_with = "entries")]
    pub endpoints: Vec<EndpointConfig>,

    /// Granule of mappings in bytes, a power of two. A larger granule of the host IOMMU takes
    /// precedence. A guest with smaller pages cannot use the device.
    #[arg(long, value_name = "BYTES", default_value = "4K")]
    #[serde(deserialize_with = "value")]
    pub page_size: PageSize,

    /// I/O virtual addresses that the guest can map, in hexadecimal, with inclusive ends. Reduced
    /// to those that the host IOMMU supports.
    #[arg(long, value_name = "FIRST-LAST", default_value = "0-0xffffffffffffffff")]
    #[serde(deserialize_with = "value")]
    pub input_range: IovaRange,

    /// Initial bypass: whether an endpoint that is not attached to a domain accesses guest memory
    /// untranslated.
    #[arg(long, value_name = "on|off", default_value = "on")]
    #[serde(deserialize_with = "value")]
    pub boot_bypass: Switch,

    /// I/O virtual addresses that the guest must not map; `type` defaults to `reserved`. Replaces
    /// the default, the MSI window of x86. `none`: no region. Repeatable.
    #[arg(
        long = "reserved-region",
        value_name = "FIRST-LAST[,type=msi|reserved]",
        default_value = "0xfee00000-0xfeefffff,type=msi"
    )]
    #[serde(rename = "reserved-region", deserialize_with = "regions")]
    pub reserved_regions: Vec<RegionOrNone>,

    /// Maximum size of a virtqueue in descriptors, a power of two. QEMU sets the size (vq_size).
    #[arg(long, value_name = "N", default_value = "1024")]
    #[serde(deserialize_with = "value")]
    pub queue_size: QueueSize,

    /// Maximum number of domains.
    #[arg(long, value_name = "N", default_value_t = Integer(Limits::default().domains as u64))]
    #[serde(deserialize_with = "value")]
    pub max_domains: Integer<1>,

    /// Maximum number of mappings in all domains.
    #[arg(long, value_name = "N", default_value_t = Integer(Limits::default().mappings as u64))]
    #[serde(deserialize_with = "value")]
    pub max_mappings: Integer<1>,

    /// Maximum number of endpoints, and of PASIDs of endpoints, attached to one domain.
    #[arg(long, value_name = "N",
          default_value_t = Integer(Limits::default().endpoints_per_domain as u64))]
    #[serde(deserialize_with = "value")]
    pub max_endpoints_per_domain: Integer<1>,

    /// Maximum number of unrecoverable faults queued per endpoint. Further faults are counted and
    /// dropped.
    #[arg(long, value_name = "N", default_value = "64")]
    #[serde(deserialize_with = "value")]
    pub fault_queue_depth: Integer<1>,

    /// Maximum number of outstanding page request groups per endpoint. At the limit, the endpoint
    /// is throttled.
    #[arg(long, value_name = "N", default_value_t = Integer(Limits::default().page_groups.into()))]
    #[serde(deserialize_with = "value")]
    pub max_page_groups: Integer<1, { MAX_GROUPS as u64 }>,

    /// Time limit for the guest's response to a page request group, in seconds, with fractions.
    /// After it, the daemon responds with INVALID. It does not run while the guest is stopped.
    #[arg(long, value_name = "SECONDS", default_value = "30")]
    #[serde(deserialize_with = "value")]
    pub page_response_timeout: Seconds,

    /// Maximum time to poll the request queue after a request before sleeping, in microseconds.
    /// 0 disables polling.
    #[arg(long, value_name = "MICROSECONDS", default_value = "200")]
    #[serde(deserialize_with = "value")]
    pub poll_us: Integer<0, 1_000_000>,

    /// Run the request thread with real-time priority (SCHED_RR, 1), for hosts where vCPUs occupy
    /// all cores. Requires CAP_SYS_NICE or RLIMIT_RTPRIO. A guest that floods the device can
    /// monopolize a core.
    #[arg(long)]
    #[serde(deserialize_with = "flag")]
    pub realtime: bool,

    /// Unix socket that serves metrics over HTTP in OpenMetrics text format (`GET /metrics`).
    #[arg(long, value_name = "PATH")]
    #[serde(deserialize_with = "optional")]
    pub metrics_socket: Option<PathBuf>,

    /// Print the capabilities of this vhost-user back end in JSON, and exit. All other arguments
    /// are ignored.
    #[arg(long)]
    #[serde(skip)]
    pub print_capabilities: bool,

    /// Action on a system call outside the allow list: `on` makes it fail, `kill` ends the process
    /// (for tests). `off` disables the sandbox.
    #[arg(long, value_name = "on|off|kill", default_value = "on")]
    #[serde(deserialize_with = "value")]
    pub sandbox: sandbox::Mode,

    /// Instead of serving, attempt what the sandbox must prevent, with the files in a directory.
    #[cfg(feature = "selftest")]
    #[arg(long, value_name = "DIRECTORY[,ROLE,ATTEMPT]", hide = true)]
    #[serde(deserialize_with = "optional")]
    pub sandbox_attempts: Option<sandbox::attempts::Attempts>,

    /// Log level: off, error, warn, info, debug or trace. The environment variable RUST_LOG takes
    /// precedence.
    #[arg(long, value_name = "LEVEL", default_value = "info")]
    #[serde(deserialize_with = "value")]
    pub log_level: log::LevelFilter,
}

/// The options of `viot`.
#[derive(ClapArgs, Debug)]
pub struct ViotArgs {
    /// PCI address of the virtio-iommu device in the guest.
    #[arg(long, value_name = "BDF")]
    pub iommu: Bdf,

    /// PCI addresses of the endpoints behind the IOMMU. Repeatable.
    #[arg(long = "endpoint", value_name = "BDF", required = true, num_args = 1..)]
    pub endpoints: Vec<Bdf>,

    /// Output file; `-` for standard output.
    #[arg(short, long, value_name = "FILE")]
    pub output: PathBuf,
}

/// The options of `qemu-args`.
#[derive(ClapArgs, Debug)]
pub struct QemuArgs {
    /// PCI address of the virtio-iommu device in the guest.
    #[arg(long, value_name = "BDF", default_value = "00:01.0")]
    pub iommu: Bdf,

    /// Amount of guest memory, with a suffix M or G; in MiB without a suffix.
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub memory: Memory,

    /// File that `vhost-user-iommu viot` has written.
    #[arg(long, value_name = "FILE", default_value = "viot.bin")]
    pub viot: PathBuf,

    /// The options of the daemon.
    #[command(flatten)]
    pub daemon: DaemonArgs,
}

/// The options of `status`.
#[derive(ClapArgs, Debug)]
pub struct StatusArgs {
    /// The --metrics-socket of the daemon.
    #[arg(long, value_name = "PATH")]
    pub metrics_socket: PathBuf,

    /// Repeat every second, with rates, until interrupted.
    #[arg(long)]
    pub watch: bool,
}

impl Args {
    /// Parses a command line that begins with the name of the program, and the configuration file
    /// that it names.
    ///
    /// # Errors
    /// When an option or the file is invalid, or a required option is in neither.
    /// [`CliError::CommandLine`] contains the text of `--help` and `--version`, too.
    ///
    /// ```
    /// use vhost_user_iommu::cli::args::Args;
    ///
    /// let line = "vhost-user-iommu --socket-path /run/vm1.sock --endpoint 00:02.0,sim=/run/accel.sock";
    /// let args = Args::parse_line(line.split(' '))?;
    /// assert_eq!(args.daemon.endpoints.len(), 1);
    /// assert_eq!(args.daemon.settings()?.page_size, 4096);
    /// # Ok::<(), vhost_user_iommu::cli::CliError>(())
    /// ```
    pub fn parse_line<W: Into<OsString> + Clone>(
        line: impl IntoIterator<Item = W>,
    ) -> Result<Self, CliError> {
        let matches = Self::command().try_get_matches_from(line)?;
        let mut args = Self::from_arg_matches(&matches)?;
        match (&mut args.command, matches.subcommand()) {
            (None, _) => args.daemon.complete(&matches)?,
            (Some(Command::QemuArgs(args)), Some((_, matches))) => args.daemon.complete(matches)?,
            _ => {}
        }
        Ok(args)
    }
}

impl Default for DaemonArgs {
    fn default() -> Self {
        Self::parse_from([""])
    }
}

impl DaemonArgs {
    /// Adds the options of the configuration file that the command line does not give.
    fn complete(&mut self, command_line: &ArgMatches) -> Result<(), CliError> {
        if let Some(path) = &self.config {
            let file = config::read(path)?;
            *self = file.overridden_by(command_line)?;
        }
        let socket = self.socket_path.is_none() && self.fd.is_none();
        let missing: Vec<_> =
            [(socket, "--socket-path or --fd"), (self.endpoints.is_empty(), "--endpoint")]
                .iter()
                .filter_map(|&(missing, option)| missing.then_some(option))
                .collect();
        if missing.is_empty() { Ok(()) } else { Err(OptionsError::Missing(missing).into()) }
    }

    /// Replaces the options that the command line gives.
    fn overridden_by(mut self, command_line: &ArgMatches) -> Result<Self, clap::Error> {
        let mut given = command_line.clone();
        for id in command_line.ids() {
            if command_line.value_source(id.as_str()) != Some(ValueSource::CommandLine) {
                given.try_clear_id(id.as_str()).ok();
            }
        }
        // Either of them replaces the other.
        if given.contains_id("socket_path") || given.contains_id("fd") {
            (self.socket_path, self.fd) = (None, None);
        }
        self.update_from_arg_matches(&given)?;
        Ok(self)
    }

    /// Returns the properties and limits of the virtio-iommu device.
    ///
    /// # Errors
    /// When options contradict each other.
    pub fn settings(&self) -> Result<Settings, OptionsError> {
        let reserved: Vec<_> = self.reserved_regions.iter().filter_map(|region| region.0).collect();
        check_regions(&reserved)?;
        check_endpoints(&self.endpoints)?;
        let (range, page_size) = (self.input_range, self.page_size.0);
        if !range.is_aligned(page_size) {
            return Err(OptionsError::Unaligned { range, page_size });
        }
        Ok(Settings {
            page_size,
            input_range: range,
            boot_bypass: self.boot_bypass.0,
            reserved,
            limits: Limits {
                domains: self.max_domains.0 as usize,
                mappings: self.max_mappings.0 as usize,
                endpoints_per_domain: self.max_endpoints_per_domain.0 as usize,
                page_groups: self.max_page_groups.0 as u16,
            },
        })
    }

    /// Returns the ownership and permissions of the sockets.
    pub fn socket_access(&self) -> SocketAccess {
        SocketAccess {
            group: self.socket_group.map(|group| group.0),
            mode: self.socket_mode.map(|mode| mode.0),
        }
    }

    /// Returns the number of the inherited descriptor that `--fd` names.
    pub fn inherited_fd(&self) -> Option<i32> {
        self.fd.map(|fd| fd.0 as i32)
    }

    /// Returns the options of the vhost-user transport.
    pub fn transport(&self) -> Options {
        Options {
            queue_size: self.queue_size.0,
            max_poll: Duration::from_micros(self.poll_us.0),
            scheduling: if self.realtime { Scheduling::Realtime } else { Scheduling::Normal },
            timer_period: timer_period(self.page_response_timeout.0),
            time_batches: self.metrics_socket.is_some(),
        }
    }

    /// Returns the limits of the fault queues.
    pub fn fault_limits(&self) -> FaultLimits {
        let timeout = self.page_response_timeout.0;
        FaultLimits {
            faults: self.fault_queue_depth.0 as usize,
            groups: self.max_page_groups.0 as usize,
            // The clock of the fault path can be a period ahead of a fault.
            response_timeout: timeout + timer_period(timeout),
        }
    }
}

/// Checks that regions do not overlap and that at most one is of type MSI (virtio 1.4,
/// 5.13.6.7.2).
fn check_regions(regions: &[ReservedRegion]) -> Result<(), OptionsError> {
    /// Limits the size of the response to a PROBE request.
    const MAX: usize = 64;
    for (index, region) in regions.iter().enumerate() {
        for other in &regions[..index] {
            if other.range.overlaps(&region.range) {
                return Err(OptionsError::OverlappingRegions(region.range));
            }
            if [other.kind, region.kind] == [ReservedKind::Msi; 2] {
                return Err(OptionsError::SecondMsiRegion(region.range));
            }
        }
    }
    if regions.len() > MAX {
        return Err(OptionsError::TooManyRegions { number: regions.len(), max: MAX });
    }
    Ok(())
}

fn check_endpoints(endpoints: &[EndpointConfig]) -> Result<(), OptionsError> {
    for (index, endpoint) in endpoints.iter().enumerate() {
        if endpoints[..index].iter().any(|other| other.id == endpoint.id) {
            return Err(OptionsError::DuplicateEndpoint(endpoint.id));
        }
    }
    Ok(())
}

/// Returns how often to look for groups that have timed out: often enough to complete a group soon
/// after its deadline, seldom enough to make the cost negligible.
fn timer_period(timeout: Duration) -> Duration {
    (timeout / 8).clamp(Duration::from_millis(1), Duration::from_secs(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn viot_accepts_endpoints_after_one_or_several_options() {
        for line in ["--endpoint 00:02.0 00:03.0", "--endpoint 00:02.0 --endpoint 00:03.0"] {
            let line = format!("vhost-user-iommu viot --iommu 00:01.0 {line} -o viot.bin");
            match Args::parse_line(line.split(' ')).unwrap().command {
                Some(Command::Viot(viot)) => assert_eq!(viot.endpoints.len(), 2, "{line}"),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn help_has_no_markup_of_rustdoc() {
        for subcommand in ["", "viot", "qemu-args", "status"] {
            let line = format!("vhost-user-iommu {subcommand} --help");
            let help = Args::parse_line(line.split_whitespace()).unwrap_err().to_string();
            assert!(help.contains("Usage: "), "{line}: {help}");
            assert!(!help.contains("```"), "{line}: {help}");
        }
    }

    #[test]
    fn required_options_are_named_when_missing() {
        for (line, missing) in [
            ("x", "--socket-path or --fd, --endpoint"),
            ("x --fd 3", "--endpoint"),
            ("x qemu-args --endpoint 00:02.0,sim=/a", "--socket-path or --fd"),
        ] {
            let error = Args::parse_line(line.split(' ')).unwrap_err().to_string();
            assert!(error.ends_with(missing), "{line}: {error}");
        }
    }

    #[test]
    fn invalid_value_names_value_option_and_accepted_values() {
        let error = Args::parse_line(["x", "--page-size", "3000"]).unwrap_err().to_string();
        let expected = "invalid value '3000' for '--page-size <BYTES>': must be a power of two";
        assert!(error.contains(expected), "{error}");
    }
}
