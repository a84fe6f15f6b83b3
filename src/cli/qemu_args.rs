//! The QEMU options that match the command line of a daemon.
//!
//! QEMU starts with all options that [`lines`] returns, also in addition to its default devices: a
//! configuration that QEMU would reject is an error here. Endpoints on buses other than 0 are behind
//! root ports: firmware numbers their buses in the order of the ports, depth first.

use std::collections::BTreeSet;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::cli::CliError;
use crate::cli::args::{DaemonArgs, QemuArgs};
use crate::cli::bdf::Bdf;
use crate::cli::viot;
use crate::viommu::wire::Config;

/// VIRTIO_ID_IOMMU.
const VIRTIO_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_IOMMU;

/// Slots of the root bus that q35 occupies.
const HOST_BRIDGE: u8 = 0;
const ICH9: u8 = 0x1f;

/// Slots of the root bus that QEMU's default VGA adapter and NIC occupy. Without the former, the
/// latter is in its slot.
const VGA: u8 = 1;
const NIC: u8 = 2;

/// A configuration for which there are no QEMU options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum QemuArgsError {
    /// The daemon's socket has no path to which QEMU could connect.
    #[error("qemu-args requires --socket-path instead of --fd: QEMU connects to it")]
    NoPath,
    /// QEMU cannot connect to the path of a socket.
    #[error("socket {}: the path must be UTF-8 text of at most 107 bytes", .0.display())]
    SocketPath(PathBuf),
    /// QEMU cannot load the table from this path: `-acpitable` has no escape for a colon.
    #[error("--viot {}: the path must be UTF-8 text without ':'", .0.display())]
    ViotPath(PathBuf),
    /// A function in a segment other than 0.
    #[error("{0}: the q35 machine has only the PCI segment 0000")]
    Segment(Bdf),
    /// A function in a slot that q35 occupies.
    #[error("{function}: q35 has its {} in slot {:02x}; free slots: {free}",
            occupant(.function.device), .function.device)]
    ReservedSlot {
        /// The function.
        function: Bdf,
        /// The slots of the root bus that are free.
        free: Slots,
    },
    /// A function behind a root port in a slot other than 0.
    #[error("{0}: a bus other than 00 is behind a root port, which has only slot 00")]
    SlotBehindPort(Bdf),
    /// A function whose slot has no function 0: guests do not look for it.
    #[error("{0}: a guest finds it only if function 0 of its slot is the IOMMU or a sim endpoint")]
    NoFunctionZero(Bdf),
    /// The root bus has no slots left for the root ports.
    #[error("bus {bus:02x}: the root bus has free slots for {ports} root ports only")]
    NoSlotForPorts {
        /// The highest bus number in use.
        bus: u8,
        /// The number of root ports that fit.
        ports: usize,
    },
}

/// A set of slots of the root bus; prints ranges of slot numbers in hexadecimal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slots(BTreeSet<u8>);

impl fmt::Display for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for &first in self.0.iter().filter(|&&slot| !self.0.contains(&(slot - 1))) {
            let last = (first..).take_while(|slot| self.0.contains(slot)).last().unwrap_or(first);
            write!(f, "{separator}{first:02x}")?;
            if last > first {
                write!(f, "-{last:02x}")?;
            }
            separator = ", ";
        }
        Ok(())
    }
}

/// Returns the occupant of a slot that q35 reserves.
fn occupant(slot: u8) -> &'static str {
    if slot == HOST_BRIDGE { "host bridge" } else { "LPC bridge, SATA and SMBus controllers" }
}

/// Returns the options, one per line, quoted for a shell, to be appended to
/// `qemu-system-x86_64`. The IOMMU precedes the endpoints: a service is started by the connection
/// to its first socket, and creates the others.
///
/// # Errors
/// When QEMU cannot place a function at its address, or cannot open a path.
pub fn lines(args: &QemuArgs) -> Result<Vec<String>, CliError> {
    args.daemon.settings()?;
    let endpoints: Vec<Bdf> =
        args.daemon.endpoints.iter().map(|endpoint| endpoint.id.into()).collect();
    viot::check(args.iommu, &endpoints)?;
    Ok(Machine::new(args)?.options(args)?)
}

/// The PCI functions that the options add to q35.
struct Machine<'a> {
    iommu: Bdf,
    /// Endpoints with the sockets of their vfio-user servers.
    endpoints: Vec<(Bdf, &'a Path)>,
    /// Free slots of the root bus.
    free: BTreeSet<u8>,
}

