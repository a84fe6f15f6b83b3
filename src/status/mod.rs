//! `vhost-user-iommu status`: a table of what a running daemon does, from its figures.
//!
//! `fetch` gets them, `samples` reads them, `view` picks what is shown, `table` lays it out.

mod fetch;
mod samples;
mod table;
mod view;

use std::io::{self, ErrorKind, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use view::View;

/// From one look of `--watch` to the next.
const PERIOD: Duration = Duration::from_secs(1);

/// What makes a terminal blank.
const CLEAR: &str = "\x1b[H\x1b[2J";

/// Why nothing can be shown.
#[derive(Debug, thiserror::Error)]
pub enum StatusError {
    /// Nobody listens there.
    #[error("nobody serves figures on {0}: {1}; is a daemon with --metrics-socket {0} running?")]
    Nobody(PathBuf, #[source] io::Error),
    /// Somebody listens, but gives no figures.
    #[error("no figures come from {0}: {1}; is it the --metrics-socket of a daemon?")]
    NoFigures(PathBuf, String),
    /// It cannot be printed.
    #[error("cannot print: {0}")]
    Print(#[source] io::Error),
}

/// Prints what the daemon does, once or each second.
///
/// # Errors
/// When the figures cannot be had, or not be printed. That nobody reads any more is none.
pub fn run(metrics_socket: &Path, watch: bool) -> Result<(), StatusError> {
    let mut last = look(metrics_socket)?;
    print(watch, &table::table(&last.view, None))?;
    if !watch {
        return Ok(());
    }
    loop {
        thread::sleep(PERIOD);
        let next = look(metrics_socket)?;
        let time = next.at.duration_since(last.at);
        if let Done::NobodyReads =
            print(watch, &table::table(&next.view, Some((&last.view, time))))?
        {
            return Ok(());
        }
        last = next;
    }
}

/// What there was to see at a time.
struct Look {
    at: Instant,
    view: View,
}

fn look(metrics_socket: &Path) -> Result<Look, StatusError> {
    let text = fetch::fetch(metrics_socket)?;
    let no_figures = |error| StatusError::NoFigures(metrics_socket.into(), error);
    let samples = samples::read(&text).map_err(no_figures)?;
    Ok(Look { at: Instant::now(), view: View::of(&samples).map_err(no_figures)? })
}

enum Done {
    Printed,
    NobodyReads,
}

/// On a terminal each table takes the place of the one before; elsewhere a blank line divides
/// them.
fn print(watch: bool, table: &str) -> Result<Done, StatusError> {
    let mut out = io::stdout().lock();
    let (before, after) = match (watch, out.is_terminal()) {
        (true, true) => (CLEAR, ""),
        (true, false) => ("", "\n"),
        (false, _) => ("", ""),
    };
    match write!(out, "{before}{table}{after}").and_then(|()| out.flush()) {
        Ok(()) => Ok(Done::Printed),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(Done::NobodyReads),
        Err(error) => Err(StatusError::Print(error)),
    }
}
