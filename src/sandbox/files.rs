//! Restricts access to files, the network and other processes by Landlock.
//!
//! No file can be opened, created or changed; files can be removed in the directories of the
//! daemon's sockets. On a kernel without Landlock only the seccomp filters apply: they permit no
//! call that opens a file, but cannot distinguish the files that are removed.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// The newest ABI whose access rights are requested; older kernels apply those that they support.
const NEWEST: ABI = ABI::V10;

/// Restricts the calling thread and all threads that it starts later. Returns a description of the
/// restriction for the log.
pub(super) fn restrict(removable: &[PathBuf]) -> String {
    match apply(removable) {
        Ok(status) => describe(&status),
        Err(error) => format!("no Landlock ({error})"),
    }
}

fn apply(removable: &[PathBuf]) -> Result<RestrictionStatus, RulesetError> {
    let mut rules = Ruleset::default()
        .handle_access(AccessFs::from_all(NEWEST))?
        .handle_access(AccessNet::from_all(NEWEST))?
        .scope(Scope::from_all(NEWEST))?
        .create()?;
    for directory in removable {
        match PathFd::new(directory) {
            Ok(open) => rules = rules.add_rule(PathBeneath::new(open, AccessFs::RemoveFile))?,
            Err(error) => log::warn!("the sockets in this directory cannot be removed: {error}"),
        }
    }
    rules.restrict_self()
}

fn describe(status: &RestrictionStatus) -> String {
    match (&status.ruleset, &status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            "no Landlock (disabled at boot)".into()
        }
        (RulesetStatus::NotEnforced, _) => "no Landlock (not in this kernel)".into(),
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            format!("Landlock {}", *effective_abi as i32)
        }
        _ => "Landlock".into(),
    }
}
