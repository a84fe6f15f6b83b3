//! Lists of system calls, as programs that the kernel runs before each call (seccomp).

use std::collections::BTreeMap;

use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, TargetArch,
};

use super::Mode;
use super::calls::{COMMON, Call, Test};
use super::roles::{NO_ROLE, ROLES, Role, Row};

/// The programs of all lists.
pub(super) struct Lists {
    /// In the order in which the process takes them.
    process: [BpfProgram; 2],
    roles: Vec<(Role, BpfProgram)>,
}

type Result<T> = std::result::Result<T, seccompiler::Error>;
type Rules = BTreeMap<i64, Vec<SeccompRule>>;

impl Lists {
    /// With these ioctls on devices of the host.
    pub(super) fn new(mode: Mode, ioctls: &[u32]) -> Result<Self> {
        let outside = match mode {
            Mode::Kill => SeccompAction::KillProcess,
            Mode::Off | Mode::On => SeccompAction::Errno(libc::EPERM as u32),
        };
        let list = |calls: &[&[Call]]| compile(allow(calls, ioctls)?, outside.clone());
        let role = |row: &Row| Ok((row.role, list(row.calls)?));
        let all: Vec<&[Call]> =
            ROLES.iter().flat_map(|row| row.calls).chain(NO_ROLE).copied().collect();
        let process = [list(&all)?, without_clone3()?];
        Ok(Self { process, roles: ROLES.iter().map(role).collect::<Result<_>>()? })
    }

    /// For all threads that there are and will be.
    pub(super) fn apply(&self) -> Result<()> {
        self.process.iter().try_for_each(|list| seccompiler::apply_filter_all_threads(list))
    }

    /// For the calling thread.
    pub(super) fn apply_role(&self, role: Role) -> Result<()> {
        let mut lists = self.roles.iter().filter(|(of, _)| *of == role);
        lists.try_for_each(|(_, list)| seccompiler::apply_filter(list))
    }
}

/// What is common to all, and `calls`.
fn allow(calls: &[&[Call]], ioctls: &[u32]) -> Result<Rules> {
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

/// `None`: without condition, which an empty list of rules means.
fn add(rules: &mut Rules, number: i64, rule: Option<SeccompRule>) {
    let Some(rule) = rule else {
        rules.insert(number, Vec::new());
        return;
    };
    let known = rules.contains_key(&number);
    let of_call = rules.entry(number).or_default();
    let is_free = known && of_call.is_empty();
    if !is_free && !of_call.contains(&rule) {
        of_call.push(rule);
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

fn compile(rules: Rules, outside: SeccompAction) -> Result<BpfProgram> {
    program(rules, outside, SeccompAction::Allow)
}

/// Of several lists the strictest answer counts, so one more can turn "allowed" into ENOSYS.
fn without_clone3() -> Result<BpfProgram> {
    let clone3 = Rules::from([(libc::SYS_clone3, Vec::new())]);
    program(clone3, SeccompAction::Allow, SeccompAction::Errno(libc::ENOSYS as u32))
}

fn program(rules: Rules, outside: SeccompAction, inside: SeccompAction) -> Result<BpfProgram> {
    let arch = TargetArch::try_from(std::env::consts::ARCH)?;
    Ok(SeccompFilter::new(rules, outside, inside, arch)?.try_into()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_without_condition_stays_so_whatever_else_is_said_of_it() {
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
    fn each_role_has_one_list_and_ioctls_only_where_they_are_named() {
        for (index, row) in ROLES.iter().enumerate() {
            assert!(ROLES[..index].iter().all(|other| other.role != row.role), "{:?}", row.role);
        }
        let rules = |ioctls: &[u32]| allow(&[super::super::calls::HOST], ioctls).unwrap();
        assert!(!rules(&[]).contains_key(&libc::SYS_ioctl));
        assert_eq!(rules(&[1, 2])[&libc::SYS_ioctl].len(), 2);
    }

    #[test]
    fn all_lists_compile_for_this_machine() {
        for mode in [Mode::On, Mode::Kill] {
            let lists = Lists::new(mode, &[0x3b80, 0x3b81]).unwrap();
            assert_eq!(lists.roles.len(), ROLES.len());
        }
    }
}
