//! Forwards vhost-user messages between an inherited connection and one that can be accepted.
//!
//! The `vhost-user-backend` crate (0.24) serves connections that it accepts or opens itself, but
//! not a connected socket. The messages of such a socket are therefore forwarded over a second
//! connection, which it accepts. Virtqueues and their eventfds are not affected.

use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::mem::MaybeUninit;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;

use rustix::io::retry_on_intr;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, recvmsg, sendmsg,
};

use crate::sandbox::{Role, enter_role};

/// Size of a message header in bytes: request, flags and size of the payload, of 32 bits each
/// (QEMU, "Vhost-user Protocol", header).
const HEADER: usize = 12;
/// Maximum number of descriptors in a message: one for each memory region, and more than the
/// `vhost` crate accepts.
const DESCRIPTORS: usize = 64;

/// Forwards vhost-user messages in both directions.
#[derive(Debug)]
pub struct Relay {
    outer: UnixStream,
    inner: UnixStream,
}

impl Relay {
    /// Creates a relay for `outer`, and the listener from which its inner connection can be
    /// accepted. No other process can connect to the listener.
    ///
    /// # Errors
    /// When there is no directory for temporary files, or no file descriptor left.
    pub fn new(outer: UnixStream) -> io::Result<(Self, UnixListener)> {
        outer.set_nonblocking(false)?;
        // Only the user of the process can access it, and it is removed when this returns.
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("front-end");
        let listener = UnixListener::bind(&path)?;
        let inner = UnixStream::connect(&path)?;
        Ok((Self { outer, inner }, listener))
    }

    /// Starts forwarding, until one side disconnects; then the other is disconnected, too.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(self) -> io::Result<()> {
        let Self { outer, inner } = self;
        let (outer_too, inner_too) = (outer.try_clone()?, inner.try_clone()?);
        spawn_forwarder("relay-in", outer, inner)?;
        spawn_forwarder("relay-out", inner_too, outer_too)
    }
}

fn spawn_forwarder(name: &str, from: UnixStream, to: UnixStream) -> io::Result<()> {
    thread::Builder::new().name(name.into()).spawn(move || {
        enter_role(Role::Relay);
        if let Err(error) = forward_messages(&from, &to) {
            log::debug!("relay: {error}");
        }
        for side in [from, to] {
            // Fails if that side is disconnected already.
            let _ = side.shutdown(Shutdown::Both);
        }
    })?;
    Ok(())
}

/// Forwards messages separately: a read across two messages would attach the descriptors of the
/// second to the first.
fn forward_messages(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
    let mut header = [0; HEADER];
    loop {
        let (length, descriptors) = receive(from, &mut header)?;
        if length == 0 {
            return Ok(());
        }
        from.read_exact(&mut header[length..])?;
        let sent = send(to, &header, &descriptors)?;
        to.write_all(&header[sent..])?;
        let [.., a, b, c, d] = header;
        forward_payload(from, to, u32::from_ne_bytes([a, b, c, d]) as usize)?;
    }
}

/// Forwards `size` bytes in pieces. The back end checks the size.
fn forward_payload(mut from: &UnixStream, mut to: &UnixStream, mut size: usize) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while size > 0 {
        let chunk = &mut buffer[..size.min(4096)];
        from.read_exact(chunk)?;
        to.write_all(chunk)?;
        size -= chunk.len();
    }
    Ok(())
}

/// Receives some bytes and the descriptors attached to them. Returns the number of bytes, 0 at the
/// end of the stream.
fn receive(from: &UnixStream, bytes: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let mut buffers = [IoSliceMut::new(bytes)];
    let flags = RecvFlags::CMSG_CLOEXEC;
    let received = retry_on_intr(|| recvmsg(from, &mut buffers, &mut ancillary, flags))?;
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok((received.bytes, descriptors.flatten().collect()))
}

/// Sends some of `bytes` with `descriptors` attached. Returns the number of bytes.
fn send(to: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() {
        // There is space for as many as were received.
        ancillary.push(SendAncillaryMessage::ScmRights(&borrowed));
    }
    let buffers = [IoSlice::new(bytes)];
    Ok(retry_on_intr(|| sendmsg(to, &buffers, &mut ancillary, SendFlags::NOSIGNAL))?)
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::os::fd::OwnedFd;
    use std::os::unix::net::UnixStream;

    use super::{HEADER, Relay, receive, send};

    fn header(request: u32, size: u32) -> Vec<u8> {
        [request, 1, size].iter().flat_map(|word| word.to_ne_bytes()).collect()
    }

    /// Starts a relay and returns its two ends.
    fn relay() -> (UnixStream, UnixStream) {
        let (front_end, outer) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(outer).unwrap();
        relay.start().unwrap();
        (front_end, listener.accept().unwrap().0)
    }

    #[test]
    fn descriptors_stay_attached_to_their_message() {
        let (mut front_end, mut back_end) = relay();
        // All messages are in the socket before the relay reads any.
        let body = [7; 5000];
        front_end.write_all(&header(1, 5000)).unwrap();
        front_end.write_all(&body).unwrap();
        let (marker, marked) = UnixStream::pair().unwrap();
        let descriptors: Vec<OwnedFd> = vec![marked.into()];
        assert_eq!(send(&front_end, &header(2, 0), &descriptors).unwrap(), HEADER);
        drop(descriptors);
        front_end.write_all(&header(3, 0)).unwrap();

        let mut seen = [0; HEADER];
        assert_eq!(receive(&back_end, &mut seen).unwrap().1.len(), 0);
        let mut copy = [0; 5000];
        back_end.read_exact(&mut copy).unwrap();
        assert_eq!((&seen[..], copy), (&header(1, 5000)[..], body));
        let (length, descriptors) = receive(&back_end, &mut seen).unwrap();
        assert_eq!((length, &seen[..], descriptors.len()), (HEADER, &header(2, 0)[..], 1));
        (&marker).write_all(b"x").unwrap();
        let mut byte = [0];
        UnixStream::from(descriptors.into_iter().next().unwrap()).read_exact(&mut byte).unwrap();
        assert_eq!(receive(&back_end, &mut seen).unwrap().1.len(), 0);
        assert_eq!(&seen[..], &header(3, 0)[..]);

        back_end.write_all(&header(4, 0)).unwrap();
        front_end.read_exact(&mut seen).unwrap();
        assert_eq!(&seen[..], &header(4, 0)[..]);
    }

    #[test]
    fn disconnect_is_forwarded() {
        let (front_end, mut back_end) = relay();
        drop(front_end);
        assert_eq!(back_end.read(&mut [0; 16]).unwrap(), 0);
        let (mut front_end, back_end) = relay();
        drop(back_end);
        assert_eq!(front_end.read(&mut [0; 16]).unwrap(), 0);
        // In the middle of a message.
        let (mut front_end, mut back_end) = relay();
        front_end.write_all(&header(1, 100)).unwrap();
        drop(front_end);
        let mut rest = Vec::new();
        back_end.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, header(1, 100));
    }
}
