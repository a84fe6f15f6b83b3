//! Errors of the command line.

use crate::address::{EndpointId, IovaRange};
use crate::cli::config::ConfigError;
use crate::cli::qemu_args::QemuArgsError;
use crate::cli::viot::ViotError;

/// An invalid command line or configuration file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CliError {
    /// The parser rejects the command line, or has printed what `--help` or `--version` requests.
    #[error(transparent)]
    CommandLine(#[from] clap::Error),
    /// The configuration file is invalid or cannot be read.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A combination of options is invalid.
    #[error(transparent)]
    Options(#[from] OptionsError),
    /// `viot` cannot write a table for these functions.
    #[error(transparent)]
    Viot(#[from] ViotError),
    /// `qemu-args` has no QEMU options for this configuration.
    #[error(transparent)]
    QemuArgs(#[from] QemuArgsError),
}

/// An invalid combination of individually valid options.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum OptionsError {
    /// Required options that neither the command line nor the configuration file gives.
    #[error("missing required options: {}", .0.join(", "))]
    Missing(Vec<&'static str>),
    /// Two endpoints have the same PCI address.
    #[error("--endpoint {0} is given twice")]
    DuplicateEndpoint(EndpointId),
    /// The input range does not consist of whole pages.
    #[error("--input-range {range} is not aligned to --page-size {page_size:#x}")]
    Unaligned {
        /// The input range.
        range: IovaRange,
        /// The page size in bytes.
        page_size: u64,
    },
    /// Two reserved regions overlap.
    #[error("--reserved-region {0} overlaps another region")]
    OverlappingRegions(IovaRange),
    /// Two reserved regions are of type MSI.
    #[error("--reserved-region {0}: only one region can have type=msi")]
    SecondMsiRegion(IovaRange),
    /// More reserved regions than supported.
    #[error("{number} reserved regions; at most {max} are supported")]
    TooManyRegions {
        /// The number of regions.
        number: usize,
        /// The maximum.
        max: usize,
    },
}
