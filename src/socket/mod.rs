//! Unix sockets that the daemon listens on, and those that it is given.

mod passed;
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

pub use passed::PassedSocket;
pub use relay::Relay;

/// Connections that wait to be accepted, as the standard library has it.
const BACKLOG: i32 = 128;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process accepts connections there.
    #[error("cannot listen on {0}: in use by another process; stop it or choose another path")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("cannot listen on {0}: exists and is no socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// A descriptor that was to be a socket is none that can be served.
    #[error("--fd {0}: {1}; pass a unix stream socket that listens or is connected")]
    Descriptor(i32, String),
    /// The system refuses.
    #[error("cannot listen on {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
}

/// Who may connect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SocketAccess {
    /// The group of the socket's file; `None`: the process's.
    pub group: Option<u32>,
    /// Its permissions; `None`: all that the process's umask leaves.
    pub mode: Option<u32>,
}

/// A listening socket. Its file goes away with it.
#[derive(Debug)]
pub struct ListeningSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ListeningSocket {
    /// Listens on `path`. A socket file that nobody listens on, left by a daemon that was
    /// killed, is replaced.
    ///
    /// # Errors
    /// When the path is taken or cannot be listened on.
    pub fn bind(path: &Path, access: SocketAccess) -> Result<Self, SocketError> {
        let failed = |error| SocketError::Io(path.into(), error);
        // Of daemons that start at once on one path, one finds the other's socket.
        let _turn = lock_directory_of(path).map_err(failed)?;
        remove_stale(path)?;
        let listener = access.bind(path).map_err(failed)?;
        let socket = Self { listener, path: path.into() };
        access.apply(path).map_err(failed)?;
        Ok(socket)
    }

    /// Where its file is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The socket itself.
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
    /// Nobody can connect before [`apply`](Self::apply) has said who may, if somebody is named:
    /// the file has the permissions that the socket has when it is bound.
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

/// Where the file of a socket is.
pub fn directory_of(path: &Path) -> &Path {
    match path.parent() {
        Some(directory) if !directory.as_os_str().is_empty() => directory,
        _ => Path::new("."),
    }
}

/// Held until dropped.
fn lock_directory_of(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let directory = open(directory_of(path), flags, Mode::empty())?;
    flock(&directory, FlockOperation::LockExclusive)?;
    Ok(directory)
}

/// Removes a socket file that nobody listens on.
fn remove_stale(path: &Path) -> Result<(), SocketError> {
    let failed = |error| SocketError::Io(path.into(), error);
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(failed(error)),
        Ok(found) if !found.file_type().is_socket() => {
            return Err(SocketError::NotASocket(path.into()));
        }
        Ok(_) => {}
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            fs::remove_file(path).map_err(failed)
        }
        Err(error) => Err(failed(error)),
        Ok(_) => Err(SocketError::InUse(path.into())),
    }
}

#[cfg(test)]
mod tests {
    use super::{ListeningSocket, Path, SocketAccess, SocketError, UnixListener, fs};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn stale_socket_is_replaced() {
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
    fn of_many_that_start_at_once_one_gets_the_path() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        for _ in 0..50 {
            drop(UnixListener::bind(&path));
            let start = std::sync::Barrier::new(8);
            let got = std::thread::scope(|scope| {
                let one = || {
                    start.wait();
                    bind(&path)
                };
                let all: Vec<_> = (0..8).map(|_| scope.spawn(one)).collect();
                all.into_iter().map(|one| one.join().unwrap()).collect::<Vec<_>>()
            });
            let taken = |one: &Result<_, SocketError>| matches!(one, Err(SocketError::InUse(_)));
            assert_eq!(got.iter().filter(|one| one.is_ok()).count(), 1, "{got:?}");
            assert_eq!(got.iter().filter(|one| taken(one)).count(), 7, "{got:?}");
        }
    }

    #[test]
    fn who_may_connect_is_who_was_named() {
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
    fn file_that_is_no_socket_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::File::create(&path).unwrap();
        assert!(matches!(bind(&path), Err(SocketError::NotASocket(_))));
        assert!(path.exists());
        assert!(matches!(bind(Path::new("/nonexistent/x")), Err(SocketError::Io(..))));
    }
}
