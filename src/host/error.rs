//! Errors of the back ends.

use std::fmt::Display;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::io::Errno;

use crate::address::EndpointId;

/// A system call on iommufd or VFIO that failed.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{call} failed for {object}: {errno}")]
pub struct KernelError {
    call: &'static str,
    object: String,
    /// The error number.
    #[source]
    pub errno: Errno,
}

impl KernelError {
    /// Returns the error of a system call, named as in the kernel's header, on `object`.
    pub fn new(call: &'static str, object: impl Display, errno: Errno) -> Self {
        Self { call, object: object.to_string(), errno }
    }

    /// Logs an error that the operator of the host has to resolve. A guest can repeat the request
    /// that caused it, so only the first, second, fourth, eighth ... error is logged.
    fn log_rarely(&self) {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed) + 1;
        if count.is_power_of_two() {
            log::warn!("{self} (host errors so far: {count})");
        }
    }
}

/// An error of a back end. Translations and mappings are the same as before the call.
#[derive(Clone, Debug, thiserror::Error)]
pub enum HostError {
    /// The host has no memory, or a limit is reached, for instance that on pinned memory.
    #[error("the host is out of memory or over a limit: {0}")]
    NoMemory(#[source] KernelError),
    /// The host IOMMU cannot map the range for an endpoint of the domain.
    #[error("the host IOMMU cannot map the range: {0}")]
    UnmappableRange(#[source] KernelError),
    /// The host IOMMU does not support the translation for the endpoint.
    #[error("the host IOMMU does not support the translation for the endpoint: {0}")]
    Unsupported(#[source] KernelError),
    /// Any other failed system call.
    #[error(transparent)]
    Failed(KernelError),
    /// The back end does not serve the endpoint.
    #[error("endpoint {0} is not served by this back end")]
    UnknownEndpoint(EndpointId),
}

impl HostError {
    /// Classifies a failed system call. `invalid` makes the error for arguments that the kernel
    /// rejects because of the range or the endpoint, which the guest chose. All others are logged,
    /// as only the operator of the host can resolve them.
    pub(super) fn new(error: KernelError, invalid: fn(KernelError) -> Self) -> Self {
        match error.errno {
            Errno::INVAL | Errno::ADDRINUSE | Errno::OPNOTSUPP | Errno::NODEV | Errno::OVERFLOW => {
                invalid(error)
            }
            Errno::NOMEM | Errno::NOSPC | Errno::DQUOT | Errno::MFILE | Errno::NFILE => {
                error.log_rarely();
                Self::NoMemory(error)
            }
            _ => {
                error.log_rarely();
                Self::Failed(error)
            }
        }
    }
}