impl<'a> Machine<'a> {
    fn new(args: &'a QemuArgs) -> Result<Self, QemuArgsError> {
        // A physical device has no socket: assigning it to the guest is not supported yet.
        let endpoints = args.daemon.endpoints.iter();
        let endpoints: Vec<_> = endpoints
            .filter_map(|endpoint| Some((endpoint.id.into(), endpoint.kind.socket()?)))
            .collect();
        let mut machine = Self { iommu: args.iommu, endpoints, free: BTreeSet::new() };
        let used: BTreeSet<u8> = machine
            .functions()
            .filter(|function| function.bus == 0)
            .map(|function| function.device)
            .collect();
        machine.free = (HOST_BRIDGE + 1..ICH9).filter(|slot| !used.contains(slot)).collect();
        for function in machine.functions() {
            machine.check(function)?;
        }
        Ok(machine)
    }

    fn functions(&self) -> impl Iterator<Item = Bdf> {
        std::iter::once(self.iommu).chain(self.endpoints.iter().map(|(function, _)| *function))
    }

    /// Checks whether QEMU can place a function at its address, and the guest find it there.
    fn check(&self, function: Bdf) -> Result<(), QemuArgsError> {
        if function.segment != 0 {
            return Err(QemuArgsError::Segment(function));
        }
        if function.bus == 0 && [HOST_BRIDGE, ICH9].contains(&function.device) {
            return Err(QemuArgsError::ReservedSlot { function, free: Slots(self.free.clone()) });
        }
        if function.bus != 0 && function.device != 0 {
            return Err(QemuArgsError::SlotBehindPort(function));
        }
        if !self.functions().any(|other| other == Bdf { function: 0, ..function }) {
            return Err(QemuArgsError::NoFunctionZero(function));
        }
        Ok(())
    }

    fn options(&self, args: &QemuArgs) -> Result<Vec<String>, QemuArgsError> {
        let socket = args.daemon.socket_path.as_deref().ok_or(QemuArgsError::NoPath)?;
        let memory = args.memory;
        let mut lines = vec![
            "-machine q35,memory-backend=mem".to_owned(),
            format!("-m {memory}"),
            format!("-object memory-backend-memfd,id=mem,size={memory},share=on"),
        ];
        lines.extend(self.without_default_devices());
        lines.extend(self.root_ports()?);
        lines.push(option(
            "-chardev",
            &format!("socket,id=viommu,path={}", comma(socket_path(socket)?)),
        ));
        lines.push(option("-device", &self.iommu_device(&args.daemon)));
        lines.push(option("-acpitable", &format!("file={}", comma(viot_path(&args.viot)?))));
        for (function, socket) in &self.endpoints {
            lines.push(option("-device", &self.endpoint_device(*function, socket_path(socket)?)));
        }
        Ok(lines)
    }

    /// Returns the options that disable the default devices whose slots are used.
    fn without_default_devices(&self) -> Option<String> {
        match (self.free.contains(&VGA), self.free.contains(&NIC)) {
            (true, true) => None,
            (true, false) => Some("-nic none".into()),
            (false, _) => Some("-vga none -nic none".into()),
        }
    }

    /// Returns the root ports for all buses up to the highest in use. They are in the highest free
    /// slots: QEMU places devices without an address in the lowest.
    fn root_ports(&self) -> Result<Vec<String>, QemuArgsError> {
        const PER_SLOT: usize = 8;
        let bus = self.functions().map(|function| function.bus).max().unwrap_or(0);
        let highest = self.free.iter().rev().filter(|slot| **slot > NIC);
        let mut slots: Vec<u8> =
            highest.take(usize::from(bus).div_ceil(PER_SLOT)).copied().collect();
        slots.reverse();
        let ports = slots.len() * PER_SLOT;
        if ports < bus.into() {
            return Err(QemuArgsError::NoSlotForPorts { bus, ports });
        }
        let port = |bus: u8| {
            let index = usize::from(bus - 1);
            let (slot, function) = (slots[index / PER_SLOT], index % PER_SLOT);
            let multifunction = if function == 0 { ",multifunction=on" } else { "" };
            // A port that cannot be plugged claims no resources for later devices.
            format!(
                "-device pcie-root-port,id=bus{bus},chassis={bus},hotplug=off,\
                 addr={slot:02x}.{function}{multifunction}"
            )
        };
        Ok((1..=bus).map(port).collect())
    }

