//! Where front ends come from.

use std::fmt;
use std::os::unix::net::UnixListener;

use super::StartError;
use crate::args::DaemonArgs;
use crate::socket::{ListeningSocket, PassedSocket, Relay};

/// The socket of the command line that front ends are accepted from.
pub(super) enum FrontEnds {
    /// One of the daemon's own.
    Own(ListeningSocket),
    /// One that the daemon was started with.
    Passed(UnixListener),
    /// The one front end that the daemon was started with a connection to.
    Connected(UnixListener, Relay),
}

impl FrontEnds {
    /// Takes the socket that the daemon was started with, if there is one. To be done before the
    /// process opens anything.
    pub(super) fn take(args: &DaemonArgs) -> Result<Option<Self>, StartError> {
        let Some(fd) = args.fd else { return Ok(None) };
        Ok(Some(match PassedSocket::take(fd)? {
            PassedSocket::Listening(listener) => Self::Passed(listener),
            PassedSocket::Connected(stream) => {
                let (relay, listener) = Relay::new(stream)?;
                Self::Connected(listener, relay)
            }
        }))
    }

    /// Binds the socket that the command line names.
    pub(super) fn bind(args: &DaemonArgs) -> Result<Self, StartError> {
        let path = args.socket_path.as_deref().unwrap_or("".as_ref());
        Ok(Self::Own(ListeningSocket::bind(path, args.socket_access())?))
    }

    pub(super) fn listener(&self) -> &UnixListener {
        match self {
            Self::Own(socket) => socket.listener(),
            Self::Passed(listener) | Self::Connected(listener, _) => listener,
        }
    }
}

impl fmt::Display for FrontEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(socket) => write!(f, "{}", socket.path().display()),
            Self::Passed(listener) => match listener.local_addr() {
                Ok(address) if address.as_pathname().is_some() => {
                    write!(f, "{}", address.as_pathname().unwrap_or("".as_ref()).display())
                }
                _ => f.write_str("the socket that was passed"),
            },
            Self::Connected(..) => f.write_str("the connection that was passed"),
        }
    }
}
