//! The server's settings.

use super::{Item, Subject};
use crate::kind::{Error, Kind, Result};
use crate::server::Server;
use std::collections::BTreeMap;
use std::path::Path;

/// What is asked for.
const NAMES: [&str; 9] = [
    "archive_mode",
    "archive_command",
    "archive_library",
    "archive_timeout",
    "wal_level",
    "full_page_writes",
    "fsync",
    "data_checksums",
    "restore_command",
];

type Say<'a> = &'a mut dyn FnMut(Item);

/// Says an item for each setting that matters. Returns whether the server archives.
pub(super) fn check(subject: &Subject, server: &mut Server, standby: bool, say: Say<'_>) -> Result<bool> {
    let settings = server.settings(&NAMES)?;
    let pending = server.pending_restart(&NAMES)?;
    let judge = Judge { subject, settings, pending, standby };
    say(judge.wal_level());
    let (archives, item) = judge.archive_mode();
    say(item);
    if archives {
        say(judge.archive_command());
        if let Some(item) = judge.archive_library() {
            say(item);
        }
    }
    if !standby {
        say(judge.archive_timeout());
    }
    say(judge.full_page_writes());
    say(judge.fsync());
    say(judge.data_checksums());
    if standby {
        say(judge.restore_command());
    }
    Ok(archives)
}

struct Judge<'a> {
    subject: &'a Subject,
    settings: BTreeMap<String, String>,
    /// Those with a new value that counts only after a restart.
    pending: Vec<String>,
    standby: bool,
}

impl Judge<'_> {
    fn value(&self, name: &str) -> &str {
        self.settings.get(name).map_or("", String::as_str)
    }

    fn failed(name: &str, message: impl Into<String>, hint: impl Into<String>) -> Item {
        Item::failed(name, &Error::new(Kind::Server, message).with_hint(hint))
    }

    fn wal_level(&self) -> Item {
        const NAME: &str = "wal_level";
        match self.value(NAME) {
            "minimal" if self.is_pending(NAME) => {
                Self::failed(NAME, "minimal until the server is restarted", "restart the server")
            }
            "minimal" => Self::failed(
                NAME,
                "minimal: such WAL cannot be replayed over a backup",
                "set wal_level = replica and restart the server",
            ),
            level => Item::ok(NAME, level),
        }
    }

    fn is_pending(&self, name: &str) -> bool {
        self.pending.iter().any(|pending| pending == name)
    }

    fn archive_mode(&self) -> (bool, Item) {
        const NAME: &str = "archive_mode";
        let item = match (self.value(NAME), self.standby) {
            ("always", _) => return (true, Item::ok(NAME, "always")),
            ("on", false) => return (true, Item::ok(NAME, "on")),
            ("on", true) => {
                Item::ok(NAME, "on: this standby archives once it is promoted; until then its primary does")
            }
            ("off", true) => Item::warning(
                NAME,
                "off: nothing would be archived once this standby is promoted",
                "set archive_mode = on here too; it takes a restart",
            ),
            _ if self.is_pending(NAME) => Self::failed(
                NAME,
                "off until the server is restarted: nothing is archived",
                "restart the server",
            ),
            _ => Self::failed(
                NAME,
                "off: nothing is archived, and what happens now cannot be recovered",
                "walden init --apply sets it; then restart the server. A recovered copy begins so, unless it was restored with \
                 --take-over",
            ),
        };
        (false, item)
    }

    fn archive_command(&self) -> Item {
        const NAME: &str = "archive_command";
        let command = self.value(NAME);
        let set = "walden init --apply sets it, without a restart";
        if command.is_empty() {
            return Self::failed(NAME, "empty: nothing is archived", set);
        }
        if does_nothing(command) {
            return Self::failed(NAME, format!("\"{command}\" brings WAL nowhere"), set);
        }
        if !command.contains("walden") || !command.contains("archive-push") {
            return Item::warning(
                NAME,
                format!("\"{command}\" does not run walden archive-push"),
                "a script that runs it is good; the round trip shows whether WAL arrives",
            );
        }
        match named_config(command) {
            Some(named) if same_file(&named, &self.subject.config_path) => Item::ok(NAME, command),
            Some(named) => Self::failed(
                NAME,
                format!(
                    "it names the configuration \"{named}\", and this is \"{}\"",
                    self.subject.config_path.display()
                ),
                format!(
                    "check that one (walden check --config {named}), or let walden init --apply set this one"
                ),
            ),
            None if same_file(
                &self.subject.default_config_path.to_string_lossy(),
                &self.subject.config_path,
            ) =>
            {
                Item::ok(NAME, command)
            }
            None => Item::warning(
                NAME,
                format!(
                    "\"{command}\" names no configuration, and this is \"{}\"",
                    self.subject.config_path.display()
                ),
                "good if the server's environment has WALDEN_CONFIG; the round trip shows where WAL arrives",
            ),
        }
    }

    fn archive_library(&self) -> Option<Item> {
        const NAME: &str = "archive_library";
        let library = self.settings.get(NAME)?;
        Some(if library.is_empty() {
            Item::ok(NAME, "empty")
        } else {
            Self::failed(
                NAME,
                format!("\"{library}\": the server gives its WAL to that, and does not run archive_command"),
                "ALTER SYSTEM RESET archive_library, or its lines out of postgresql.conf; then reload",
            )
        })
    }

    fn archive_timeout(&self) -> Item {
        const NAME: &str = "archive_timeout";
        match self.value(NAME) {
            "0" => Item::warning(
                NAME,
                "0: on a quiet server the newest commits wait until a segment is full, and are lost with the server",
                "set it to the time that you can afford to lose, such as archive_timeout = 1min",
            ),
            seconds => Item::ok(NAME, format!("{seconds} s")),
        }
    }

    fn full_page_writes(&self) -> Item {
        const NAME: &str = "full_page_writes";
        match self.value(NAME) {
            "off" => Item::warning(
                NAME,
                "off: a crash may leave torn pages, and backups from a standby are refused",
                "set full_page_writes = on, unless the filesystem makes writes of a page atomic",
            ),
            value => Item::ok(NAME, value),
        }
    }

    fn fsync(&self) -> Item {
        match self.value("fsync") {
            "off" => Item::warning(
                "fsync",
                "off: a crash of the machine may damage the database, and WAL with it",
                "set fsync = on",
            ),
            value => Item::ok("fsync", value),
        }
    }

    fn data_checksums(&self) -> Item {
        const NAME: &str = "data_checksums";
        match self.value(NAME) {
            "off" => Item::warning(
                NAME,
                "off: base backups cannot see damaged pages",
                "pg_checksums --enable, while the server is down",
            ),
            value => Item::ok(NAME, value),
        }
    }

    fn restore_command(&self) -> Item {
        const NAME: &str = "restore_command";
        let command = self.value(NAME);
        if command.contains("archive-get") {
            return Item::ok(NAME, command);
        }
        let found = if command.is_empty() { "empty".to_owned() } else { format!("\"{command}\"") };
        Item::warning(
            NAME,
            format!(
                "{found}: the standby does not take WAL from the archive when its primary has it no longer"
            ),
            "walden init prints the line",
        )
    }
}

