//! The sections about watching: `[status]`, from where on its rules speak, and `[notify]`, who hears of what.

use super::parse_duration;
use crate::kind::{Error, Result};
use crate::upkeep::notify::{Channels, EventKind, Webhook};
use crate::upkeep::verdict::Thresholds;
use serde::Deserialize;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Thresholds as they are written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct StatusFile {
    backup_age: Option<String>,
    backup_size: Option<u8>,
    unarchived_warning: Option<String>,
    unarchived_critical: Option<String>,
    repository_behind: Option<String>,
    verify_age: Option<String>,
    free_warning: Option<u8>,
    free_critical: Option<u8>,
    wal_disk: Option<String>,
    expire_overdue: Option<String>,
}

/// Whom to tell, as it is written.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct NotifyFile {
    command: Option<String>,
    webhook: Option<String>,
    ca_file: Option<PathBuf>,
    events: Option<Vec<String>>,
}

pub(super) fn parse_status(file: &StatusFile) -> Result<Thresholds> {
    let default = Thresholds::default();
    let duration = |key: &str, text: &Option<String>, default| match text {
        Some(text) => parse_duration(&format!("status.{key}"), text),
        None => Ok(default),
    };
    let percent = |key: &str, value: Option<u8>, default: u8| match value {
        Some(value) if value > 100 => {
            Err(Error::config(format!("status.{key} = {value}: it is a percentage, 0 to 100")))
        }
        value => Ok(value.unwrap_or(default)),
    };
    let found = Thresholds {
        backup_age: duration("backup_age", &file.backup_age, default.backup_age)?,
        backup_size: percent("backup_size", file.backup_size, default.backup_size)?,
        unarchived_warning: duration(
            "unarchived_warning",
            &file.unarchived_warning,
            default.unarchived_warning,
        )?,
        unarchived_critical: duration(
            "unarchived_critical",
            &file.unarchived_critical,
            default.unarchived_critical,
        )?,
        repository_behind: duration("repository_behind", &file.repository_behind, default.repository_behind)?,
        verify_age: duration("verify_age", &file.verify_age, default.verify_age)?,
        free_warning: percent("free_warning", file.free_warning, default.free_warning)?,
        free_critical: percent("free_critical", file.free_critical, default.free_critical)?,
        wal_disk: duration("wal_disk", &file.wal_disk, default.wal_disk)?,
        expire_overdue: duration("expire_overdue", &file.expire_overdue, default.expire_overdue)?,
    };
    if found.unarchived_critical < found.unarchived_warning {
        return Err(Error::config("status.unarchived_critical is shorter than status.unarchived_warning"));
    }
    if found.free_critical > found.free_warning {
        return Err(Error::config("status.free_critical is larger than status.free_warning"));
    }
    Ok(found)
}

pub(super) fn parse_notify(file: NotifyFile, base: &Path) -> Result<Channels> {
    let ca_file = file.ca_file.map(|path| base.join(path));
    let webhook = file.webhook.map(|url| Webhook::new(url, ca_file)).transpose()?;
    if file.command.as_deref().is_some_and(|command| command.trim().is_empty()) {
        return Err(Error::config("notify.command is empty"));
    }
    let events: BTreeSet<EventKind> = match file.events {
        None => EventKind::ALL.into_iter().collect(),
        Some(names) => names.iter().map(|name| event(name)).collect::<Result<_>>()?,
    };
    Ok(Channels { command: file.command, webhook, events })
}

fn event(name: &str) -> Result<EventKind> {
    EventKind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
        let known: Vec<&str> = EventKind::ALL.iter().map(|kind| kind.name()).collect();
        Error::config(format!("notify.events: \"{name}\" is no event"))
            .with_hint(format!("they are {}", known.join(", ")))
    })
}

#[cfg(test)]
mod tests {
    use crate::config::Config;
    use std::path::Path;
    use std::time::Duration;

    const REST: &str = "cluster = \"a\"\ndata_dir = \"d\"\nstate_dir = \"s\"\nencryption = \"none\"\n\
        [[repository]]\nname = \"p\"\nurl = \"file:///x\"\n";

    fn parse(section: &str) -> crate::kind::Result<Config> {
        Config::parse(&format!("{REST}{section}\n"), Path::new("/etc/walden/walden.toml"))
    }

    #[test]
    fn thresholds_and_channels_are_read_and_their_paths_resolved() {
        let config = parse(
            "[status]\nbackup_age = \"49h\"\nfree_warning = 10\n[notify]\ncommand = \"cat\"\n\
             webhook = \"https://x.example/y\"\nca_file = \"ca.pem\"\nevents = [\"backup-failed\"]",
        )
        .unwrap();
        assert_eq!(config.status.backup_age, Duration::from_hours(49));
        assert_eq!((config.status.free_warning, config.status.free_critical), (10, 5));
        assert_eq!(config.notify.events.len(), 1);
        let webhook = config.notify.webhook.unwrap();
        assert_eq!(webhook.ca_file.as_deref(), Some(Path::new("/etc/walden/ca.pem")));
        assert!(parse("").unwrap().notify.is_empty());
    }

    #[test]
    fn what_cannot_be_is_refused_in_one_line() {
        for (section, says) in [
            ("[status]\nfree_warning = 101", "0 to 100"),
            ("[status]\nfree_warning = 4", "free_critical is larger"),
            ("[status]\nunarchived_warning = \"1h\"", "unarchived_critical is shorter"),
            ("[status]\nbackup_age = \"often\"", "status.backup_age"),
            ("[status]\nbackup_ages = \"1d\"", "nearest known key is \"backup_age\""),
            ("[notify]\nevents = [\"lunch\"]", "\"lunch\" is no event"),
            ("[notify]\ncommand = \" \"", "notify.command is empty"),
            ("[notify]\nwebhook = \"http://x.example/y\"", "https"),
            ("[notify]\nwebhook = \"x\"", "https"),
        ] {
            let error = parse(section).unwrap_err();
            assert_eq!(error.kind(), crate::kind::Kind::Config);
            assert!(error.to_string().contains(says) && !error.to_string().contains('\n'), "{error}");
        }
        assert!(parse("[notify]\nwebhook = \"http://127.0.0.1:8080/x\"").is_ok());
    }
}
