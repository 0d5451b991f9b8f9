//! What makes a restored directory recover, and keeps the copy from doing harm.
//!
//! Everything goes into `postgresql.auto.conf`, which the server reads last, and an empty `recovery.signal`.

use super::plan::Plan;
use super::target::{Target, utc};
use crate::durable;
use crate::kind::{Context, Result};
use std::path::Path;

/// What the server does when it has reached the target (`recovery_target_action`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// It stays in recovery and answers queries.
    Pause,
    /// It becomes a primary on a new timeline.
    Promote,
    /// It stops.
    Shutdown,
}

impl Action {
    /// Returns the server's word for it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Promote => "promote",
            Self::Shutdown => "shutdown",
        }
    }
}

/// How the restored directory is to behave.
#[derive(Debug, Clone)]
pub struct SettingsOptions {
    /// The restore_command, as the server is to run it.
    pub restore_command: String,
    /// What to do at the target.
    pub action: Action,
    /// Whether this directory becomes production: archiving and subscriptions stay as they were.
    pub take_over: bool,
    /// A port of its own.
    pub port: Option<u16>,
    /// The owner of the files that are written: user and group.
    pub owner: Option<(u32, u32)>,
}

/// The targets that the server knows; all but one are emptied, since it refuses more than one.
const TARGETS: [&str; 5] = [
    "recovery_target",
    "recovery_target_lsn",
    "recovery_target_name",
    "recovery_target_time",
    "recovery_target_xid",
];

/// What keeps a copy from doing harm: it does not write into the archive that it came from, takes no slot of its
/// publishers, and runs none of the commands that clean up after the original or announce a new primary. Nor do its commits
/// wait for the original's standbys.
const HARMLESS: [(&str, &str); 5] = [
    ("archive_mode", "off"),
    ("max_logical_replication_workers", "0"),
    ("archive_cleanup_command", ""),
    ("recovery_end_command", ""),
    ("synchronous_standby_names", ""),
];

/// Returns the setting that stands for a target; none for the end of the archive.
pub fn target_setting(target: &Target) -> Option<(&'static str, String)> {
    match target {
        Target::Time(time) => Some(("recovery_target_time", utc(*time))),
        Target::Latest => None,
        Target::Immediate => Some(("recovery_target", "immediate".to_owned())),
        Target::Lsn(lsn) => Some(("recovery_target_lsn", lsn.to_string())),
        Target::Xid(xid) => Some(("recovery_target_xid", xid.to_string())),
        Target::Name(name) => Some(("recovery_target_name", name.clone())),
    }
}

/// Returns the settings for `plan`, in the order in which they are written.
pub fn settings(plan: &Plan<'_>, options: &SettingsOptions) -> Vec<(String, String)> {
    let chosen = target_setting(&plan.stop);
    let mut list: Vec<(String, String)> = vec![("restore_command".into(), options.restore_command.clone())];
    // An empty one that comes after the chosen one is refused like a second target (xlogrecovery.c, assign hooks).
    let others = TARGETS.iter().filter(|name| chosen.as_ref().is_none_or(|(chosen, _)| chosen != *name));
    list.extend(others.map(|name| ((*name).into(), String::new())));
    list.extend(chosen.map(|(name, value)| (name.into(), value)));
    let inclusive = if plan.exclusive { "off" } else { "on" };
    list.push(("recovery_target_inclusive".into(), inclusive.into()));
    list.push(("recovery_target_timeline".into(), plan.timeline.0.to_string()));
    list.push(("recovery_target_action".into(), options.action.word().into()));
    // A delayed standby's would hold up each commit until it is that old, in any archive recovery.
    list.push(("recovery_min_apply_delay".into(), "0".into()));
    if !plan.through.is_empty() && plan.summary.major_version >= 15 {
        // Prefetching asks for segments past the target, and stops at the first that is refused.
        list.push(("recovery_prefetch".into(), "off".into()));
    }
    if options.action == Action::Pause {
        // Without it the server shuts down instead.
        list.push(("hot_standby".into(), "on".into()));
    }
    if !options.take_over {
        list.extend(HARMLESS.map(|(name, value)| (name.into(), value.into())));
        if plan.summary.major_version <= 15 {
            // The original's: the server that pauses at the target would promote by it, and remove it.
            list.push(("promote_trigger_file".into(), String::new()));
        }
    }
    if let Some(port) = options.port {
        list.push(("port".into(), port.to_string()));
    }
    list
}

/// Returns the text of `postgresql.auto.conf`: `old` without the settings that are in `list`, then `list`.
pub fn auto_conf(old: &str, list: &[(String, String)], comment: &str) -> String {
    let set_here = |line: &str| {
        let name =
            line.trim_start().split(|c: char| c == '=' || c.is_whitespace()).next().unwrap_or_default();
        list.iter().any(|(known, _)| known.eq_ignore_ascii_case(name))
    };
    let mut text: String = old
        .lines()
        .filter(|line| !set_here(line) && !line.starts_with(COMMENT))
        .flat_map(|line| [line, "\n"])
        .collect();
    text.push_str(COMMENT);
    text.push_str(comment);
    text.push('\n');
    for (name, value) in list {
        text.push_str(&format!("{name} = {}\n", quote(value)));
    }
    text
}

/// How a comment of ours begins.
const COMMENT: &str = "# walden recover: ";

/// Quotes a value as the server's configuration files want it (guc-file.l): quotes and backslashes doubled.
pub fn quote(value: &str) -> String {
    format!("'{}'", value.replace('\\', "\\\\").replace('\'', "''"))
}

/// Makes the restored directory recover along `plan`. `recovery.signal` comes last: without it nothing starts a
/// recovery by half the settings.
pub fn write(data_dir: &Path, plan: &Plan<'_>, options: &SettingsOptions) -> Result<()> {
    let path = data_dir.join("postgresql.auto.conf");
    let old = std::fs::read_to_string(&path).unwrap_or_default();
    let text = auto_conf(&old, &settings(plan, options), &format!("--until '{}'", plan.target));
    durable::write_atomically(&path, text.as_bytes(), 0o600).context("write settings")?;
    // A backup from a standby carries one, and it would win over recovery.signal.
    match std::fs::remove_file(data_dir.join("standby.signal")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).context("remove standby.signal");
        }
        _ => {}
    }
    let signal = data_dir.join("recovery.signal");
    durable::write_atomically(&signal, b"", 0o600).context("write recovery.signal")?;
    if let Some((uid, gid)) = options.owner {
        for path in [&path, &signal] {
            std::os::unix::fs::chown(path, Some(uid), Some(gid))
                .map_err(durable::at(path))
                .context("chown")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_settings_of_the_same_name_go_and_values_are_quoted() {
        let old =
            "# Do not edit\nprimary_conninfo = 'host=a'\nRecovery_Target_Xid='7'\narchive_mode = 'on'\n";
        let list = [("recovery_target_xid".to_owned(), String::new()), ("archive_mode".into(), "off".into())];
        let text = auto_conf(old, &list, "x");
        assert_eq!(
            text,
            "# Do not edit\nprimary_conninfo = 'host=a'\n# walden recover: x\nrecovery_target_xid = ''\narchive_mode = 'off'\n"
        );
        assert_eq!(auto_conf(&text, &list, "x"), text, "a second time changes nothing");
        assert_eq!(quote(r"it's a \ test"), r"'it''s a \\ test'");
    }
}
