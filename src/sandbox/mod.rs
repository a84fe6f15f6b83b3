//! The sandbox, which the process enters once all files and sockets are open.
//!
//! ```text
//! capabilities   drops all but those that options require
//! files          denies access to files, network and other processes; allows the removal of
//!                sockets (Landlock)
//! calls, roles   system calls: an allow list for the process, a shorter one for each role
//! seccomp        compiles these lists into seccomp filters
//! allocator      has the allocator read its files before
//! ```
//!
//! `docs/sandbox.md` explains why each call is allowed.

mod allocator;
#[cfg(feature = "selftest")]
pub mod attempts;
mod calls;
mod capabilities;
mod files;
mod roles;
mod seccomp;

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::OnceLock;

use rustix::thread::{CapabilitySet, set_no_new_privs};

pub use roles::Role;
use seccomp::Filters;

/// The action on a system call outside the allow list (`--sandbox`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// None: there is no sandbox.
    Off,
    /// The call fails with EPERM. The daemon continues, because the virtual machine depends on it.
    On,
    /// The process is killed, so that a test cannot overlook the call.
    Kill,
}

/// The text is not the name of a [`Mode`].
#[derive(Debug, thiserror::Error)]
#[error("must be on, off or kill")]
pub struct ParseModeError;

impl FromStr for Mode {
    type Err = ParseModeError;

    fn from_str(text: &str) -> Result<Self, ParseModeError> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "kill" => Ok(Self::Kill),
            _ => Err(ParseModeError),
        }
    }
}

/// The operations that the daemon requires inside the sandbox.
#[derive(Clone, Debug)]
pub struct Requirements {
    /// Directories in which sockets are removed on exit.
    pub removable: Vec<PathBuf>,
    /// Request numbers of the ioctls on host devices.
    pub ioctls: Vec<u32>,
    /// Capabilities to keep, if the process has them.
    pub capabilities: CapabilitySet,
}

/// An error on entry into the sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The `no_new_privs` attribute cannot be set.
    #[error("cannot set no_new_privs: {0}")]
    NoNewPrivs(#[source] io::Error),
    /// Capabilities cannot be dropped.
    #[error("cannot drop capabilities: {0}")]
    Capabilities(#[source] io::Error),
    /// The seccomp filters cannot be installed.
    #[error(
        "cannot install a seccomp filter: {0}; this requires a kernel with CONFIG_SECCOMP_FILTER, \
         and a container that permits seccomp(2)"
    )]
    Seccomp(#[from] seccompiler::Error),
}

/// The filters, set once the process is in the sandbox. They are global like the sandbox itself,
/// which applies to the whole process and cannot be left.
static FILTERS: OnceLock<Filters> = OnceLock::new();

/// Enters the sandbox. Call it before any thread is started: capabilities and Landlock do not apply
/// to threads that run already.
///
/// # Errors
/// When the kernel does not support a part of the sandbox, except for Landlock, which is then
/// omitted.
pub fn enter(mode: Mode, requirements: &Requirements) -> Result<(), Error> {
    if mode == Mode::Off {
        log::warn!("running without a sandbox (--sandbox=off)");
        return Ok(());
    }
    let filters = Filters::new(mode, &requirements.ioctls)?;
    allocator::warm_up();
    set_no_new_privs(true).map_err(|error| Error::NoNewPrivs(error.into()))?;
    // Before the seccomp filter, which denies opening the directories.
    let files = files::restrict(&requirements.removable);
    let kept = capabilities::reduce(requirements.capabilities)
        .map_err(|error| Error::Capabilities(error.into()))?;
    filters.apply()?;
    let action = if mode == Mode::Kill { "kill the daemon" } else { "fail with EPERM" };
    let kept = names(kept);
    log::info!("sandbox: other system calls {action}; {files}; capabilities: {kept}");
    let _ = FILTERS.set(filters);
    Ok(())
}

/// Restricts the calling thread to the system calls of its role. On failure the thread keeps the
/// filter of the process.
pub fn enter_role(role: Role) {
    let Some(filters) = FILTERS.get() else { return };
    if let Err(error) = filters.apply_role(role) {
        log::error!("cannot restrict the thread of role {role:?} further: {error}");
    }
}

fn names(capabilities: CapabilitySet) -> String {
    let names: Vec<_> = capabilities.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
