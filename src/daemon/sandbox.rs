//! The requirements of the daemon inside the sandbox.

use std::path::{Path, PathBuf};

use rustix::thread::CapabilitySet;

use crate::cli::args::DaemonArgs;
use crate::endpoint::EndpointKind;
use crate::host::iommufd;
use crate::sandbox::Requirements;
use crate::socket::directory_of;

/// Returns the operations that the daemon with these options requires.
pub(super) fn requirements(args: &DaemonArgs) -> Requirements {
    let kinds = || args.endpoints.iter().map(|endpoint| &endpoint.kind);
    let uses_iommufd = kinds().any(EndpointKind::uses_iommufd);
    let own_sockets = args.socket_path.iter().chain(&args.metrics_socket).map(PathBuf::as_path);
    let sockets = kinds().filter_map(EndpointKind::socket).chain(own_sockets);
    let mut capabilities = CapabilitySet::empty();
    // Exempts the guest memory that the kernel pins from RLIMIT_MEMLOCK.
    capabilities.set(CapabilitySet::IPC_LOCK, uses_iommufd);
    capabilities.set(CapabilitySet::SYS_NICE, args.realtime);
    Requirements {
        removable: sockets.map(directory_of).map(Path::to_path_buf).collect(),
        ioctls: if uses_iommufd { iommufd::ioctls() } else { Vec::new() },
        capabilities,
    }
}
