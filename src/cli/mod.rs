//! The command line: options, the configuration file, and the subcommands that print something.

pub mod args;
pub mod bdf;
pub mod config;
pub mod qemu_args;
pub mod viot;

/// An invalid option, configuration file or combination of options.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// Anything that is wrong with them.
    #[error("{0}")]
    Invalid(String),
}

impl From<String> for CliError {
    fn from(message: String) -> Self {
        Self::Invalid(message)
    }
}
