//! The QEMU options that go with a daemon's command line.

use std::path::Path;

use crate::cli::CliError;
use crate::cli::args::QemuArgs;
use crate::cli::bdf::Bdf;
use crate::cli::viot;
use crate::endpoint::EndpointKind;
use crate::viommu::wire;

/// VIRTIO_ID_IOMMU.
const VIRTIO_ID: u32 = virtio_bindings::virtio_ids::VIRTIO_ID_IOMMU;

/// The options, one a line, quoted for a shell and ready to paste behind `qemu-system-x86_64`.
///
/// # Errors
/// A function that QEMU cannot be told to put where it is asked for, in a sentence.
pub fn lines(args: &QemuArgs) -> Result<Vec<String>, CliError> {
    args.daemon.settings()?;
    let endpoints: Vec<Bdf> =
        args.daemon.endpoints.iter().map(|endpoint| endpoint.id.into()).collect();
    viot::table(args.iommu, &endpoints)?;
    let no_path = "qemu-args needs --socket-path, instead of --fd: where QEMU is to connect";
    let socket = args.daemon.socket_path.as_deref().ok_or_else(|| no_path.to_owned())?;
    let memory = &args.memory;
    let mut lines = vec![
        "-machine q35,memory-backend=mem".to_owned(),
        format!("-m {}", quote(memory)),
        option("-object", &format!("memory-backend-memfd,id=mem,size={memory},share=on")),
        option("-chardev", &format!("socket,id=viommu,path={}", comma(socket))),
        option("-device", &iommu_device(args)?),
        option("-acpitable", &format!("file={}", comma(&args.viot))),
    ];
    for endpoint in &args.daemon.endpoints {
        match &endpoint.kind {
            EndpointKind::Sim(socket) => {
                lines.push(option("-device", &vfio_user(endpoint.id.into(), socket)?));
            }
            #[cfg(feature = "selftest")]
            EndpointKind::Mock(socket) => {
                lines.push(option("-device", &vfio_user(endpoint.id.into(), socket)?));
            }
            // Nothing shows the guest the device itself yet.
            EndpointKind::Vfio(_) => {}
        }
    }
    Ok(lines)
}

fn iommu_device(args: &QemuArgs) -> Result<String, String> {
    // QEMU's own limit, and Linux's choice on any smaller one.
    let queue_size = args.daemon.queue_size.min(256);
    Ok(format!(
        "vhost-user-test-device-pci,chardev=viommu,virtio-id={VIRTIO_ID},num_vqs=2,\
         vq_size={queue_size},config_size={},addr={}",
        size_of::<wire::Config>(),
        slot(args.iommu)?
    ))
}

/// `-device` takes the socket of vfio-user-pci in JSON only.
fn vfio_user(bdf: Bdf, socket: &Path) -> Result<String, String> {
    let path = socket.to_string_lossy().replace('\\', "\\\\").replace('"', "\\\"");
    Ok(format!(
        r#"{{"driver":"vfio-user-pci","addr":"{}","socket":{{"type":"unix","path":"{path}"}}}}"#,
        slot(bdf)?
    ))
}

/// QEMU's address of a function on the root bus.
fn slot(bdf: Bdf) -> Result<String, String> {
    if bdf.segment != 0 || bdf.bus != 0 {
        return Err(format!("{bdf} is not on the root bus; these options know no bridges"));
    }
    Ok(format!("{:02x}.{}", bdf.device, bdf.function))
}

fn option(name: &str, value: &str) -> String {
    format!("{name} {}", quote(value))
}

/// QEMU doubles commas in values.
fn comma(path: &Path) -> String {
    path.to_string_lossy().replace(',', ",,")
}

/// Quotes for a shell where it is needed.
fn quote(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_=,./:+%@".contains(c);
    if !text.is_empty() && text.chars().all(plain) {
        return text.to_owned();
    }
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;
    use crate::cli::args::{Args, Command};

    fn lines_of(line: &str) -> Result<Vec<String>, CliError> {
        let words = format!("vhost-user-iommu qemu-args {line}");
        match Args::try_parse_from(words.split(' ')).unwrap().command {
            Some(Command::QemuArgs(args)) => lines(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_name_sockets_and_slots_of_the_daemons_command_line() {
        let lines = lines_of("--socket-path /run/v,1 --endpoint 00:02.0,sim=/run/a").unwrap();
        let text = lines.join("\n");
        assert!(text.contains("path=/run/v,,1"), "{text}");
        assert!(text.contains("virtio-id=23,num_vqs=2,vq_size=256,config_size=40,addr=01.0"));
        assert!(text.contains(r#"'{"driver":"vfio-user-pci","addr":"02.0""#), "{text}");
    }

    #[test]
    fn an_endpoint_in_the_iommus_place_is_refused() {
        let line = "--socket-path /s --endpoint 00:01.0,sim=/a";
        let error = lines_of(line).unwrap_err().to_string();
        assert!(error.contains("0000:00:01.0"), "{error}");
    }

    #[test]
    fn a_function_behind_a_bridge_is_refused() {
        let line = "--socket-path /s --endpoint 01:02.0,sim=/a";
        let error = lines_of(line).unwrap_err().to_string();
        assert!(error.contains("0000:01:02.0"), "{error}");
    }
}
