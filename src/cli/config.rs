//! The file of `--config`: options in TOML, under the names that they have on the command line.
//!
//! What the file says is turned into arguments, so that one parser checks both and says of both
//! what is wrong.

use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use clap::error::ErrorKind;
use clap::parser::ValueSource;
use clap::{Arg, ArgMatches, CommandFactory, Id};
use toml::{Table, Value};

use crate::cli::args::Args;

/// The options that the file cannot set.
const NOT_IN_A_FILE: [&str; 4] = ["config", "help", "version", "print_capabilities"];

/// Two ways to say the same: one on the command line stands in place of the other in the file.
const ALTERNATIVES: [&str; 2] = ["socket_path", "fd"];

/// The command line `line`, with the options of its file, if it names one, that it does not give
/// itself.
///
/// # Errors
/// A file that cannot be read, is not TOML, or says what no option takes; in a sentence.
pub fn with_file(mut line: Vec<OsString>) -> Result<Vec<OsString>, String> {
    // What is wrong with the line itself is said when it is read for good.
    let Ok(matches) = Args::command().ignore_errors(true).try_get_matches_from(&line) else {
        return Ok(line);
    };
    let matches = innermost(&matches);
    let Ok(Some(path)) = matches.try_get_one::<PathBuf>("config") else { return Ok(line) };
    let in_file = |error: String| format!("{}: {error}", path.display());
    let arguments = read(path).and_then(|table| options(&table)).map_err(in_file)?;
    let not_given = arguments.into_iter().filter(|(id, _)| !is_given(matches, id));
    line.extend(not_given.flat_map(|(_, arguments)| arguments));
    Ok(line)
}

/// Of a subcommand, if there is one.
fn innermost(matches: &ArgMatches) -> &ArgMatches {
    matches.subcommand().map_or(matches, |(_, matches)| matches)
}

fn read(path: &Path) -> Result<Table, String> {
    let text = fs::read_to_string(path).map_err(|error| format!("cannot be read: {error}"))?;
    text.parse().map_err(|error: toml::de::Error| error.to_string().trim_end().to_owned())
}

/// The options of a file, by their identifiers, with the arguments that say the same. The file
/// alone is right, as far as that can be said of an option by itself.
fn options(table: &Table) -> Result<Vec<(Id, Vec<OsString>)>, String> {
    let command = Args::command();
    let argument = |(key, value): (&String, &Value)| {
        let arg = option(&command, key)?;
        Ok((arg.get_id().clone(), arguments(arg, key, value)?))
    };
    let options = table.iter().map(argument).collect::<Result<Vec<_>, String>>()?;
    let alone = options.iter().flat_map(|(_, arguments)| arguments);
    match command.no_binary_name(true).try_get_matches_from(alone) {
        // What the file does not give, the command line may.
        Err(error) if error.kind() != ErrorKind::MissingRequiredArgument => Err(sentence(&error)),
        _ => Ok(options),
    }
}

/// What clap says, without advice on the command line.
fn sentence(error: &clap::Error) -> String {
    let text = error.to_string();
    let sentence = text.split("\n\n").next().unwrap_or(&text);
    sentence.strip_prefix("error: ").unwrap_or(sentence).trim_end().to_owned()
}

fn option<'a>(command: &'a clap::Command, key: &str) -> Result<&'a Arg, String> {
    let option = command.get_arguments().find(|arg| arg.get_long() == Some(key));
    option.filter(|arg| !NOT_IN_A_FILE.contains(&arg.get_id().as_str())).ok_or_else(|| {
        format!("there is no option '{key}'; the names are those of --help, without the dashes")
    })
}

fn is_given(matches: &ArgMatches, id: &Id) -> bool {
    let id = id.as_str();
    let given = |id: &str| matches.value_source(id) == Some(ValueSource::CommandLine);
    given(id) || ALTERNATIVES.contains(&id) && ALTERNATIVES.into_iter().any(given)
}

/// The arguments for `value`: one for each element of an array, where the option is repeatable.
fn arguments(arg: &Arg, key: &str, value: &Value) -> Result<Vec<OsString>, String> {
    let repeatable = matches!(arg.get_action(), clap::ArgAction::Append);
    match value {
        Value::Array(values) if repeatable => {
            values.iter().map(|value| argument(arg, key, value)).collect()
        }
        Value::Boolean(false) if !arg.get_action().takes_values() => Ok(Vec::new()),
        value => argument(arg, key, value).map(|argument| vec![argument]),
    }
}

