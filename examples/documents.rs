//! Generates documents from the definitions of the arguments: manual pages, shell completions and
//! the README's table of options.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Arg, CommandFactory, Parser, Subcommand};
use clap_complete::{Shell, generate_to};
use vhost_user_iommu::cli::args::Args;

const PROGRAM: &str = "vhost-user-iommu";

/// The lines before and after the table in the README.
const MARKERS: [&str; 2] =
    ["<!-- options: written by scripts/options -->\n", "<!-- options end -->\n"];

/// Generate documents from the definitions of the arguments.
#[derive(Parser)]
struct Documents {
    #[command(subcommand)]
    document: Document,
}

#[derive(Subcommand)]
enum Document {
    /// Write manual pages and completions.
    Files {
        /// Output directory.
        directory: PathBuf,
    },
    /// Replace the table of options in a file.
    Table {
        /// The file with the table between its markers.
        file: PathBuf,
    },
}

fn main() -> io::Result<()> {
    match Documents::parse().document {
        Document::Files { directory } => files(&directory),
        Document::Table { file } => table(&file),
    }
}

fn files(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    let mut command = Args::command();
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        generate_to(shell, &mut command, PROGRAM, directory)?;
    }
    clap_mangen::generate_to(Args::command().disable_help_subcommand(true), directory)
}

fn table(file: &Path) -> io::Result<()> {
    let text = fs::read_to_string(file)?;
    let parts = text.split_once(MARKERS[0]).and_then(|(before, rest)| {
        let (_, after) = rest.split_once(MARKERS[1])?;
        Some((before, after))
    });
    let Some((before, after)) = parts else {
        let missing = format!("{} lacks the lines {MARKERS:?}", file.display());
        return Err(io::Error::new(io::ErrorKind::InvalidData, missing));
    };
    fs::write(file, format!("{before}{}{}{}{after}", MARKERS[0], rows(), MARKERS[1]))
}

fn rows() -> String {
    let head = "| option | default | meaning |\n|---|---|---|\n";
    let command = Args::command();
    let options = command.get_arguments().filter(|arg| !arg.is_hide_set());
    options.fold(head.to_owned(), |rows, option| rows + &row(option))
}

fn row(option: &Arg) -> String {
    let name = option.get_long().unwrap_or_default();
    let values = option.get_value_names().unwrap_or_default();
    let value = if option.get_action().takes_values() {
        values.iter().map(|value| format!(" {value}")).collect()
    } else {
        String::new()
    };
    let defaults = option.get_default_values().iter().map(|default| default.to_string_lossy());
    let default = if option.get_action().takes_values() {
        defaults.collect::<Vec<_>>().join(" ")
    } else {
        String::new()
    };
    let help = option.get_long_help().or(option.get_help()).map(ToString::to_string);
    let cells = [format!("`--{name}{value}`"), default, help.unwrap_or_default()];
    let cells = cells.map(|cell| cell.replace('|', "\\|").replace('\n', " "));
    format!("| {} |\n", cells.join(" | "))
}
