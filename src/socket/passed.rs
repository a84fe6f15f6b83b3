//! Sockets that whoever starts the daemon has opened.

use std::os::fd::{BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::io::{FdFlags, fcntl_getfd, fcntl_setfd};
use rustix::net::sockopt::{socket_acceptconn, socket_domain, socket_type};
use rustix::net::{AddressFamily, SocketType};

use super::SocketError;

/// A socket by its descriptor.
#[derive(Debug)]
pub enum PassedSocket {
    /// Peers can be accepted from it.
    Listening(UnixListener),
    /// It is connected to its only peer.
    Connected(UnixStream),
}

impl PassedSocket {
    /// Takes descriptor `fd`, once, before the process has opened any itself.
    ///
    /// # Errors
    /// When there is no unix stream socket under that number.
    pub fn take(fd: RawFd) -> Result<Self, SocketError> {
        let refused = |what: &str| SocketError::Descriptor(fd, what.into());
        let socket = own(fd).ok_or_else(|| refused("it is not open"))?;
        let Ok(domain) = socket_domain(&socket) else { return Err(refused("it is no socket")) };
        let is_stream = matches!(socket_type(&socket), Ok(SocketType::STREAM));
        if domain != AddressFamily::UNIX || !is_stream {
            return Err(refused("it is a socket, but no unix stream socket"));
        }
        if matches!(socket_acceptconn(&socket), Ok(true)) {
            return Ok(Self::Listening(socket.into()));
        }
        let stream = UnixStream::from(socket);
        match stream.peer_addr() {
            Ok(_) => Ok(Self::Connected(stream)),
            Err(_) => Err(refused("the socket neither listens nor is connected")),
        }
    }
}

/// Descriptor `fd`, if it is open; not for programs that the process starts.
fn own(fd: RawFd) -> Option<OwnedFd> {
    // SAFETY: used for a call that fails where the descriptor is not open.
    let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
    fcntl_getfd(borrowed).ok()?;
    // SAFETY: it is open, and was when the process started, which has opened none since: nothing
    // else in it owns the descriptor.
    let owned = unsafe { OwnedFd::from_raw_fd(fd) };
    fcntl_setfd(&owned, FdFlags::CLOEXEC).ok()?;
    Some(owned)
}

#[cfg(test)]
mod tests {
    use std::os::fd::{IntoRawFd, OwnedFd};
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::PassedSocket;

    fn take(descriptor: impl Into<OwnedFd>) -> Result<PassedSocket, String> {
        PassedSocket::take(descriptor.into().into_raw_fd()).map_err(|error| error.to_string())
    }

    #[test]
    fn listening_and_connected_are_told_apart() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("socket")).unwrap();
        assert!(matches!(take(listener), Ok(PassedSocket::Listening(_))));
        let (stream, _peer) = UnixStream::pair().unwrap();
        assert!(matches!(take(stream), Ok(PassedSocket::Connected(_))));
    }

    #[test]
    fn what_else_it_is_is_said() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert!(take(file).unwrap_err().contains("no socket"));
        assert!(take(UnixDatagram::unbound().unwrap()).unwrap_err().contains("no unix stream"));
        let tcp = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert!(take(tcp).unwrap_err().contains("no unix stream"));
        let error = PassedSocket::take(1_000_000).unwrap_err().to_string();
        assert!(error.contains("1000000") && error.contains("not open"), "{error}");
    }
}
