//! Sockets that the process inherits from its parent (`--fd`).

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

/// A socket that the process inherited.
#[derive(Debug)]
pub enum InheritedSocket {
    /// A listening socket.
    Listening(UnixListener),
    /// A connected socket.
    Connected(UnixStream),
}

/// A descriptor that is not a usable socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum InheritedSocketError {
    /// The descriptor is not open.
    #[error("not open")]
    NotOpen,
    /// The descriptor is not that of a socket.
    #[error("not a socket")]
    NotASocket,
    /// The socket is of another domain or type.
    #[error("not a Unix stream socket")]
    NotAUnixStream,
    /// The socket neither listens nor is connected.
    #[error("neither listening nor connected")]
    Unconnected,
}

impl InheritedSocket {
    /// Takes ownership of descriptor `fd`. Call it once, before the process opens any descriptor.
    ///
    /// # Errors
    /// When the descriptor is not that of a Unix stream socket which listens or is connected.
    pub fn take(fd: RawFd) -> Result<Self, InheritedSocketError> {
        let socket = take_descriptor(fd).ok_or(InheritedSocketError::NotOpen)?;
        let domain = socket_domain(&socket).map_err(|_| InheritedSocketError::NotASocket)?;
        let is_stream = matches!(socket_type(&socket), Ok(SocketType::STREAM));
        if domain != AddressFamily::UNIX || !is_stream {
            return Err(InheritedSocketError::NotAUnixStream);
        }
        if matches!(socket_acceptconn(&socket), Ok(true)) {
            return Ok(Self::Listening(socket.into()));
        }
        let stream = UnixStream::from(socket);
        match stream.peer_addr() {
            Ok(_) => Ok(Self::Connected(stream)),
            Err(_) => Err(InheritedSocketError::Unconnected),
        }
    }
}

/// Takes ownership of descriptor `fd` if it is open, and sets its close-on-exec flag.
fn take_descriptor(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: the only use is a call that fails if the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_getfd(borrowed).ok()?;
    // SAFETY: the descriptor is open. The process inherited it and has opened none since, so
    // nothing else owns it.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC).ok()?;
    Some(owned)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{IntoRawFd, OwnedFd};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::{InheritedSocket, InheritedSocketError};

    fn take(descriptor: impl Into<OwnedFd>) -> Result<InheritedSocket, InheritedSocketError> {
        InheritedSocket::take(descriptor.into().into_raw_fd())
    }

    #[test]
    fn take_distinguishes_listening_and_connected_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        assert!(matches!(take(listener), Ok(InheritedSocket::Listening(_))));
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert!(matches!(take(stream), Ok(InheritedSocket::Connected(_))));
    }

    #[test]
    fn take_rejects_other_descriptors() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(take(file).unwrap_err(), InheritedSocketError::NotASocket);
        let datagram = UnixDatagram::unbound().unwrap();
        assert_eq!(take(datagram).unwrap_err(), InheritedSocketError::NotAUnixStream);
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(take(tcp).unwrap_err(), InheritedSocketError::NotAUnixStream);
        let error = InheritedSocket::take(1_000_000).unwrap_err();
        assert_eq!(error, InheritedSocketError::NotOpen);
    }
}
