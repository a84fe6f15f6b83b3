//! What the sandbox has to leave possible.

use std::path::PathBuf;

use rustix::thread::CapabilitySet;

use crate::cli::args::DaemonArgs;
use crate::endpoint::EndpointKind;
use crate::host::iommufd;
use crate::sandbox::Requirements;
use crate::socket::directory_of;

/// What the daemon still does once it runs.
pub(super) fn requirements(args: &DaemonArgs) -> Requirements {
    let kinds = || args.endpoints.iter().map(|endpoint| &endpoint.kind);
    let own = args.socket_path.iter().chain(&args.metrics_socket).map(PathBuf::as_path);
    let sockets = kinds().filter_map(EndpointKind::socket).chain(own);
    let on_host = kinds().any(EndpointKind::uses_iommufd);
    let kept = [
        // The kernel counts pinned memory otherwise, of which a guest has much.
        (on_host, CapabilitySet::IPC_LOCK),
        (args.realtime, CapabilitySet::SYS_NICE),
    ];
    Requirements {
        removable: sockets.map(|path| directory_of(path).into()).collect(),
        ioctls: if on_host { iommufd::ioctls() } else { Vec::new() },
        capabilities: kept.iter().filter(|(needed, _)| *needed).map(|(_, one)| *one).collect(),
    }
}
