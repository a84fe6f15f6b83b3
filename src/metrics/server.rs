//! The thread that serves metrics.
//!
//! It serves a limited number of clients concurrently, each for a limited time; others wait to be
//! accepted. Its system calls are poll, accept, recv, send and close.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use super::http::{MAX_HEAD, respond};
use crate::notifier::Notifier;
use crate::sandbox::{Role, enter_role};

/// Maximum number of concurrent clients.
const MAX_CLIENTS: usize = 8;
/// Time limit of a client for its request and for reading the response.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Time until the next attempt to accept a connection after a failure.
const ACCEPT_DELAY: Duration = Duration::from_secs(1);

/// A server of metrics.
pub(super) struct Server<F> {
    listener: UnixListener,
    stop: Notifier,
    /// Encodes the metrics.
    metrics: F,
    clients: Vec<Client>,
    /// Do not accept a connection before this time.
    accept_after: Option<Instant>,
}

impl<F: Fn() -> Option<String>> Server<F> {
    /// Creates a server on a non-blocking listener, which `stop` stops.
    pub(super) fn new(listener: UnixListener, stop: Notifier, metrics: F) -> Self {
        Self { listener, stop, metrics, clients: Vec::new(), accept_after: None }
    }

    /// Serves until the stop notifier is signalled.
    pub(super) fn run(mut self) {
        enter_role(Role::Metrics);
        while self.wait() {
            let now = Instant::now();
            self.accept_after.take_if(|time| *time <= now);
            self.accept(now);
            let metrics = &self.metrics;
            self.clients.retain_mut(|client| client.advance(now, metrics));
        }
    }

    /// Waits for an event or a timeout; returns `false` if the stop notifier is signalled.
    fn wait(&self) -> bool {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        fds.extend(self.clients.iter().map(Client::poll_fd));
        if self.can_accept() {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let deadlines = self.clients.iter().map(|client| client.deadline).chain(self.accept_after);
        let timeout = deadlines.min().map(|end| end.saturating_duration_since(Instant::now()));
        let timeout = timeout.map(|time| Timespec::try_from(time).unwrap_or_default());
        match poll(&mut fds, timeout.as_ref()) {
            Ok(_) | Err(Errno::INTR) => fds[0].revents().is_empty(),
            Err(error) => {
                log::error!("metrics are no longer served: poll: {error}");
                false
            }
        }
    }

    fn can_accept(&self) -> bool {
        self.accept_after.is_none() && self.clients.len() < MAX_CLIENTS
    }

    fn accept(&mut self, now: Instant) {
        while self.can_accept() {
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => self.clients.push(Client::new(socket, now + CLIENT_TIMEOUT)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    log::warn!("cannot accept a connection on the metrics socket: {error}");
                    self.accept_after = Some(now + ACCEPT_DELAY);
                }
            }
        }
    }
}

/// A connected client.
struct Client {
    socket: OwnedFd,
    state: State,
    /// The connection is closed at this time.
    deadline: Instant,
}

enum State {
    /// Receiving the request: `len` bytes of its head have arrived.
    Receiving { head: Box<[u8; MAX_HEAD]>, len: usize },
    /// Sending the response: `sent` bytes have been sent.
    Sending { response: Vec<u8>, sent: usize },
}

impl Client {
    fn new(socket: OwnedFd, deadline: Instant) -> Self {
        Self { socket, state: State::Receiving { head: Box::new([0; MAX_HEAD]), len: 0 }, deadline }
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let flags = match self.state {
            State::Receiving { .. } => PollFlags::IN,
            State::Sending { .. } => PollFlags::OUT,
        };
        PollFd::new(&self.socket, flags)
    }

    /// Receives and sends without blocking; returns `false` if the connection is to be closed.
    fn advance(&mut self, now: Instant, metrics: &impl Fn() -> Option<String>) -> bool {
        while now < self.deadline {
            let step = match &mut self.state {
                State::Receiving { head, len } => {
                    receive(&self.socket, &mut head[*len..]).map(|n| {
                        *len += n;
                        respond(&head[..*len]).map(|response| response.bytes(metrics))
                    })
                }
                State::Sending { response, sent } => {
                    send(&self.socket, &response[*sent..], SendFlags::NOSIGNAL).map(|n| {
                        *sent += n;
                        None
                    })
                }
            };
            match step {
                Ok(Some(response)) => self.state = State::Sending { response, sent: 0 },
                Ok(None) if self.is_done() => return false,
                Ok(None) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    fn is_done(&self) -> bool {
        matches!(&self.state, State::Sending { response, sent } if *sent == response.len())
    }
}

/// Receives bytes. The end of the stream before the end of the head is an error.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    match recv(socket, buffer, RecvFlags::empty())?.1 {
        0 => Err(Errno::CONNRESET),
        n => Ok(n),
    }
}
