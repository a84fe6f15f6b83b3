//! Where front ends come from.

use std::fmt;
use std::os::unix::net::UnixListener;

use crate::cli::args::DaemonArgs;
use crate::error::Error;
use crate::socket::{ListeningSocket, PassedSocket, Relay};

/// The socket of the command line that front ends are accepted from.
pub(super) enum FrontEnds {
    /// One of the daemon's own.
    Own(ListeningSocket),
    /// One that the daemon was started with, and its name.
    Passed(UnixListener, String),
    /// The one front end that the daemon was started with a connection to.
    Connected(UnixListener, Relay),
}

impl FrontEnds {
    /// Takes the socket that the daemon was started with, if there is one. To be done before the
    /// process opens anything.
    pub(super) fn take(args: &DaemonArgs) -> Result<Option<Self>, Error> {
        let Some(fd) = args.fd else { return Ok(None) };
        Ok(Some(match PassedSocket::take(fd)? {
            PassedSocket::Listening(listener) => {
                let name = name_of(&listener);
                Self::Passed(listener, name)
            }
            PassedSocket::Connected(stream) => {
                let (relay, listener) = Relay::new(stream)?;
                Self::Connected(listener, relay)
            }
        }))
    }

    /// Binds the socket that the command line names.
    pub(super) fn bind(args: &DaemonArgs) -> Result<Self, Error> {
        let path = args.socket_path.as_deref().unwrap_or("".as_ref());
        Ok(Self::Own(ListeningSocket::bind(path, args.socket_access())?))
    }

    pub(super) fn listener(&self) -> &UnixListener {
        match self {
            Self::Own(socket) => socket.listener(),
            Self::Passed(listener, _) | Self::Connected(listener, _) => listener,
        }
    }
}

impl fmt::Display for FrontEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Own(socket) => write!(f, "{}", socket.path().display()),
            Self::Passed(_, name) => f.write_str(name),
            Self::Connected(..) => f.write_str("the connection that was passed"),
        }
    }
}

fn name_of(listener: &UnixListener) -> String {
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname());
    path.map_or("a socket without a path".into(), |path| path.display().to_string())
}
