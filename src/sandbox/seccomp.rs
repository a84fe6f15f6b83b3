//! Seccomp filters: programs that the kernel runs before each system call.

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Mode;
use super::calls::{COMMON, Call, Test};
use super::roles::{NO_ROLE, ROLES, Role};

/// The filters of the process and of all roles.
pub(super) struct Filters {
    /// In the order in which they are installed.
    process: [BpfProgram; 2],
    roles: Vec<(Role, BpfProgram)>,
}

type Result<T> = std::result::Result<T, seccompiler::Error>;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Filters {
    /// Compiles all filters. `ioctls` are those on host devices.
    pub(super) fn new(mode: Mode, ioctls: &[u32]) -> Result<Self> {
        let mismatch = match mode {
            Mode::Kill => SeccompAction::KillProcess,
            Mode::Off | Mode::On => SeccompAction::Errno(libc::EPERM as u32),
        };
        let allow = |calls: &[&[Call]]| {
            program(rules(calls, ioctls)?, mismatch.clone(), SeccompAction::Allow)
        };
        let all: Vec<&[Call]> =
            ROLES.iter().flat_map(|row| row.calls).chain(NO_ROLE).copied().collect();
        let process = [allow(&all)?, deny_clone3()?];
        let roles = ROLES.iter().map(|row| Ok((row.role, allow(row.calls)?)));
        Ok(Self { process, roles: roles.collect::<Result<_>>()? })
    }

    /// Restricts all threads, present and future.
    pub(super) fn apply(&self) -> Result<()> {
        self.process.iter().try_for_each(|filter| seccompiler::apply_filter_all_threads(filter))
    }

    /// Restricts the calling thread.
    pub(super) fn apply_role(&self, role: Role) -> Result<()> {
        let mut filters = self.roles.iter().filter(|(of, _)| *of == role);
        filters.try_for_each(|(_, filter)| seccompiler::apply_filter(filter))
    }
}

/// Returns the rules for the common calls and `calls`.
fn rules(calls: &[&[Call]], ioctls: &[u32]) -> Result<Rules> {
    let mut rules = Rules::new();
    for call in COMMON.iter().chain(calls.iter().copied().flatten()) {
        match *call {
            Call::Any(number) => add(&mut rules, number, None),
            Call::If(number, tests) => add(&mut rules, number, Some(all_of(tests)?)),
            Call::TestIoctls if !cfg!(feature = "selftest") => {}
            Call::HostIoctls | Call::TestIoctls => {
                for &ioctl in ioctls {
                    add(&mut rules, libc::SYS_ioctl, Some(all_of(&[Test::Is(1, ioctl)])?));
                }
            }
        }
    }
    Ok(rules)
}

/// Allows a call if `rule` matches, `None`: always, which an empty list of rules means.
fn add(rules: &mut Rules, number: i64, rule: Option<SeccompRule>) {
    let Some(rule) = rule else {
        rules.insert(number, Vec::new());
        return;
    };
    match rules.get_mut(&number) {
        None => drop(rules.insert(number, vec![rule])),
        // Unconditional already.
        Some(alternatives) if alternatives.is_empty() => {}
        Some(alternatives) if alternatives.contains(&rule) => {}
        Some(alternatives) => alternatives.push(rule),
    }
}

fn all_of(tests: &[Test]) -> Result<SeccompRule> {
    let conditions = tests.iter().map(condition).collect::<Result<_>>()?;
    Ok(SeccompRule::new(conditions)?)
}

fn condition(test: &Test) -> Result<SeccompCondition> {
    use SeccompCmpArgLen::{Dword, Qword};
    use SeccompCmpOp::{Eq, MaskedEq};
    let (argument, len, operator, value) = match *test {
        Test::Is(argument, value) => (argument, Dword, Eq, value.into()),
        Test::Bits(argument, mask, value) => (argument, Dword, MaskedEq(mask.into()), value.into()),
        Test::Null(argument) => (argument, Qword, Eq, 0),
        Test::OwnProcess(argument) => (argument, Dword, Eq, std::process::id().into()),
    };
    Ok(SeccompCondition::new(argument, len, operator, value)?)
}

/// Makes `clone3` fail with ENOSYS. Of the results of several filters the strictest applies.
fn deny_clone3() -> Result<BpfProgram> {
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    program(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

/// Compiles a filter with an action for the calls that match `rules`, and one for all others.
fn program(rules: Rules, mismatch: SeccompAction, matched: SeccompAction) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, mismatch, matched, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unconditional_call_stays_unconditional() {
        let rule = || Some(all_of(&[Test::Is(0, 1)]).unwrap());
        for order in [[None, rule()], [rule(), None]] {
            let mut rules = Rules::new();
            order.into_iter().for_each(|rule| add(&mut rules, 7, rule));
            assert_eq!(rules, Rules::from([(7, Vec::new())]));
        }
        let mut rules = Rules::new();
        [rule(), rule()].into_iter().for_each(|rule| add(&mut rules, 7, rule));
        assert_eq!(rules[&7].len(), 1);
    }

    #[test]
    fn each_role_has_one_row_and_only_the_given_ioctls() {
        for (index, row) in ROLES.iter().enumerate() {
            assert!(ROLES[..index].iter().all(|other| other.role != row.role), "{:?}", row.role);
        }
        let rules = |ioctls: &[u32]| rules(&[super::super::calls::HOST], ioctls).unwrap();
        assert!(!rules(&[]).contains_key(&libc::SYS_ioctl));
        assert_eq!(rules(&[1, 2])[&libc::SYS_ioctl].len(), 2);
    }

    #[test]
    fn all_filters_compile_for_this_architecture() {
        for mode in [Mode::On, Mode::Kill] {
            let filters = Filters::new(mode, &[0x3b80, 0x3b81]).unwrap();
            assert_eq!(filters.roles.len(), ROLES.len());
        }
    }
}
