//! Notification of the service manager: sd_notify(3).

mod watchdog;

use std::env;
use std::ffi::OsStr;
use std::fmt::Write;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::time::Duration;

use sd_notify::NotifyState;

pub use watchdog::start_watchdog;

/// Timeout for a message that the manager does not read.
const TIMEOUT: Duration = Duration::from_secs(1);

/// A connection to the service manager that started the process, if any.
///
/// The `sd-notify` crate formats the messages. It would open a socket for each, which the sandbox
/// denies, so this socket is opened once at startup.
#[derive(Debug, Default)]
pub struct Manager(Option<UnixDatagram>);

impl Manager {
    /// Connects to the socket in `NOTIFY_SOCKET`. On failure the daemon runs without a manager.
    pub fn from_environment() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Self(None) };
        match connect(&address) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                log::warn!(
                    "cannot connect to the service manager (NOTIFY_SOCKET={}): {error}",
                    address.display()
                );
                Self(None)
            }
        }
    }

    /// Reports that the daemon is ready.
    pub fn ready(&self) {
        self.send(&[NotifyState::Ready]);
    }

    /// Reports the state of the daemon as text for the operator.
    pub fn status(&self, text: &str) {
        self.send(&[NotifyState::Status(text)]);
    }

    /// Reports that the daemon is shutting down.
    pub fn stopping(&self) {
        self.send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// Resets the watchdog timer of the manager.
    fn keep_alive(&self) {
        self.send(&[NotifyState::Watchdog]);
    }

    fn send(&self, states: &[NotifyState]) {
        let Some(socket) = &self.0 else { return };
        let mut message = String::new();
        for state in states {
            // Writing to a String cannot fail.
            let _ = writeln!(message, "{state}");
        }
        if let Err(error) = socket.send(message.as_bytes()) {
            log::warn!("cannot send {:?} to the service manager: {error}", message.trim_end());
        }
    }
}

/// Connects to a pathname socket, or to an abstract one, whose name has `@` in place of the leading
/// null byte.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(TIMEOUT))?;
    Ok(socket)
}

#[cfg(test)]
mod tests {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    use super::{Manager, connect};

    fn received(socket: &UnixDatagram) -> String {
        let mut bytes = [0; 256];
        let length = socket.recv(&mut bytes).unwrap();
        String::from_utf8(bytes[..length].into()).unwrap()
    }

    #[test]
    fn manager_is_notified_over_pathname_and_abstract_sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        let name = format!("vhost-user-iommu-test-{}", std::process::id());
        let by_name = SocketAddr::from_abstract_name(&name).unwrap();
        let rows = [
            (UnixDatagram::bind(&path).unwrap(), path.clone().into_os_string()),
            (UnixDatagram::bind_addr(&by_name).unwrap(), format!("@{name}").into()),
        ];
        for (socket, address) in rows {
            let manager = Manager(Some(connect(&address).unwrap()));
            manager.ready();
            manager.status("waiting");
            manager.stopping();
            assert_eq!(received(&socket), "READY=1\n");
            assert_eq!(received(&socket), "STATUS=waiting\n");
            assert_eq!(received(&socket), "STOPPING=1\nSTATUS=stopping\n");
        }
    }

    #[test]
    fn missing_manager_is_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("notify");
        assert!(connect(path.as_os_str()).is_err());
        let socket = UnixDatagram::bind(&path).unwrap();
        let manager = Manager(Some(connect(path.as_os_str()).unwrap()));
        drop(socket);
        manager.ready();
        Manager::default().ready();
    }
}
