//! The vhost-user socket.

use std::fmt;
use std::os::unix::net::UnixListener;

use crate::cli::args::DaemonArgs;
use crate::error::Error;
use crate::socket::{InheritedSocket, ListeningSocket, Relay, SocketError};

/// The socket that front ends connect to.
pub(super) enum FrontEnds {
    /// A socket that the daemon bound (`--socket-path`).
    Bound(ListeningSocket),
    /// An inherited listening socket (`--fd`), and its name.
    Inherited(UnixListener, String),
    /// An inherited connection to the only front end (`--fd`).
    Connected(UnixListener, Relay),
}

impl FrontEnds {
    /// Takes ownership of the inherited socket, if any. Call it before the process opens any
    /// descriptor.
    pub(super) fn inherit(args: &DaemonArgs) -> Result<Option<Self>, Error> {
        let Some(fd) = args.inherited_fd() else { return Ok(None) };
        let socket =
            InheritedSocket::take(fd).map_err(|error| SocketError::Inherited(fd, error))?;
        Ok(Some(match socket {
            InheritedSocket::Listening(listener) => {
                let name = name_of(&listener);
                Self::Inherited(listener, name)
            }
            InheritedSocket::Connected(stream) => {
                let (relay, listener) = Relay::new(stream)?;
                Self::Connected(listener, relay)
            }
        }))
    }

    /// Binds `--socket-path`.
    pub(super) fn bind(args: &DaemonArgs) -> Result<Self, Error> {
        let path = args.socket_path.as_deref().unwrap_or("".as_ref());
        Ok(Self::Bound(ListeningSocket::bind(path, args.socket_access())?))
    }

    /// Returns the socket from which front ends are accepted.
    pub(super) fn listener(&self) -> &UnixListener {
        match self {
            Self::Bound(socket) => socket.listener(),
            Self::Inherited(listener, _) | Self::Connected(listener, _) => listener,
        }
    }
}

impl fmt::Display for FrontEnds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bound(socket) => write!(f, "{}", socket.path().display()),
            Self::Inherited(_, name) => f.write_str(name),
            Self::Connected(..) => f.write_str("the inherited connection"),
        }
    }
}

fn name_of(listener: &UnixListener) -> String {
    let address = listener.local_addr().ok();
    let path = address.as_ref().and_then(|address| address.as_pathname());
    path.map_or("an unnamed socket".into(), |path| path.display().to_string())
}
