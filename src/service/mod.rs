//! What a service manager is told, and asks: sd_notify(3).

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

pub use watchdog::watch;

/// How long a manager that does not listen is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// The manager that has started the process, if there is one.
///
/// The `sd-notify` crate knows the messages, but opens a socket for each; this one is opened once,
/// before the process gives up the right to open any.
#[derive(Debug, Default)]
pub struct Manager(Option<UnixDatagram>);

impl Manager {
    /// The one that the environment names. One that cannot be reached is as good as none.
    pub fn from_environment() -> Self {
        let Some(address) = env::var_os("NOTIFY_SOCKET") else { return Self(None) };
        match connect(&address) {
            Ok(socket) => Self(Some(socket)),
            Err(error) => {
                log::warn!("NOTIFY_SOCKET={}: {error}; going on without", address.display());
                Self(None)
            }
        }
    }

    /// Ready to serve.
    pub fn ready(&self) {
        self.tell(&[NotifyState::Ready]);
    }

    /// What the daemon is doing, for humans.
    pub fn status(&self, text: &str) {
        self.tell(&[NotifyState::Status(text)]);
    }

    /// On the way to a clean end.
    pub fn stopping(&self) {
        self.tell(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
    }

    /// All is well for another while.
    fn alive(&self) {
        self.tell(&[NotifyState::Watchdog]);
    }

    fn tell(&self, states: &[NotifyState]) {
        let Some(socket) = &self.0 else { return };
        let mut message = String::new();
        for state in states {
            // Cannot fail.
            let _ = writeln!(message, "{state}");
        }
        if let Err(error) = socket.send(message.as_bytes()) {
            log::warn!("service manager not told {:?}: {error}", message.trim_end());
        }
    }
}

/// An `@` stands for the zero byte that a name without a file begins with.
fn connect(address: &OsStr) -> io::Result<UnixDatagram> {
    let address = match address.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        _ => SocketAddr::from_pathname(address)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.connect_addr(&address)?;
    socket.set_write_timeout(Some(PATIENCE))?;
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
    fn a_manager_is_told_by_file_or_by_name() {
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
    fn a_manager_that_has_gone_does_no_harm() {
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
