//! Files, the network and other processes, by Landlock.
//!
//! Nothing can be opened, made or changed; in the directories of the daemon's sockets files can
//! be removed. A kernel without Landlock has the lists of system calls only, which let nothing be
//! opened either but cannot tell one file from another.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, LandlockStatus, PathBeneath, PathFd, RestrictionStatus,
    Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetError, RulesetStatus, Scope,
};

/// What this asks for, as far as the kernel knows it.
const NEWEST: ABI = ABI::V10;

/// Restricts the calling thread and those that it will start. Says what is in force.
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
            Err(error) => log::warn!("a socket will stay when the daemon ends: {error}"),
        }
    }
    rules.restrict_self()
}

fn describe(status: &RestrictionStatus) -> String {
    match (&status.ruleset, &status.landlock) {
        (RulesetStatus::NotEnforced, LandlockStatus::NotEnabled) => {
            "no Landlock (off in this kernel)".into()
        }
        (RulesetStatus::NotEnforced, _) => "no Landlock (not in this kernel)".into(),
        (_, LandlockStatus::Available { effective_abi, .. }) => {
            format!("Landlock {}", *effective_abi as i32)
        }
        _ => "Landlock".into(),
    }
}
