//! The command line: options, the configuration file, and the subcommands that print something.

pub mod args;
pub mod bdf;
pub mod config;
pub mod qemu_args;
pub mod viot;
