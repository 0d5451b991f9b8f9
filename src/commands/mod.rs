//! The command line: one file a command. Each checks what was typed, makes from the configuration what its engine
//! takes, and prints what the engine found.

mod archive_get;
mod archive_prefetch;
mod archive_push;
mod base_backup;
mod check;
mod completions;
mod demo;
mod events;
mod expire;
mod index;
mod init;
mod judge;
mod keys;
mod list;
mod log;
mod man;
mod metrics;
mod notify;
mod operation;
mod output;
mod pin;
mod progress;
mod recover;
mod resolve;
mod setup;
mod status;
mod sync;
mod verify;
mod version;

use crate::error::{CANNOT_ANSWER, exit_code};
use crate::kind::{Error, Kind};
use crate::manual::told;
use clap::{CommandFactory, Parser, Subcommand};
use std::io::Write;
use std::path::PathBuf;

/// WAL archiver and point-in-time recovery for PostgreSQL
#[derive(Debug, Parser)]
#[command(name = "walden", version, long_version = version::long(), max_term_width = 100, disable_help_subcommand = true)]
#[command(after_help = "The configuration is --config, else $WALDEN_CONFIG, else /etc/walden/walden.toml.\n\
    Pages that messages name (docs/…) are in /usr/share/doc/walden of the package.\n\
    Begin with: walden init --help. To see it all work on a throwaway cluster: walden demo.")]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// Flags of every command.
#[derive(Debug, clap::Args)]
pub struct Global {
    /// The configuration file
    #[arg(long, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Say more on stderr
    #[arg(short, long, global = true)]
    pub verbose: bool,
    /// Say only warnings and errors on stderr
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(init::Args),
    ArchivePush(archive_push::Args),
    ArchiveGet(archive_get::Args),
    #[command(hide = true)]
    ArchivePrefetch(archive_prefetch::Args),
    BaseBackup(base_backup::Args),
    Recover(recover::Args),
    Check(check::Args),
    Status(status::Args),
    Metrics(metrics::Args),
    List(list::Args),
    Events(events::Args),
    Index(index::Args),
    Keys(keys::Args),
    Log(log::Args),
    Notify(notify::Args),
    Sync(sync::Args),
    Expire(expire::Args),
    Pin(pin::Args),
    /// Let the retention decide over a backup again
    #[command(after_help = "Example:\n  walden unpin 20261120T133000Z-00000001-5f0c2a91")]
    Unpin(pin::Args),
    Verify(verify::Args),
    Resolve(resolve::Args),
    Demo(demo::Args),
    Completions(completions::Args),
    Man(man::Args),
}

/// Returns the whole command line, for what is made from it.
fn command() -> clap::Command {
    Cli::command()
}

/// Runs the program and returns its exit code.
pub fn main() -> u8 {
    let arguments: Vec<std::ffi::OsString> = std::env::args_os().collect();
    let cli = match Cli::try_parse_from(&arguments) {
        Ok(cli) => cli,
        Err(error) => return command_line_failed(&error, &arguments),
    };
    crate::log::start(cli.global.verbose, cli.global.quiet);
    let global = &cli.global;
    let result = match &cli.command {
        Command::Init(args) => init::run(global, args),
        Command::ArchivePush(args) => {
            // A server's command must not wait at a terminal or die of a closed pipe; both are set up by the server.
            archive_push::run(global, args)
        }
        Command::ArchiveGet(args) => {
            return match archive_get::run(global, args) {
                Ok(()) => 0,
                Err((error, code)) => {
                    // Absence is the ordinary end of an archive, asked for again and again.
                    if error.kind() == Kind::Absent {
                        tracing::debug!("{error}");
                    } else {
                        tracing::error!("{}", told(error));
                    }
                    code
                }
            };
        }
        Command::ArchivePrefetch(args) => {
            archive_prefetch::run(global, args);
            Ok(())
        }
        Command::BaseBackup(args) => base_backup::run(global, args),
        Command::Recover(args) => recover::run(global, args),
        Command::Check(args) => check::run(global, args),
        Command::Status(args) => match status::run(global, args) {
            Ok(0) => Ok(()),
            Ok(code) => return code,
            Err(error) => Err(error),
        },
        Command::Metrics(args) => metrics::run(global, args),
        Command::List(args) => list::run(global, args),
        Command::Events(args) => events::run(global, args),
        Command::Index(args) => index::run(global, args),
        Command::Keys(args) => keys::run(global, args),
        Command::Log(args) => log::run(global, args),
        Command::Notify(args) => notify::run(global, args),
        Command::Sync(args) => sync::run(global, args),
        Command::Expire(args) => expire::run(global, args),
        Command::Pin(args) => pin::run(global, args),
        Command::Unpin(args) => pin::run_unpin(global, args),
        Command::Verify(args) => verify::run(global, args),
        Command::Resolve(args) => resolve::run(global, args),
        Command::Demo(args) => demo::run(global, args),
        Command::Completions(args) => completions::run(args),
        Command::Man(args) => man::run(args),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            let code = exit_code(error.kind());
            tracing::error!("{}", told(error));
            code
        }
    }
}