/// Returns whether a command is one of the shell's ways to do nothing.
fn does_nothing(command: &str) -> bool {
    let word = command.split_whitespace().next().unwrap_or_default();
    let name = word.rsplit('/').next().unwrap_or(word);
    matches!(name, "true" | "false" | ":" | "exit")
}

/// Returns the configuration that a command names: by `--config`, or by `WALDEN_CONFIG=` before it.
fn named_config(command: &str) -> Option<String> {
    let unquoted = |word: &str| word.trim_matches(['\'', '"']).replace("%%", "%");
    let words: Vec<&str> = command.split_whitespace().collect();
    for (at, word) in words.iter().enumerate() {
        if let Some(value) = word.strip_prefix("--config=").or_else(|| word.strip_prefix("WALDEN_CONFIG=")) {
            return Some(unquoted(value));
        }
        if *word == "--config" {
            return words.get(at + 1).map(|word| unquoted(word));
        }
    }
    None
}

fn same_file(named: &str, path: &Path) -> bool {
    let real = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    real(Path::new(named)) == real(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_configuration_that_a_command_names_is_found() {
        let named = |command: &str| named_config(command);
        assert_eq!(named("walden archive-push %p"), None);
        assert_eq!(named("/usr/bin/walden --config /a/b.toml archive-push %p").as_deref(), Some("/a/b.toml"));
        assert_eq!(named("walden archive-push --config='/a/100%%' %p").as_deref(), Some("/a/100%"));
        assert_eq!(named("WALDEN_CONFIG=/a walden archive-push %p").as_deref(), Some("/a"));
        for nothing in ["/bin/true", "true", "exit 0", ": %p", "/bin/false"] {
            assert!(does_nothing(nothing), "{nothing}");
        }
        assert!(!does_nothing("/opt/true-archiver/walden archive-push %p"));
    }
}
