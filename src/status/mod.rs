//! `vhost-user-iommu status`: prints a table of the metrics of a running daemon.
//!
//! `fetch` fetches the metrics, `samples` parses them, `view` selects values, `table` formats them.

mod fetch;
mod samples;
mod table;
mod view;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::metrics::PREFIX;
use view::View;

/// Interval of `--watch`.
const PERIOD: Duration = Duration::from_secs(1);

/// Clears a terminal.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// An error of the `status` command.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// The socket cannot be connected to.
    #[error("cannot connect to {0}: {1}; is a daemon with --metrics-socket {0} running?")]
    Connect(PathBuf, #[source] io::Error),
    /// The response on the socket is not that of a daemon.
    #[error("cannot read metrics from {0}: {1}; is it the --metrics-socket of a daemon?")]
    Response(PathBuf, #[source] InvalidResponse),
    /// The table cannot be written to standard output.
    #[error("cannot write to standard output: {0}")]
    Print(#[source] io::Error),
}

/// A response that does not contain the metrics of a daemon.
#[derive(Debug, thiserror::Error)]
pub enum InvalidResponse {
    /// The peer did not respond in time.
    #[error("no data within {} seconds", fetch::TIMEOUT.as_secs())]
    Timeout,
    /// The socket cannot be read or written.
    #[error(transparent)]
    Io(io::Error),
    /// The response is incomplete.
    #[error("the response is truncated")]
    Truncated,
    /// The response is not HTTP.
    #[error("the response is not HTTP")]
    NotHttp,
    /// The HTTP status is not 200.
    #[error("HTTP status {0}")]
    Status(u16),
    /// The body is not UTF-8.
    #[error("the response is not text")]
    NotText,
    /// A line is not an OpenMetrics sample.
    #[error("invalid sample '{0}'")]
    Sample(String),
    /// There are only metrics of other programs.
    #[error("no metric begins with {PREFIX}")]
    NoMetrics,
}

/// Prints the table, once or each second. Ends without an error when standard output is closed.
///
/// # Errors
/// When the metrics cannot be fetched, or the table not be printed.
pub fn run(socket: &Path, watch: bool) -> Result<(), StatusError> {
    let mut last = Snapshot::fetch(socket)?;
    let mut outcome = print(watch, &table::table(&last.view, None))?;
    while watch && outcome == Outcome::Printed {
        thread::sleep(PERIOD);
        let next = Snapshot::fetch(socket)?;
        let time = next.at.duration_since(last.at);
        outcome = print(watch, &table::table(&next.view, Some((&last.view, time))))?;
        last = next;
    }
    Ok(())
}

/// The metrics at one moment.
struct Snapshot {
    at: Instant,
    view: View,
}

impl Snapshot {
    fn fetch(socket: &Path) -> Result<Self, StatusError> {
        let text = fetch::fetch(socket)?;
        let samples = samples::parse(&text);
        let view = samples.and_then(|samples| View::from_samples(&samples));
        let view = view.map_err(|error| StatusError::Response(socket.into(), error))?;
        Ok(Self { at: Instant::now(), view })
    }
}

#[derive(PartialEq, Eq)]
enum Outcome {
    Printed,
    /// Standard output is closed.
    Closed,
}

/// Prints the table. With `--watch` it replaces the one before on a terminal, otherwise a blank line
/// separates them.
fn print(watch: bool, table: &str) -> Result<Outcome, StatusError> {
    let mut out = io::stdout().lock();
    let (before, after) = match (watch, out.is_terminal()) {
        (true, true) => (CLEAR, ""),
        (true, false) => ("", "\n"),
        (false, _) => ("", ""),
    };
    match write!(out, "{before}{table}{after}").and_then(|()| out.flush()) {
        Ok(()) => Ok(Outcome::Printed),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Outcome::Closed),
        Err(error) => Err(StatusError::Print(error)),
    }
}
