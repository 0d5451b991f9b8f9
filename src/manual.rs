//! The one place that says which page of the manual helps with what.
//!
//! A reference is the page's path in the sources and below `/usr/share/doc/walden` of the package, with the heading's anchor.
//! References are stable: people look for them.

use crate::kind::{Error, Kind};

/// Returns the reference for a failure of `kind`: the section of its exit code.
pub fn of_kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Other | Kind::Absent => "docs/troubleshooting.md#exit-code-1",
        Kind::Usage => "docs/troubleshooting.md#exit-code-2",
        Kind::Config => "docs/troubleshooting.md#exit-code-3",
        Kind::Repository => "docs/troubleshooting.md#exit-code-4",
        Kind::Conflict => "docs/troubleshooting.md#exit-code-5",
        Kind::Corrupt => "docs/troubleshooting.md#exit-code-6",
        Kind::Server => "docs/troubleshooting.md#exit-code-7",
        Kind::Target => "docs/troubleshooting.md#exit-code-8",
        Kind::Doubt | Kind::MustStop => "docs/troubleshooting.md#exit-code-200",
    }
}

/// Returns the reference for an item of `check`, by its name.
pub fn of_check(item: &str) -> Option<&'static str> {
    Some(match item {
        "config" => "docs/troubleshooting.md#exit-code-3",
        "keys" => "docs/security.md#keys",
        "identity" => "docs/security.md#a-stolen-database-host",
        "data_dir" | "state_dir" => "docs/configuration.md#top-level",
        "index" => "docs/troubleshooting.md#the-index",
        "server" | "privileges" => "docs/configuration.md#server",
        "wal_level" | "archive_mode" | "archive_command" | "archive_library" | "archive_timeout"
        | "full_page_writes" | "fsync" | "data_checksums" | "restore_command" => {
            "docs/check.md#settings-of-the-server"
        }
        "archiver" => "docs/troubleshooting.md#exit-code-7",
        "clock" => "docs/check.md#clocks",
        "cluster" | "write" | "read" | "list" => "docs/troubleshooting.md#exit-code-4",
        "owner" | "place" | "space" => "docs/check.md#a-directory",
        "conditional write" => "docs/configuration.md#s3",
        "delete" => "docs/check.md#who-may-delete",
        "names" => "docs/events.md#names",
        "round trip" => "docs/check.md#the-round-trip",
        _ => return None,
    })
}

/// Returns the reference for a rule of the verdict, by its name.
pub fn of_rule(rule: &str) -> Option<&'static str> {
    Some(match rule {
        "backup-age" | "backup-size" | "unarchived" | "repository-behind" | "free-space" | "wal-disk" => {
            "docs/monitoring.md#rules"
        }
        "bad-pages" => "docs/backup.md#bad-pages",
        "gap" => "docs/recovery.md#a-segment-is-missing---through",
        "bad-wal" => "docs/troubleshooting.md#the-index",
        "repository-down" => "docs/troubleshooting.md#exit-code-4",
        "damaged-objects" | "verify-failed" | "verify-age" => "docs/verify.md#what-is-wrong-and-what-to-do",
        "retention" | "expire-overdue" => "docs/retention.md#which-backups-stay",
        _ => return None,
    })
}

/// Returns the failure as it is told: one line, with the page that helps at the end of its hint. A hint that names a page
/// or `--help` already stays as it is.
pub fn told(error: Error) -> Error {
    if error.hint().is_some_and(|hint| hint.contains("docs/") || hint.contains("--help")) {
        return error;
    }
    let page = of_kind(error.kind());
    error.with_hint(format!("see {page}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_comes_once_and_last() {
        let error = told(Error::config("no").with_hint("look"));
        assert_eq!(error.to_string(), "no; hint: look; see docs/troubleshooting.md#exit-code-3");
        assert_eq!(told(error.clone()).to_string(), error.to_string());
        let error = told(Error::new(Kind::Doubt, "no"));
        assert_eq!(error.to_string(), "no; hint: see docs/troubleshooting.md#exit-code-200");
        let error = told(Error::usage("no").with_hint("see walden recover --help"));
        assert_eq!(error.to_string(), "no; hint: see walden recover --help");
    }

    #[test]
    fn the_section_is_that_of_the_exit_code() {
        for kind in Kind::ALL {
            let code = match kind {
                Kind::Doubt | Kind::MustStop => crate::error::CANNOT_ANSWER,
                kind => crate::error::exit_code(kind),
            };
            assert!(of_kind(kind).ends_with(&format!("#exit-code-{code}")), "{kind:?}");
        }
    }
}
