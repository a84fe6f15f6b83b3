//! QEMU's monitor (QMP).

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

use serde_json::{Value, json};

use super::{LIMIT, wait_until};

/// A connection to QEMU's monitor.
pub struct Qmp {
    reader: BufReader<UnixStream>,
}

impl Qmp {
    pub(super) fn connect(path: &Path) -> Self {
        let stream = wait_until("QEMU's monitor", || UnixStream::connect(path).ok());
        stream.set_read_timeout(Some(LIMIT)).unwrap();
        let mut qmp = Self { reader: BufReader::new(stream) };
        let greeting = qmp.receive();
        assert!(greeting["QMP"].is_object(), "QEMU's greeting: {greeting}");
        qmp.execute("qmp_capabilities");
        qmp
    }

    /// Runs a command without arguments, which must succeed. Events are skipped.
    #[track_caller]
    pub fn execute(&mut self, command: &str) -> Value {
        let line = format!("{}\n", json!({ "execute": command }));
        self.reader.get_mut().write_all(line.as_bytes()).unwrap();
        loop {
            let message = self.receive();
            assert!(message["error"].is_null(), "{command}: {message}");
            if let Some(value) = message.get("return") {
                return value.clone();
            }
        }
    }

    #[track_caller]
    fn receive(&mut self) -> Value {
        let mut line = String::new();
        let read = self.reader.read_line(&mut line);
        assert!(matches!(read, Ok(1..)), "no reply from QEMU's monitor: {read:?}");
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("'{line}': {error}"))
    }
}
