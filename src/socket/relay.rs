//! Makes a connection that exists already one that can be accepted.
//!
//! The `vhost-user-backend` crate (0.24) serves what it accepts or connects to itself and takes
//! no connected socket. Messages to and from such a socket therefore go through one that it can
//! accept. Rings and their notifications do not pass here.

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

/// The bytes of a message's header: request, flags and size of what follows, of 32 bits each
/// (QEMU, "Vhost-user Protocol", header).
const HEADER: usize = 12;
/// The most descriptors with a message: one for each region of memory, and more than the `vhost`
/// crate takes.
const DESCRIPTORS: usize = 64;

/// Passes vhost-user messages on, both ways.
#[derive(Debug)]
pub struct Relay {
    outer: UnixStream,
    inner: UnixStream,
}

impl Relay {
    /// A relay for `outer`, and the listener that its other side waits on to be accepted. Nobody
    /// else can connect there.
    ///
    /// # Errors
    /// When there is no directory for temporary files, or no descriptor left.
    pub fn new(outer: UnixStream) -> io::Result<(Self, UnixListener)> {
        outer.set_nonblocking(false)?;
        // Only this user can enter it, and it is gone when this returns.
        let directory = tempfile::tempdir()?;
        let path = directory.path().join("front-end");
        let listener = UnixListener::bind(&path)?;
        let inner = UnixStream::connect(&path)?;
        Ok((Self { outer, inner }, listener))
    }

    /// Passes messages on until one of the sides ends; then the other ends, too.
    ///
    /// # Errors
    /// When there can be no more threads.
    pub fn start(self) -> io::Result<()> {
        let Self { outer, inner } = self;
        let (outer_too, inner_too) = (outer.try_clone()?, inner.try_clone()?);
        pass_on("relay-in", outer, inner)?;
        pass_on("relay-out", inner_too, outer_too)
    }
}

fn pass_on(name: &str, from: UnixStream, to: UnixStream) -> io::Result<()> {
    let run = move || {
        enter_role(Role::Relay);
        if let Err(error) = pass_messages(&from, &to) {
            log::debug!("relay: {error}");
        }
        for side in [from, to] {
            // Fails when that side has ended already.
            let _ = side.shutdown(Shutdown::Both);
        }
    };
    thread::Builder::new().name(name.into()).spawn(run).map(drop)
}

/// One message after the other: read in one piece, two could become one, and the descriptors of
/// the second would be taken for those of the first.
fn pass_messages(mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
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
        pass_body(from, to, u32::from_ne_bytes([a, b, c, d]) as usize)?;
    }
}

/// `size` bytes, in pieces: what size is too large is for the back end to say.
fn pass_body(mut from: &UnixStream, mut to: &UnixStream, mut size: usize) -> io::Result<()> {
    let mut buffer = [0; 4096];
    while size > 0 {
        let piece = &mut buffer[..size.min(4096)];
        from.read_exact(piece)?;
        to.write_all(piece)?;
        size -= piece.len();
    }
    Ok(())
}

/// Some bytes, and the descriptors that came with them.
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

/// Sends some of `bytes`, with `descriptors`; returns how many.
fn send(to: &UnixStream, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(DESCRIPTORS))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() {
        // As many as there was space for when they were received.
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

    /// The two ends of a relay that runs.
    fn relay() -> (UnixStream, UnixStream) {
        let (front_end, outer) = UnixStream::pair().unwrap();
        let (relay, listener) = Relay::new(outer).unwrap();
        relay.start().unwrap();
        (front_end, listener.accept().unwrap().0)
    }

    #[test]
    fn descriptors_stay_with_their_message() {
        let (mut front_end, mut back_end) = relay();
        // All of it before anything is read: the socket holds the messages one behind the other.
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
    fn the_end_of_one_side_is_that_of_the_other() {
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
