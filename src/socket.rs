//! Unix sockets that the daemon listens on.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::FileTypeExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// Why a socket cannot be listened on.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// Another process accepts connections there.
    #[error("cannot listen on {0}: in use by another process; stop it or choose another path")]
    InUse(PathBuf),
    /// Something else has the name.
    #[error("cannot listen on {0}: exists and is no socket; remove it or choose another path")]
    NotASocket(PathBuf),
    /// The system refuses.
    #[error("cannot listen on {0}: {1}")]
    Io(PathBuf, #[source] io::Error),
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
    pub fn bind(path: &Path) -> Result<Self, SocketError> {
        remove_stale(path)?;
        let listener =
            UnixListener::bind(path).map_err(|error| SocketError::Io(path.into(), error))?;
        Ok(Self { listener, path: path.into() })
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
    use super::*;

    #[test]
    fn stale_socket_is_replaced() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("sim.sock");
        drop(UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        ListeningSocket::bind(&path).unwrap();
    }

    #[test]
    fn file_that_is_no_socket_is_kept() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("precious");
        fs::File::create(&path).unwrap();
        assert!(matches!(ListeningSocket::bind(&path), Err(SocketError::NotASocket(_))));
        assert!(path.exists());
        assert!(matches!(
            ListeningSocket::bind(Path::new("/nonexistent/x")),
            Err(SocketError::Io(..))
        ));
    }
}
