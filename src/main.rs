//! The program: arguments, log and exit code.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use vhost_user_iommu::cli::args::{Args, Command, DaemonArgs, ViotArgs};
use vhost_user_iommu::cli::{CliError, qemu_args, viot};
use vhost_user_iommu::error::Error;
use vhost_user_iommu::{daemon, status};

/// The option that management software uses to query a back-end program; with it, all other
/// arguments are ignored (QEMU, "Vhost-user Protocol", back-end program conventions).
const PRINT_CAPABILITIES: &str = "--print-capabilities";
const CAPABILITIES: &str = r#"{ "type": "iommu", "features": [] }"#;

fn main() -> ExitCode {
    if std::env::args_os().any(|arg| arg == PRINT_CAPABILITIES) {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        // Prints to standard error, or the text of --help and --version to standard output.
        Err(Error::Cli(CliError::CommandLine(error))) => error.exit(),
        Err(error) => {
            eprintln!("vhost-user-iommu: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

fn run() -> Result<(), Error> {
    let args = Args::parse_line(std::env::args_os())?;
    match &args.command {
        Some(Command::Viot(args)) => write_viot(args),
        Some(Command::QemuArgs(args)) => {
            let lines = qemu_args::lines(args)?;
            // Each line but the last is continued for a shell.
            println!("{}", lines.join(" \\\n"));
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
    let table = viot::table(args.iommu, &args.endpoints).map_err(CliError::from)?;
    let written = if args.output == Path::new("-") {
        std::io::stdout().write_all(&table)
    } else {
        std::fs::write(&args.output, &table)
    };
    written.map_err(|error| Error::Write(args.output.clone(), error))
}
