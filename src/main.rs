//! The program: arguments, log, exit status.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use vhost_user_iommu::cli::CliError;
use vhost_user_iommu::cli::args::{Args, Command, DaemonArgs, ViotArgs};
use vhost_user_iommu::cli::{config, qemu_args, viot};
use vhost_user_iommu::error::Error;
use vhost_user_iommu::{daemon, status};

/// What management software is told of this program (QEMU, "Vhost-user Protocol", back-end
/// program conventions); all other arguments are ignored then.
const PRINT_CAPABILITIES: &str = "--print-capabilities";
const CAPABILITIES: &str = r#"{ "type": "iommu", "features": [] }"#;

fn main() -> ExitCode {
    if std::env::args_os().any(|arg| arg == PRINT_CAPABILITIES) {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("vhost-user-iommu: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), Error> {
    let line = config::with_file(std::env::args_os().collect()).map_err(CliError::Invalid)?;
    let args = Args::parse_from(line);
    match &args.command {
        Some(Command::Viot(viot)) => write_viot(viot),
        Some(Command::QemuArgs(qemu)) => {
            let lines = qemu_args::lines(qemu)?;
            print_continued(&lines);
            Ok(())
        }
        Some(Command::Status(args)) => Ok(status::run(&args.metrics_socket, args.watch)?),
        None => run_daemon(&args.daemon),
    }
}

fn run_daemon(args: &DaemonArgs) -> Result<(), Error> {
    let level = env_logger::Env::default().default_filter_or(args.log_level.as_str());
    env_logger::Builder::from_env(level).format_timestamp_micros().init();
    daemon::run(args)
}

fn write_viot(args: &ViotArgs) -> Result<(), Error> {
    let table = viot::table(args.iommu, &args.endpoints).map_err(CliError::Invalid)?;
    let written = if args.output == Path::new("-") {
        std::io::stdout().write_all(&table)
    } else {
        std::fs::write(&args.output, &table)
    };
    written.map_err(|error| Error::Write(args.output.clone(), error))
}

/// One option a line, each but the last continued for a shell.
fn print_continued(lines: &[String]) {
    println!("{}", lines.join(" \\\n"));
}
