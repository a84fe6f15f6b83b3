//! The figures of the daemon, as a scraper gets them.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use crate::daemon::Daemon;
use crate::wait;

/// What makes the daemon serve them.
pub const METRICS: &str = "--metrics-socket DIR/metrics";

const PREFIX: &str = "vhost_user_iommu_";

/// An answer over HTTP.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: String,
}

pub fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.file("metrics")).unwrap();
    stream.set_read_timeout(Some(wait::patience())).unwrap();
    stream
}

/// Sends bytes as they are. The daemon may close while they are sent.
pub fn send(stream: &mut UnixStream, bytes: &[u8]) {
    match stream.write_all(bytes) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => panic!("{error}"),
        _ => {}
    }
}

/// Reads to the end of the connection.
pub fn receive(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return bytes,
            Ok(len) => bytes.extend(&buffer[..len]),
            // What was sent and not read by the daemon.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

pub fn ask(daemon: &Daemon, bytes: &[u8]) -> Answer {
    let mut stream = connect(daemon);
    send(&mut stream, bytes);
    parse(&receive(&mut stream))
}

/// One answer and nothing behind it.
pub fn parse(bytes: &[u8]) -> Answer {
    let text = std::str::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {head}"));
    Answer { status, head: head.into(), body: body.into() }
}

/// The text of all figures.
pub fn text(daemon: &Daemon) -> String {
    let answer = ask(daemon, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(answer.status, 200, "{answer:?}");
    let length = format!("Content-Length: {}", answer.body.len());
    assert!(answer.head.contains(&length), "{}", answer.head);
    answer.body
}

/// Figures by their names, with labels, without the prefix that all have.
pub struct Figures(BTreeMap<String, f64>);

/// All figures.
pub fn figures(daemon: &Daemon) -> Figures {
    let text = text(daemon);
    let samples = text.lines().filter(|line| !line.starts_with('#'));
    let samples = samples.map(|line| {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let name = name.strip_prefix(PREFIX).unwrap_or_else(|| panic!("another name: {line}"));
        (name.to_owned(), value.parse().unwrap())
    });
    let count = samples.clone().count();
    let figures = Figures(samples.collect());
    assert_eq!(figures.0.len(), count, "a figure comes twice");
    figures
}

impl Figures {
    #[track_caller]
    pub fn get(&self, name: &str) -> u64 {
        let value = self.0.get(name).unwrap_or_else(|| panic!("no figure {name}"));
        *value as u64
    }

    /// Of one label that is not fixed: each value of it with its figure, but for zeros.
    pub fn by_label(&self, before: &str, after: &str) -> BTreeMap<String, u64> {
        let some = self.0.iter().filter(|(_, value)| **value > 0.0);
        let label = |name: &str| Some(name.strip_prefix(before)?.strip_suffix(after)?.to_owned());
        some.filter_map(|(name, value)| Some((label(name)?, *value as u64))).collect()
    }

    /// Requests of a type, by status.
    pub fn requests(&self, kind: &str) -> BTreeMap<String, u64> {
        self.by_label(&format!("requests_total{{type=\"{kind}\",status=\""), "\"}")
    }

    /// Of an endpoint, by outcome.
    pub fn outcomes(&self, family: &str, endpoint: &str) -> BTreeMap<String, u64> {
        self.by_label(&format!("{family}{{endpoint=\"{endpoint}\",outcome=\""), "\"}")
    }

    #[track_caller]
    pub fn of(&self, family: &str, endpoint: &str) -> u64 {
        self.get(&format!("{family}{{endpoint=\"{endpoint}\"}}"))
    }
}
