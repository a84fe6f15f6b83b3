//! The roles of threads and the system calls that each role requires.

use super::calls::{self, Call};

/// The task of a thread, which it has until it ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// Serves the request queue.
    Requests,
    /// Serves the event queue.
    Events,
    /// Executes the descriptors of an emulated accelerator.
    Accelerator,
    /// Serves the vfio-user socket of an emulated accelerator.
    VfioUser,
    /// Reads page requests of a host device from its fault queue.
    FaultReader,
    /// Handles signals.
    Signals,
    /// Forwards vhost-user messages.
    Relay,
    /// Sends keep-alive messages to the service manager.
    Watchdog,
    /// Serves metrics.
    Metrics,
}

/// A role and the calls that it requires in addition to [`calls::COMMON`].
pub(super) struct Row {
    pub(super) role: Role,
    pub(super) calls: &'static [&'static [Call]],
}

const fn row(role: Role, calls: &'static [&'static [Call]]) -> Row {
    Row { role, calls }
}

/// All roles.
pub(super) const ROLES: &[Row] = &[
    row(Role::Requests, &[calls::EPOLL, calls::FAULT_TIMER, calls::HOST]),
    row(Role::Events, &[calls::EPOLL, calls::FAULT_TIMER]),
    row(Role::Accelerator, &[calls::FAULT_TIMER, calls::MOCK_DEVICE]),
    row(
        Role::VfioUser,
        &[
            calls::POLL,
            calls::ACCEPT,
            calls::MESSAGES,
            calls::MEMORY_REGIONS,
            calls::FAULT_TIMER,
            calls::MOCK_DEVICE,
        ],
    ),
    row(Role::FaultReader, &[calls::POLL, calls::FAULT_TIMER]),
    row(Role::Signals, &[calls::SHUTDOWN]),
    row(Role::Relay, &[calls::MESSAGES]),
    row(Role::Watchdog, &[calls::SEND]),
    row(Role::Metrics, &[calls::POLL, calls::ACCEPT, calls::RECEIVE, calls::SEND]),
];

/// The calls of threads without a role: the main thread, which starts all others and waits for
/// front ends, the threads that handle vhost-user messages, and all others until they enter their
/// roles. The filter of the process allows these calls and those of all roles.
pub(super) const NO_ROLE: &[&[Call]] = &[
    calls::THREADS,
    calls::SCHEDULING,
    calls::POLL,
    calls::ACCEPT,
    calls::MESSAGES,
    calls::MEMORY_REGIONS,
    calls::CREATE_EVENTS,
    calls::FAULT_TIMER,
    calls::HOST,
    calls::REMOVE_SOCKETS,
];
