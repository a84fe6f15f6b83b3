//! A client of the daemon's metrics socket.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::UnixStream;

use crate::daemon::Daemon;
use crate::wait;

/// The option that makes the daemon serve metrics.
pub const METRICS: &str = "--metrics-socket DIR/metrics";

/// Prefix of all names.
const PREFIX: &str = "vhost_user_iommu_";

/// An HTTP response.
#[derive(Debug)]
pub struct Response {
    /// The status code.
    pub status: u16,
    /// Status line and header fields.
    pub head: String,
    /// The content.
    pub body: String,
}

/// Connects to the metrics socket.
pub fn connect(daemon: &Daemon) -> UnixStream {
    let stream = UnixStream::connect(daemon.file("metrics")).unwrap();
    stream.set_read_timeout(Some(wait::limit())).unwrap();
    stream
}

/// Sends bytes. The daemon may close the connection meanwhile.
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
            // The daemon closed the connection before it read all bytes.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => return bytes,
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sends bytes on a new connection, and reads the response.
pub fn request(daemon: &Daemon, bytes: &[u8]) -> Response {
    let mut stream = connect(daemon);
    send(&mut stream, bytes);
    parse(&receive(&mut stream))
}

/// Parses one response.
pub fn parse(bytes: &[u8]) -> Response {
    let text = std::str::from_utf8(bytes).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no head: {text}"));
    let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest[..3].parse().ok());
    let status = status.unwrap_or_else(|| panic!("no status: {head}"));
    Response { status, head: head.into(), body: body.into() }
}

/// Scrapes the metrics as text.
pub fn text(daemon: &Daemon) -> String {
    let response = request(daemon, b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n");
    assert_eq!(response.status, 200, "{response:?}");
    let length = format!("Content-Length: {}", response.body.len());
    assert!(response.head.contains(&length), "{}", response.head);
    response.body
}

/// Samples by their names with labels, without the common prefix.
///
/// ```no_run
/// use testing::metrics::{METRICS, scrape};
/// use testing::vm::Vm;
///
/// let vm = Vm::new(METRICS);
/// assert_eq!(scrape(&vm.daemon).get("front_end_connected"), 1);
/// ```
pub struct Metrics(BTreeMap<String, f64>);

/// Scrapes the metrics.
pub fn scrape(daemon: &Daemon) -> Metrics {
    let text = text(daemon);
    let mut metrics = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let (name, value) = line.rsplit_once(' ').unwrap();
        let name = name.strip_prefix(PREFIX).unwrap_or_else(|| panic!("another prefix: {line}"));
        let before = metrics.insert(name.to_owned(), value.parse().unwrap());
        assert_eq!(before, None, "two samples of {name}");
    }
    Metrics(metrics)
}

impl Metrics {
    /// Returns the value of a sample.
    #[track_caller]
    pub fn get(&self, name: &str) -> u64 {
        let value = self.0.get(name).unwrap_or_else(|| panic!("no sample {name}"));
        *value as u64
    }

    /// Returns the samples whose names are `before`, the value of a label, and `after`: by that
    /// value, without zeros.
    pub fn by_label(&self, before: &str, after: &str) -> BTreeMap<String, u64> {
        let label = |name: &str| Some(name.strip_prefix(before)?.strip_suffix(after)?.to_owned());
        let nonzero = self.0.iter().filter(|(_, value)| **value > 0.0);
        nonzero.filter_map(|(name, value)| Some((label(name)?, *value as u64))).collect()
    }

    /// Returns the numbers of requests of a type, by status.
    pub fn requests(&self, kind: &str) -> BTreeMap<String, u64> {
        self.by_label(&format!("requests_total{{type=\"{kind}\",status=\""), "\"}")
    }

    /// Returns the samples of an endpoint, by outcome.
    pub fn outcomes(&self, family: &str, endpoint: &str) -> BTreeMap<String, u64> {
        self.by_label(&format!("{family}{{endpoint=\"{endpoint}\",outcome=\""), "\"}")
    }

    /// Returns the value of an endpoint's sample.
    #[track_caller]
    pub fn of(&self, family: &str, endpoint: &str) -> u64 {
        self.get(&format!("{family}{{endpoint=\"{endpoint}\"}}"))
    }
}