/// Returns whether the command line asks for archive-get: whatever is wrong then, recovery must not take it for
/// "not found".
pub fn is_archive_get(arguments: &[std::ffi::OsString]) -> bool {
    arguments.iter().skip(1).any(|argument| argument == "archive-get")
}

/// Returns the exit code for a failure before or outside a command's own code.
pub fn code_outside(arguments: &[std::ffi::OsString], ordinary: u8) -> u8 {
    if !is_archive_get(arguments) {
        return ordinary;
    }
    let asked = arguments.windows(2).find(|pair| pair[0] == "--on-error").and_then(|pair| pair[1].to_str());
    let asked = asked.or_else(|| arguments.iter().find_map(|a| a.to_str()?.strip_prefix("--on-error=")));
    if archive_get::retries(asked) { ordinary.max(2) } else { CANNOT_ANSWER }
}

fn command_line_failed(error: &clap::Error, arguments: &[std::ffi::OsString]) -> u8 {
    use clap::error::ErrorKind as K;
    if matches!(error.kind(), K::DisplayHelp | K::DisplayVersion) {
        let _ = error.print();
        return 0;
    }
    if error.kind() == K::DisplayHelpOnMissingArgumentOrSubcommand {
        let _ = write!(std::io::stderr(), "{}", Cli::command().render_help());
        return code_outside(arguments, 2);
    }
    let text = error.to_string();
    let until_usage = text.split("\n\nUsage:").next().unwrap_or_default();
    let line = until_usage.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line).replace(" tip: ", "\n");
    let line = line.split("For more information").next().unwrap_or(&line).trim();
    let (line, tip) = line.split_once('\n').map_or((line, None), |(line, tip)| (line, Some(tip)));
    // Not simply the first without a hyphen: that may be the value of --config.
    let is_command = |word: &&str| Cli::command().find_subcommand(word).is_some();
    let help = match arguments.iter().skip(1).filter_map(|a| a.to_str()).find(is_command) {
        Some(command) => format!("walden {command} --help"),
        None => "walden --help".to_owned(),
    };
    // Not eprintln!, which panics where the server's log cannot be written.
    let error =
        tip.into_iter().fold(Error::usage(line), |error, tip| error.with_hint(tip.replace('\n', "; ")));
    let _ = writeln!(std::io::stderr(), "{}", as_line(&error.with_hint(format!("see {help}"))));
    code_outside(arguments, 2)
}

fn as_line(error: &Error) -> String {
    format!("ERROR: {error}")
}

#[cfg(test)]
mod tests {
    use super::Cli;
    use clap::Parser;

    /// Returns every command that is shown and has none below it, by its words.
    fn leaves() -> Vec<(String, clap::Command)> {
        fn below(command: &clap::Command, path: &str, found: &mut Vec<(String, clap::Command)>) {
            for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set()) {
                let path = format!("{path} {}", inner.get_name());
                if inner.has_subcommands() {
                    below(inner, &path, found);
                } else {
                    found.push((path, inner.clone()));
                }
            }
        }
        let mut found = Vec::new();
        below(&super::command(), "walden", &mut found);
        assert!(found.len() > 15, "{found:?}");
        found
    }

    /// Splits a line as a shell does, as far as examples need it.
    fn words(line: &str) -> Vec<String> {
        let (mut words, mut quoted) = (vec![String::new()], false);
        for c in line.trim().chars() {
            match c {
                '\'' => quoted = !quoted,
                ' ' if !quoted => words.push(String::new()),
                c => words.last_mut().unwrap().push(c),
            }
        }
        words.into_iter().filter(|word| !word.is_empty()).collect()
    }

    #[test]
    fn help_of_every_command_has_examples_and_they_parse() {
        for (path, command) in leaves() {
            let after = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            let joined = after.replace("\\\n", " ");
            // A setting of the server has its command in quotes.
            let examples: Vec<&str> = joined
                .lines()
                .filter_map(|line| line.strip_prefix("  ")?.split("_command = '").last())
                .map(str::trim)
                .filter(|line| line.starts_with("walden "))
                .collect();
            assert!(after.starts_with("Example"), "{path} --help: {after:?}");
            let own = examples.iter().any(|line| line.starts_with(&path));
            assert!(own, "{path} --help has no example of its own: {after:?}");
            for example in examples {
                let line = example.split([';', '|', '>', '#']).next().unwrap();
                if let Err(error) = Cli::try_parse_from(words(line)) {
                    panic!("{path} --help: {example}: {error}");
                }
            }
        }
    }

    #[test]
    fn every_command_and_every_option_has_a_help_text() {
        for (path, command) in leaves() {
            assert!(command.get_about().is_some(), "{path}");
            for option in command.get_arguments().filter(|option| !option.is_hide_set()) {
                let help = option.get_help().map(ToString::to_string).unwrap_or_default();
                assert!(!help.trim().is_empty(), "{path}: {}", option.get_id());
            }
        }
    }
}
