//! Commands for the guest, over its second serial port. `scripts/guest/agent` is the other end.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::thread;
use std::time::{Duration, Instant};

use super::{LIMIT, wait_until};

/// Pause between two checks of the machine while a command runs.
const CHECK_INTERVAL: Duration = Duration::from_millis(200);

/// A connection to the agent in the guest.
pub struct Agent {
    stream: UnixStream,
    lines: Receiver<String>,
    commands: u64,
}

/// The output of a command, and its exit status.
pub struct Output {
    /// Standard output and standard error.
    pub text: String,
    /// The exit status.
    pub status: i32,
}

impl Agent {
    pub(super) fn connect(path: &Path) -> Self {
        let stream = wait_until("the serial port", || UnixStream::connect(path).ok());
        let reader = BufReader::new(stream.try_clone().unwrap());
        let (sender, lines) = mpsc::channel();
        // The thread ends with the machine.
        thread::spawn(move || {
            for line in reader.split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Self { stream, lines, commands: 0 }
    }

    /// Waits until the agent runs, after a start or a restart of the guest. Meanwhile calls
    /// `check` repeatedly, which panics if the machine has failed.
    #[track_caller]
    pub fn wait_until_ready(&mut self, check: impl FnMut()) {
        self.lines_until("the guest's agent", |line| line == "@ready", check);
    }

    /// Sends a command without waiting for its end.
    #[track_caller]
    pub fn send(&mut self, command: &str) {
        assert!(!command.contains('\n'), "a command is one line: {command}");
        self.commands += 1;
        let line = format!("{} {command}\n", self.commands);
        self.stream.write_all(line.as_bytes()).expect("the guest's serial port");
    }

    /// Runs a shell command in the guest, and meanwhile `check`.
    #[track_caller]
    pub fn run(&mut self, command: &str, check: impl FnMut()) -> Output {
        self.send(command);
        let marker = format!("@{} ", self.commands);
        let event = format!("the end of '{command}' in the guest");
        let mut lines = self.lines_until(&event, |line| line.starts_with(&marker), check);
        let last = lines.pop().unwrap_or_default();
        let status = last[marker.len()..].parse().unwrap_or_else(|_| panic!("status in '{last}'"));
        Output { text: lines.join("\n"), status }
    }

    /// Returns the lines up to the one that is `last`. The limit is for each line.
    #[track_caller]
    fn lines_until(
        &mut self,
        event: &str,
        last: impl Fn(&str) -> bool,
        mut check: impl FnMut(),
    ) -> Vec<String> {
        let mut start = Instant::now();
        let mut lines: Vec<String> = Vec::new();
        loop {
            match self.lines.recv_timeout(CHECK_INTERVAL) {
                Ok(line) => {
                    let found = last(&line);
                    lines.push(line);
                    start = Instant::now();
                    if found {
                        return lines;
                    }
                }
                Err(RecvTimeoutError::Timeout) => check(),
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("QEMU has exited; waited for {event}")
                }
            }
            assert!(start.elapsed() < LIMIT, "timed out: {event}; so far:\n{}", lines.join("\n"));
        }
    }
}
