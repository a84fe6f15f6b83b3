//! What each thread is there for, and so may do.

use super::calls::{self as to, Call};

/// What a thread does until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves the request queue.
    Requests,
    /// Serves the event queue.
    Events,
    /// Executes the descriptors of an emulated accelerator.
    Accelerator,
    /// Serves the registers of an emulated accelerator over its socket.
    VfioUser,
    /// Reads page requests of a device of the host.
    FaultReader,
    /// Obeys signals.
    Signals,
    /// Passes on messages of a front end.
    Relay,
    /// Answers the service manager's watchdog.
    Watchdog,
    /// Serves figures.
    Metrics,
}

/// A role and its calls, beside [`to::COMMON`].
pub(super) struct Row {
    pub(super) role: Role,
    pub(super) calls: &'static [&'static [Call]],
}

const fn row(role: Role, calls: &'static [&'static [Call]]) -> Row {
    Row { role, calls }
}

/// All of them.
pub(super) const ROLES: &[Row] = &[
    row(Role::Requests, &[to::SERVES_QUEUE, to::DELIVERS, to::HOST]),
    row(Role::Events, &[to::SERVES_QUEUE, to::DELIVERS]),
    row(Role::Accelerator, &[to::DELIVERS, to::EMULATED_BY_KERNEL]),
    row(
        Role::VfioUser,
        &[
            to::POLLS,
            to::ACCEPTS,
            to::TALKS,
            to::TAKES_MEMORY,
            to::DELIVERS,
            to::EMULATED_BY_KERNEL,
        ],
    ),
    row(Role::FaultReader, &[to::POLLS, to::DELIVERS]),
    row(Role::Signals, &[to::SHUTS_DOWN]),
    row(Role::Relay, &[to::TALKS]),
    row(Role::Watchdog, &[to::SENDS]),
    row(Role::Metrics, &[to::POLLS, to::ACCEPTS, to::LISTENS_TO, to::SENDS]),
];

/// What threads without a role do: the one that starts all others and waits for front ends, those
/// that talk to one, and the rest before they take their roles. The list of the process is this and that of each role.
pub(super) const NO_ROLE: &[&[Call]] = &[
    to::THREADS,
    to::SCHEDULES,
    to::POLLS,
    to::ACCEPTS,
    to::TALKS,
    to::TAKES_MEMORY,
    to::MAKES_EVENTS,
    to::DELIVERS,
    to::HOST,
    to::REMOVES,
];
