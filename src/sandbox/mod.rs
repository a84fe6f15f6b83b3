//! What the process gives up once everything is opened and bound.
//!
//! ```text
//! capabilities   the user's rights: all go but what options need
//! files          paths, network, signals: nothing opens, sockets can be removed (Landlock)
//! calls, roles   system calls: a list for the process, a shorter one for each kind of thread
//! seccomp        these lists as the kernel takes them
//! allocator      what would otherwise want a file later
//! ```
//!
//! `docs/sandbox.md` tells why each call is on its list.

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
use seccomp::Lists;

/// Whether there is a sandbox, and what becomes of who wants out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// There is none.
    Off,
    /// What is not on the list is refused: the end of the daemon would be that of its machine.
    On,
    /// It ends the process, so that nobody overlooks it.
    Kill,
}

impl FromStr for Mode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "off" => Ok(Self::Off),
            "on" => Ok(Self::On),
            "kill" => Ok(Self::Kill),
            _ => Err(format!("'{text}' is no sandbox; write on, off or kill")),
        }
    }
}

/// What has to stay possible.
#[derive(Clone, Debug)]
pub struct Requirements {
    /// Directories in which sockets are to be removed at the end.
    pub removable: Vec<PathBuf>,
    /// Ioctls on devices of the host.
    pub ioctls: Vec<u32>,
    /// Capabilities that stay, if the process has them.
    pub capabilities: CapabilitySet,
}

/// Why there is no sandbox.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The kernel does not promise that the process gets no new privileges.
    #[error("no_new_privs: {0}")]
    Privileges(#[source] io::Error),
    /// Capabilities could not be given up.
    #[error("capabilities cannot be given up: {0}")]
    Capabilities(#[source] io::Error),
    /// The kernel takes no list of system calls.
    #[error(
        "system calls cannot be restricted: {0}; it needs a kernel with CONFIG_SECCOMP_FILTER, \
         and a container that lets seccomp(2) through"
    )]
    Calls(#[from] seccompiler::Error),
}

/// The lists of the roles, once the process is in the sandbox. What the kernel keeps of it is the
/// process's too, and cannot be undone.
static LISTS: OnceLock<Lists> = OnceLock::new();

/// Enters the sandbox. To be called before threads are started: of what others there are only
/// system calls would be restricted.
///
/// # Errors
/// When a part that every kernel has is refused. Landlock, which not all have, is left out then.
pub fn enter(mode: Mode, needs: &Requirements) -> Result<(), Error> {
    if mode == Mode::Off {
        log::warn!("no sandbox, as --sandbox=off asks for");
        return Ok(());
    }
    let lists = Lists::new(mode, &needs.ioctls)?;
    allocator::look_at_nothing_later();
    set_no_new_privs(true).map_err(|error| Error::Privileges(error.into()))?;
    // Paths are looked up while the process may still do it.
    let files = files::restrict(&needs.removable);
    let left = capabilities::reduce(needs.capabilities)
        .map_err(|error| Error::Capabilities(error.into()))?;
    lists.apply()?;
    let others = if mode == Mode::Kill { "others end the daemon" } else { "others are refused" };
    let left = names(left);
    log::info!("sandbox: system calls by list, {others}; {files}; capabilities: {left}");
    let _ = LISTS.set(lists);
    Ok(())
}

/// Restricts the calling thread to what its role needs. A thread that cannot be restricted so
/// far has the list of the process.
pub fn enter_role(role: Role) {
    let Some(lists) = LISTS.get() else { return };
    if let Err(error) = lists.apply_role(role) {
        log::error!("the thread for {role:?} has the sandbox of the process only: {error}");
    }
}

fn names(capabilities: CapabilitySet) -> String {
    let names: Vec<_> = capabilities.iter_names().map(|(name, _)| name).collect();
    if names.is_empty() { "none".into() } else { names.join(", ") }
}
