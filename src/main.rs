//! The program: arguments, log, exit status.

use std::io::Write;
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;
use vhost_user_iommu::args::{Args, Command, ViotArgs};
use vhost_user_iommu::{daemon, qemu_args, viot};

/// What management software is told of this program (QEMU, "Vhost-user Protocol", back-end
/// program conventions); all other arguments are ignored then.
const PRINT_CAPABILITIES: &str = "--print-capabilities";
const CAPABILITIES: &str = r#"{ "type": "iommu", "features": [] }"#;

fn main() -> ExitCode {
    if std::env::args_os().any(|arg| arg == PRINT_CAPABILITIES) {
        println!("{CAPABILITIES}");
        return ExitCode::SUCCESS;
    }
    let args = Args::parse();
    let result = match &args.command {
        Some(Command::Viot(viot)) => write_viot(viot),
        Some(Command::QemuArgs(qemu)) => {
            qemu_args::lines(qemu).map(|lines| print_continued(&lines))
        }
        None => {
            let level =
                env_logger::Env::default().default_filter_or(args.daemon.log_level.as_str());
            env_logger::Builder::from_env(level).format_timestamp_micros().init();
            daemon::run(&args.daemon).map_err(|error| error.to_string())
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(message) => {
            eprintln!("vhost-user-iommu: {message}");
            ExitCode::FAILURE
        }
    }
}

fn write_viot(args: &ViotArgs) -> Result<(), String> {
    let table = viot::table(args.iommu, &args.endpoints)?;
    let written = if args.output == Path::new("-") {
        std::io::stdout().write_all(&table)
    } else {
        std::fs::write(&args.output, &table)
    };
    written.map_err(|error| format!("cannot write {}: {error}", args.output.display()))
}

/// One option a line, each but the last continued for a shell.
fn print_continued(lines: &[String]) {
    println!("{}", lines.join(" \\\n"));
}