    fn iommu_device(&self, daemon: &DaemonArgs) -> String {
        // QEMU's default, and Linux's maximum.
        let queue_size = daemon.queue_size.0.min(256);
        let mut device = format!(
            "vhost-user-test-device-pci,chardev=viommu,virtio-id={VIRTIO_ID},num_vqs=2,\
             vq_size={queue_size},config_size={}",
            size_of::<Config>()
        );
        for (name, value) in self.placement(self.iommu) {
            let value = value.as_str().unwrap_or("on");
            device += &format!(",{name}={value}");
        }
        device
    }

    /// Returns the device in JSON: `-device` accepts the socket of vfio-user-pci in no other form.
    fn endpoint_device(&self, function: Bdf, socket: &str) -> String {
        let placement = self.placement(function);
        let placement: String =
            placement.iter().map(|(name, value)| format!(r#""{name}":{value},"#)).collect();
        let path = Value::from(socket);
        format!(
            r#"{{"driver":"vfio-user-pci",{placement}"socket":{{"type":"unix","path":{path}}}}}"#
        )
    }

    /// Returns the properties that place a function at its address: strings, and `true` for "on".
    fn placement(&self, function: Bdf) -> Vec<(&'static str, Value)> {
        let mut properties = Vec::new();
        if function.bus != 0 {
            properties.push(("bus", format!("bus{}", function.bus).into()));
        }
        let addr = format!("{:02x}.{}", function.device, function.function);
        properties.push(("addr", addr.into()));
        let shares_slot = self
            .functions()
            .any(|other| other != function && Bdf { function: 0, ..other } == function);
        if shares_slot {
            properties.push(("multifunction", true.into()));
        }
        properties
    }
}

/// Returns the path of a socket, if a Unix socket address can hold it.
fn socket_path(path: &Path) -> Result<&str, QemuArgsError> {
    let text = path.to_str().filter(|_| path.as_os_str().as_bytes().len() < 108);
    text.ok_or_else(|| QemuArgsError::SocketPath(path.into()))
}

fn viot_path(path: &Path) -> Result<&str, QemuArgsError> {
    let text = path.to_str().filter(|path| !path.contains(':'));
    text.ok_or_else(|| QemuArgsError::ViotPath(path.into()))
}

fn option(name: &str, value: &str) -> String {
    format!("{name} {}", quote(value))
}

/// Doubles commas, as QEMU requires in values.
fn comma(text: &str) -> String {
    text.replace(',', ",,")
}

/// Quotes an argument for a shell, if necessary.
fn quote(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+%@".contains(c);
    if text.chars().all(is_plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Args, Command};

    fn lines_of(line: &str) -> Result<String, CliError> {
        let words = format!("vhost-user-iommu qemu-args --socket-path /run/v {line}");
        match Args::parse_line(words.split(' '))?.command {
            Some(Command::QemuArgs(args)) => Ok(lines(&args)?.join("\n")),
            other => panic!("{other:?}"),
        }
    }

    #[track_caller]
    fn assert_rejected(line: &str, parts: &[&str]) {
        let error = lines_of(line).unwrap_err().to_string();
        for part in parts {
            assert!(error.contains(part), "{line}: {error}");
        }
    }

    #[test]
    fn options_name_sockets_and_slots() {
        let line = "--socket-path /run/v,1 --endpoint 00:02.0,sim=/run/a";
        let text = lines_of(&line.replace("--socket-path", "--metrics-socket")).unwrap();
        assert!(text.contains("path=/run/v\n"), "{text}");
        let words = format!("vhost-user-iommu qemu-args {line}");
        let Some(Command::QemuArgs(args)) = Args::parse_line(words.split(' ')).unwrap().command
        else {
            panic!("{words}")
        };
        let text = lines(&args).unwrap().join("\n");
        assert!(text.contains("path=/run/v,,1"), "{text}");
        assert!(text.contains("virtio-id=23,num_vqs=2,vq_size=256,config_size=40,addr=01.0"));
        assert!(text.contains(r#"'{"driver":"vfio-user-pci","addr":"02.0","#), "{text}");
    }

    #[test]
    fn endpoint_at_the_address_of_the_iommu_is_rejected() {
        assert_rejected("--endpoint 00:01.0,sim=/a", &["0000:00:01.0"]);
    }

    #[test]
    fn memory_has_the_same_size_in_both_options() {
        for (given, printed) in [("512", "512M"), ("1024M", "1G"), ("2g", "2G")] {
            let text = lines_of(&format!("--memory {given} --endpoint 00:02.0,sim=/a")).unwrap();
            let expected = format!(
                "-m {printed}\n-object memory-backend-memfd,id=mem,size={printed},share=on\n"
            );
            assert!(text.contains(&expected), "{text}");
        }
    }

    #[test]
    fn reserved_slots_are_rejected_with_the_free_ones() {
        let free = "free slots: 01, 03-0f, 11-1e";
        assert_rejected(
            "--iommu 00:02.0 --endpoint 00:10.0,sim=/a --endpoint 00:1f.5,sim=/b",
            &["0000:00:1f.5", "slot 1f", "SATA", free],
        );
        assert_rejected("--iommu 00:00.0 --endpoint 00:10.0,sim=/a", &["host bridge", "slot 00"]);
    }

    #[test]
    fn default_devices_are_disabled_only_in_used_slots() {
        for (iommu, endpoint, expected) in [
            ("00:10.0", "00:11.0", ""),
            ("00:02.0", "00:11.0", "-nic none\n"),
            ("00:01.0", "00:11.0", "-vga none -nic none\n"),
            ("00:10.0", "00:01.0", "-vga none -nic none\n"),
        ] {
            let line = format!("--iommu {iommu} --endpoint {endpoint},sim=/a");
            let text = lines_of(&line).unwrap();
            assert!(text.contains(&format!("share=on\n{expected}-chardev")), "{line}: {text}");
        }
    }

    #[test]
    fn function_zero_of_a_shared_slot_is_multifunction() {
        let line = "--endpoint 00:02.1,sim=/b --endpoint 00:02.0,sim=/a --endpoint 00:01.7,sim=/c";
        let text = lines_of(line).unwrap();
        assert!(text.contains("config_size=40,addr=01.0,multifunction=on\n"), "{text}");
        assert!(text.contains(r#""addr":"02.1","socket""#), "{text}");
        assert!(text.contains(r#""addr":"02.0","multifunction":true,"#));
        assert_rejected("--endpoint 00:02.1,sim=/a", &["0000:00:02.1", "function 0"]);
        assert_rejected("--iommu 00:01.1 --endpoint 00:02.0,sim=/a", &["0000:00:01.1"]);
        assert_rejected(
            "--endpoint 00:02.0,vfio=/dev/a --endpoint 00:02.1,sim=/a",
            &["0000:00:02.1", "function 0"],
        );
    }

    #[test]
    fn buses_are_behind_root_ports_in_ascending_order() {
        let text = lines_of("--endpoint 00:1e.0,sim=/a --endpoint 09:00.0,sim=/b").unwrap();
        let ports: Vec<_> = text.lines().filter(|line| line.contains("pcie-root-port")).collect();
        assert_eq!(ports.len(), 9, "{text}");
        let port =
            "-device pcie-root-port,id=bus1,chassis=1,hotplug=off,addr=1c.0,multifunction=on";
        assert_eq!(ports[0], port);
        assert!(ports[7].ends_with("id=bus8,chassis=8,hotplug=off,addr=1c.7"), "{}", ports[7]);
        assert!(ports[8].ends_with("addr=1d.0,multifunction=on"), "{}", ports[8]);
        assert!(text.contains(r#""bus":"bus9","addr":"00.0","socket""#), "{text}");
    }

    #[test]
    fn function_that_no_root_port_can_have_is_rejected() {
        assert_rejected("--endpoint 01:02.0,sim=/a", &["0000:01:02.0", "slot 00"]);
        assert_rejected("--endpoint 0001:00:02.0,sim=/a", &["0001:00:02.0", "segment"]);
        assert_rejected("--endpoint ff:00.0,sim=/a", &["bus ff", "224 root ports"]);
    }

    #[test]
    fn path_that_qemu_cannot_open_is_rejected() {
        let long = "a".repeat(108);
        assert_rejected(&format!("--endpoint 00:02.0,sim=/{long}"), &[&long]);
        assert_rejected("--endpoint 00:02.0,sim=/a --viot /tmp/a:b", &["/tmp/a:b"]);
    }

    #[test]
    fn special_characters_are_quoted() {
        let text = lines_of("--endpoint 00:02.0,sim=/a'b\"c\\d,e --viot /tmp/x$y,z").unwrap();
        assert!(text.contains(r#""path":"/a'\''b\"c\\d,e""#), "{text}");
        assert!(text.contains("-acpitable 'file=/tmp/x$y,,z'"), "{text}");
    }
}
