//! The daemon from startup to shutdown.
//!
//! ```text
//! resources            files and sockets, opened first so that a wrong path fails early
//! front_ends           the vhost-user socket
//! startup              creates all parts, starts the threads and serves front ends
//! sandbox              the operations that the daemon requires inside the sandbox
//! signals, signalfd    handle SIGTERM, SIGINT and SIGUSR1
//! shutdown             stops all parts in order
//! ```

mod front_ends;
mod resources;
mod sandbox;
mod shutdown;
mod signalfd;
mod signals;
mod startup;

use crate::cli::CliError;
use crate::cli::args::DaemonArgs;
use crate::error::Error;
use resources::Resources;
use startup::Startup;

/// Runs the daemon until SIGTERM or SIGINT, or until the only front end of an inherited connection
/// disconnects.
///
/// # Errors
/// When the daemon cannot start. Later errors are logged, and the daemon continues.
pub fn run(args: &DaemonArgs) -> Result<(), Error> {
    let settings = args.settings().map_err(CliError::from)?;
    let resources = Resources::open(args)?;
    let startup = Startup::new(args, settings, resources)?;
    crate::sandbox::enter(args.sandbox, &sandbox::requirements(args))?;
    #[cfg(feature = "selftest")]
    if let Some(attempts) = &args.sandbox_attempts {
        attempts.run();
        return Ok(());
    }
    startup.run()
}
