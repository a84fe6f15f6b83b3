//! The configuration of an endpoint.

use std::path::{Path, PathBuf};

use crate::address::EndpointId;

/// The configuration of one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndpointConfig {
    /// Its PCI function in the guest.
    pub id: EndpointId,
    /// Its kind, with its path.
    pub kind: EndpointKind,
}

/// The kind of an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EndpointKind {
    /// An emulated accelerator, served over vfio-user on this socket.
    Sim(PathBuf),
    /// A physical device, by its VFIO character device.
    Vfio(PathBuf),
    /// As `Sim`, but translated by the mock device of the kernel's iommufd selftest.
    #[cfg(feature = "selftest")]
    Mock(PathBuf),
}

impl EndpointKind {
    /// Returns the path of the vfio-user socket, if the endpoint has one.
    pub fn socket(&self) -> Option<&Path> {
        match self {
            Self::Sim(path) => Some(path),
            Self::Vfio(_) => None,
            #[cfg(feature = "selftest")]
            Self::Mock(path) => Some(path),
        }
    }

    /// Returns whether the host kernel's iommufd translates for the endpoint.
    pub fn uses_iommufd(&self) -> bool {
        !matches!(self, Self::Sim(_))
    }
}
