//! The thread that serves the figures.
//!
//! It never waits for one client alone: a few are served side by side, each for a limited time,
//! and others wait to be accepted. All it asks of the system is poll, accept, recv, send and
//! close.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvFlags, SendFlags, SocketFlags, accept_with, recv, send};

use super::http::{MAX_HEAD, answer_to};
use crate::notifier::Notifier;
use crate::sandbox::{Role, enter_role};

/// Clients served side by side.
const MAX_CLIENTS: usize = 8;
/// How long one can take to ask, and to read.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long to leave the listener alone when it gives no connection.
const REST: Duration = Duration::from_secs(1);

/// The server, before and while it runs.
pub(super) struct Server<F> {
    listener: UnixListener,
    stop: Notifier,
    /// Makes the figures.
    figures: F,
    clients: Vec<Client>,
    /// No connection is accepted before.
    rests_until: Option<Instant>,
}

impl<F: Fn() -> Option<String>> Server<F> {
    /// A server on a listener that does not block.
    pub(super) fn new(listener: UnixListener, stop: Notifier, figures: F) -> Self {
        Self { listener, stop, figures, clients: Vec::new(), rests_until: None }
    }

    /// Serves until the bell is rung.
    pub(super) fn run(mut self) {
        enter_role(Role::Metrics);
        while self.wait() {
            let now = Instant::now();
            self.rests_until.take_if(|until| *until <= now);
            self.accept(now);
            let figures = &self.figures;
            self.clients.retain_mut(|client| client.go_on(now, figures));
        }
    }

    /// Waits until there is something to do; `false`: the bell was rung.
    fn wait(&self) -> bool {
        let mut fds = vec![PollFd::new(&self.stop, PollFlags::IN)];
        fds.extend(self.clients.iter().map(Client::poll_fd));
        if self.has_room() {
            fds.push(PollFd::new(&self.listener, PollFlags::IN));
        }
        let ends = self.clients.iter().map(|client| client.until).chain(self.rests_until);
        let time = ends.min().map(|end| end.saturating_duration_since(Instant::now()));
        let time = time.map(|time| Timespec::try_from(time).unwrap_or_default());
        match poll(&mut fds, time.as_ref()) {
            Ok(_) | Err(Errno::INTR) => fds[0].revents().is_empty(),
            Err(error) => {
                log::error!("figures are served no more: poll: {error}");
                false
            }
        }
    }

    fn has_room(&self) -> bool {
        self.rests_until.is_none() && self.clients.len() < MAX_CLIENTS
    }

    fn accept(&mut self, now: Instant) {
        while self.has_room() {
            match accept_with(&self.listener, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                Ok(socket) => self.clients.push(Client::new(socket, now + PATIENCE)),
                Err(Errno::AGAIN) => return,
                Err(Errno::INTR | Errno::CONNABORTED) => {}
                Err(error) => {
                    log::warn!("figures: no connection can be accepted for now: {error}");
                    self.rests_until = Some(now + REST);
                }
            }
        }
    }
}

/// Somebody who asks for figures.
struct Client {
    socket: OwnedFd,
    state: State,
    /// It is dropped then.
    until: Instant,
}

enum State {
    /// So many bytes of the head are there.
    Asking { head: Box<[u8; MAX_HEAD]>, len: usize },
    /// So many bytes of the answer have been sent.
    Answering { answer: Vec<u8>, sent: usize },
}

impl Client {
    fn new(socket: OwnedFd, until: Instant) -> Self {
        Self { socket, state: State::Asking { head: Box::new([0; MAX_HEAD]), len: 0 }, until }
    }

    fn poll_fd(&self) -> PollFd<'_> {
        let flags = match self.state {
            State::Asking { .. } => PollFlags::IN,
            State::Answering { .. } => PollFlags::OUT,
        };
        PollFd::new(&self.socket, flags)
    }

    /// Goes as far as it can without waiting; `false`: there is no more to do.
    fn go_on(&mut self, now: Instant, figures: &impl Fn() -> Option<String>) -> bool {
        while now < self.until {
            let step = match &mut self.state {
                State::Asking { head, len } => receive(&self.socket, &mut head[*len..]).map(|n| {
                    *len += n;
                    answer_to(&head[..*len]).map(|answer| answer.bytes(figures))
                }),
                State::Answering { answer, sent } => {
                    send(&self.socket, &answer[*sent..], SendFlags::NOSIGNAL).map(|n| {
                        *sent += n;
                        None
                    })
                }
            };
            match step {
                Ok(Some(answer)) => self.state = State::Answering { answer, sent: 0 },
                Ok(None) if self.is_done() => return false,
                Ok(None) | Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return true,
                Err(_) => return false,
            }
        }
        false
    }

    fn is_done(&self) -> bool {
        matches!(&self.state, State::Answering { answer, sent } if *sent == answer.len())
    }
}

/// The end of the stream before that of the head is an error like another.
fn receive(socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
    match recv(socket, buffer, RecvFlags::empty())?.1 {
        0 => Err(Errno::CONNRESET),
        n => Ok(n),
    }
}
