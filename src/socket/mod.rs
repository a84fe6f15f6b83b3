//! Unix sockets that the daemon binds, and those that it inherits.

mod inherited;
mod relay;

use std::fs::{self, Permissions};
use std::io::{self, ErrorKind};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, Mode, OFlags, fchmod, flock, open};
use rustix::net::{
    AddressFamily, SocketAddrUnix, SocketFlags, SocketType, bind, listen, socket_with,
};

pub use inherited::{InheritedSocket, InheritedSocketError};
pub use relay::Relay;

/// Maximum number of connections that wait to be accepted, as in the standard library.
const BACKLOG: i32 = 128;

/// An error on a socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process listens on the path.
    #[error("cannot bind socket {0}: in use by another process; stop it or choose another path")]
    InUse(PathBuf),
    /// The path exists and is not a socket.
    #[error(
        "cannot bind socket {0}: file exists and is not a socket; remove it or choose another path"
    )]
    NotASocket(PathBuf),
    /// The inherited descriptor is not a usable socket.
    #[error("--fd {0}: {1}; pass a Unix stream socket that listens or is connected")]
    Inherited(i32, #[source] InheritedSocketError),
    /// A system call failed.
    #[error("cannot bind socket {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// The owner group and permissions of a socket file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The group ID; `None`: that of the process.
    pub group: Option<u32>,
    /// The permissions; `None`: those that the umask of the process allows.
    pub mode: Option<u32>,
}

/// A listening socket. Its file is removed when this is dropped.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ListeningSocket {
    /// Binds `path` and listens. Replaces a stale socket file, such as that of a killed daemon.
    ///
    /// # Errors
    /// When the path is in use or cannot be bound.
    pub fn bind(path: &Path, access: SocketAccess) -> Result<Self, SocketError> {
        let io = |error| SocketError::Io(path.into(), error);
        // Of several daemons that start concurrently on one path, one binds it.
        let _lock = lock_directory_of(path).map_err(io)?;
        remove_stale(path)?;
        let listener = access.bind(path).map_err(io)?;
        let socket = Self { listener, path: path.into() };
        access.apply(path).map_err(io)?;
        Ok(socket)
    }

    /// Returns the path of the socket file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the socket.
    pub fn listener(&self) -> &UnixListener {
        &self.listener
    }
}

impl Drop for ListeningSocket {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(&self.path) {
            log::debug!("{}: {error}", self.path.display());
        }
    }
}

impl SocketAccess {
    /// Binds `path`. If a group or permissions are given, no client can connect before
    /// [`apply`](Self::apply) sets them: the file is created with the permissions of the socket.
    fn bind(self, path: &Path) -> io::Result<UnixListener> {
        if self == Self::default() {
            return UnixListener::bind(path);
        }
        let flags = SocketFlags::CLOEXEC;
        let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
        fchmod(&socket, Mode::empty())?;
        bind(&socket, &SocketAddrUnix::new(path)?)?;
        listen(&socket, BACKLOG)?;
        Ok(UnixListener::from(socket))
    }

    fn apply(self, path: &Path) -> io::Result<()> {
        if self == Self::default() {
            return Ok(());
        }
        std::os::unix::fs::chown(path, None, self.group)?;
        fs::set_permissions(path, Permissions::from_mode(self.mode.unwrap_or(0o660)))
    }
}

/// Returns the directory of a socket file.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// Locks the directory of `path` until the descriptor is dropped.
fn lock_directory_of(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(directory_of(path), flags, Mode::empty())?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// Removes a socket file that no process listens on.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let io = |error| SocketError::Io(path.into(), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(io(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.into()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(io)
        }
        Err(error) => Err(io(error)),
        Ok(_) => Err(SocketError::InUse(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::{ListeningSocket, Path, SocketAccess, SocketError, UnixListener, fs};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn bind_replaces_a_stale_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        bind(&path).unwrap();
    }

    fn bind(path: &Path) -> Result<ListeningSocket, SocketError> {
        ListeningSocket::bind(path, SocketAccess::default())
    }

    #[test]
    fn one_of_many_concurrent_binds_succeeds() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        for _ in 0..50 {
            drop(UnixListener::bind(&path));
            let start = std::sync::Barrier::new(8);
            let results = std::thread::scope(|scope| {
                let threads = [(); 8].map(|()| {
                    scope.spawn(|| {
                        start.wait();
                        bind(&path)
                    })
                });
                threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
            });
            let in_use = results.iter().filter(|one| matches!(one, Err(SocketError::InUse(_))));
            assert_eq!(in_use.count(), 7, "{results:?}");
            assert_eq!(results.iter().filter(|one| one.is_ok()).count(), 1, "{results:?}");
        }
    }

    #[test]
    fn socket_file_has_the_given_permissions() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        let access = SocketAccess { group: Some(rustix::process::getgid().as_raw()), mode: None };
        let socket = ListeningSocket::bind(&path, access).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        drop(socket);
        let access = SocketAccess { group: None, mode: Some(0o606) };
        let _socket = ListeningSocket::bind(&path, access).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o606);
    }

    #[test]
    fn bind_keeps_a_file_that_is_not_a_socket() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::File::create(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert!(path.exists());
        assert!(matches!(bind(Path::new("/nonexistent/x")), Err(SocketError::Io(..))));
    }
}