fn argument(arg: &Arg, key: &str, value: &Value) -> Result<OsString, String> {
    let takes_values = arg.get_action().takes_values();
    let text = match value {
        Value::Boolean(true) if !takes_values => return Ok(format!("--{key}").into()),
        Value::String(text) if takes_values => text.clone(),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) if takes_values => {
            value.to_string()
        }
        _ if takes_values => return Err(format!("{key} = {value} is no text and no number")),
        _ => return Err(format!("{key} = {value} is neither true nor false")),
    };
    Ok(format!("--{key}={text}").into())
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use clap::{CommandFactory, Parser};
    use toml::Table;

    use super::{NOT_IN_A_FILE, arguments, with_file};
    use crate::cli::args::{Args, Command, DaemonArgs};

    /// Reads `file` beside the rest of a command line.
    fn read(file: &str, line: &str) -> Result<Args, String> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("vm.toml");
        std::fs::write(&path, file).unwrap();
        let line = line.replace("FILE", path.to_str().unwrap());
        let words: Vec<OsString> = line.split_whitespace().map(OsString::from).collect();
        Args::try_parse_from(with_file(words)?).map_err(|error| error.to_string())
    }

    fn daemon(file: &str, options: &str) -> Result<DaemonArgs, String> {
        read(file, &format!("vhost-user-iommu --config FILE {options}")).map(|args| args.daemon)
    }

    const FILE: &str = r#"
        socket-path = "/run/vm1"
        endpoint = ["00:02.0,sim=/run/a", "00:03.0,sim=/run/b"] # two
        page-size = "16K"
        poll-us = 7
        page-response-timeout = 1.5
        boot-bypass = false
        realtime = true
    "#;

    #[test]
    fn every_kind_of_value_is_taken() {
        let args = daemon(FILE, "").unwrap();
        assert_eq!(args.socket_path.as_deref(), Some("/run/vm1".as_ref()));
        assert_eq!((args.endpoints.len(), args.page_size, args.poll_us), (2, 16 << 10, 7));
        assert_eq!(args.page_response_timeout.as_millis(), 1500);
        assert!(!args.boot_bypass && args.realtime);
        let off = FILE.replace("realtime = true", "realtime = false");
        assert!(!daemon(&off, "").unwrap().realtime);
    }

    #[test]
    fn options_win_over_the_file() {
        let args = daemon(FILE, "--page-size 4K --endpoint 00:04.0,sim=/run/c").unwrap();
        assert_eq!((args.page_size, args.endpoints.len()), (4 << 10, 1));
        let args = daemon(FILE, "--fd 3").unwrap();
        assert_eq!((args.fd, args.socket_path), (Some(3), None));
    }

    #[test]
    fn a_subcommand_with_the_daemons_options_takes_the_file_too() {
        let args = read(FILE, "vhost-user-iommu qemu-args --memory 2G --config FILE").unwrap();
        match args.command {
            Some(Command::QemuArgs(args)) => assert_eq!(args.daemon.endpoints.len(), 2),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_file_and_value() {
        let rows = [
            ("page-size = ", "line 1"),
            ("page_size = 4096", "page_size"),
            ("config = 'other.toml'", "config"),
            ("help = true", "help"),
            ("page-size = 3000", "3000"),
            ("page-size = ['4K']", "page-size"),
            ("page-size = { bytes = 4096 }", "bytes"),
            ("realtime = 'yes'", "yes"),
            ("endpoint = ['00:02.0']", "00:02.0"),
            ("endpoint = [['00:02.0,sim=/run/a']]", "endpoint"),
            ("fd = 3\nsocket-path = '/run/vm1'", "--fd"),
            ("started = 2026-01-01", "started"),
            ("socket-path = 2026-01-01", "2026"),
        ];
        for (file, part) in rows {
            let error = daemon(file, "").unwrap_err();
            assert!(error.contains("vm.toml: ") && error.contains(part), "{file}: {error}");
            assert!(!error.contains("--help'."), "{file}: {error}");
        }
        let error = with_file(vec!["x".into(), "--config=/nonexistent/vm.toml".into()]);
        assert!(error.unwrap_err().contains("/nonexistent/vm.toml"));
    }

    const EXAMPLE: &str = include_str!("../../systemd/example.toml");

    /// The example, with every option set.
    fn whole_example() -> String {
        let set = |line: &str| match line.strip_prefix('#') {
            Some(option) if option.starts_with(|c: char| c.is_ascii_lowercase()) => option.into(),
            _ => line.to_owned(),
        };
        EXAMPLE.lines().map(set).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn the_example_has_every_option_with_its_default() {
        let table: Table = whole_example().parse().unwrap();
        for arg in Args::command().get_arguments() {
            let (id, Some(key)) = (arg.get_id().as_str(), arg.get_long()) else { continue };
            // "fd" is the alternative of another one, which is there.
            if NOT_IN_A_FILE.contains(&id) || id == "fd" || arg.is_hide_set() {
                continue;
            }
            let value = table.get(key).unwrap_or_else(|| panic!("no {key} in the example"));
            let default: Vec<_> = arg.get_default_values().iter().collect();
            let takes_values = arg.get_action().takes_values();
            let default = match default[..] {
                [value] if takes_values => vec![format!("--{key}={}", value.to_str().unwrap())],
                [] if takes_values => continue, // what stands there is an example
                _ => vec![],
            };
            let default: Vec<_> = default.into_iter().map(OsString::from).collect();
            assert_eq!(arguments(arg, key, value).unwrap(), default, "{key}");
        }
    }

    #[test]
    fn the_example_is_accepted_as_it_is_and_with_every_option() {
        for file in [EXAMPLE, &whole_example()] {
            let args = daemon(file, "").unwrap();
            assert_eq!(args.endpoints.len(), 1);
            args.settings().unwrap();
            assert_eq!(daemon(file, "--fd 3").unwrap().fd, Some(3));
        }
    }
}
