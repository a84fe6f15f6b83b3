//! Puts the parts together and runs until told to stop.

mod front_ends;
mod resources;
mod sandbox;
mod signalfd;
mod signals;
mod startup;

use crate::cli::args::DaemonArgs;
use crate::error::Error;
use resources::Resources;
use startup::Startup;

/// Runs the daemon until SIGTERM or SIGINT, or the end of the only connection that it was started
/// with.
///
/// # Errors
/// When it cannot start. Once started, whatever happens is logged and survived.
pub fn run(args: &DaemonArgs) -> Result<(), Error> {
    let settings = args.settings()?;
    let resources = Resources::new(args)?;
    let startup = Startup::new(args, settings, resources)?;
    crate::sandbox::enter(args.sandbox, &sandbox::requirements(args))?;
    #[cfg(feature = "selftest")]
    if let Some(attempts) = &args.sandbox_attempts {
        attempts.run();
        return Ok(());
    }
    startup.run()
}
