//! The command line: options, the configuration file, and the subcommands `viot` and `qemu-args`.

pub mod args;
pub mod bdf;
pub mod config;
mod error;
pub mod qemu_args;
pub mod value;
pub mod viot;

pub use error::{CliError, OptionsError};
