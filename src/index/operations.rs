//! The log of operations: who did what when, with which outcome.

use super::{Index, now_us, sql};
use crate::kind::{Kind, Result};
use rusqlite::{Row, params};

/// Who did it, and how it ended, a version of the schema by itself; nothing of that is known of earlier operations.
pub(super) const COLUMNS: &str = "
ALTER TABLE operation ADD COLUMN user TEXT;
ALTER TABLE operation ADD COLUMN host TEXT;
ALTER TABLE operation ADD COLUMN exit_code INTEGER;
ALTER TABLE operation ADD COLUMN details TEXT;
";

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Operation {
    /// The command.
    pub command: String,
    /// What it was asked for.
    pub detail: String,
    /// When it began.
    pub started: jiff::Timestamp,
    /// When it ended; none while it runs, or when it was killed.
    pub finished: Option<jiff::Timestamp>,
    /// "done", or the error.
    pub outcome: Option<String>,
    /// The exit code of the command, where it says one.
    pub exit_code: Option<u8>,
    /// Who ran it.
    pub user: Option<String>,
    /// On which machine.
    pub host: Option<String>,
    /// The process.
    pub process: u32,
    /// More, as JSON.
    pub details: Option<String>,
}

/// Which entries of the log are wanted.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct OperationFilter {
    /// Those that began then or later.
    pub since: Option<jiff::Timestamp>,
    /// Those that began before.
    pub until: Option<jiff::Timestamp>,
    /// Those of these commands; empty for all.
    pub commands: Vec<String>,
}

impl Index {
    /// Writes that an operation begins and returns its number.
    pub fn log_start(&self, command: &str, detail: &str) -> Result<i64> {
        let statement =
            "INSERT INTO operation (command, detail, started, process, user, host) VALUES (?, ?, ?, ?, ?, ?)";
        let row = params![command, detail, now_us(), std::process::id(), user(), host()];
        sql(self.connection.execute(statement, row), "log an operation")?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Writes how the operation ended.
    pub fn log_end(&self, operation: i64, outcome: &str) -> Result<()> {
        let statement = "UPDATE operation SET finished = ?, outcome = ? WHERE id = ?";
        sql(self.connection.execute(statement, params![now_us(), outcome, operation]), "log an operation")?;
        Ok(())
    }

    /// Writes what the operation is about.
    pub fn log_subject(&self, operation: i64, subject: &str) -> Result<()> {
        let statement = "UPDATE operation SET detail = ? WHERE id = ?";
        sql(self.connection.execute(statement, params![subject, operation]), "log an operation")?;
        Ok(())
    }

    /// Adds the exit code and details to an operation.
    pub fn log_details(&self, operation: i64, exit_code: u8, details: &str) -> Result<()> {
        let statement = "UPDATE operation SET exit_code = ?, details = ? WHERE id = ?";
        sql(self.connection.execute(statement, params![exit_code, details, operation]), "log an operation")?;
        Ok(())
    }

    /// Returns the newest operations, newest first.
    pub fn operations(&self, limit: usize) -> Result<Vec<Operation>> {
        self.operations_of(&OperationFilter::default(), limit)
    }

    /// Returns the newest operations that the filter lets through, newest first.
    pub fn operations_of(&self, filter: &OperationFilter, limit: usize) -> Result<Vec<Operation>> {
        let us = |time: Option<jiff::Timestamp>| time.map(jiff::Timestamp::as_microsecond);
        let commands = serde_json::to_string(&filter.commands).unwrap_or_else(|_| "[]".to_owned());
        let read = || -> rusqlite::Result<Vec<Operation>> {
            let mut statement = self.connection.prepare(
                "SELECT command, detail, started, finished, outcome, exit_code, user, host, process, details
                 FROM operation
                 WHERE started >= coalesce(?1, started) AND (?2 IS NULL OR started < ?2)
                   AND (?3 = '[]' OR command IN (SELECT value FROM json_each(?3)))
                 ORDER BY id DESC LIMIT ?4",
            )?;
            let limit = i64::try_from(limit).unwrap_or(i64::MAX);
            let rows = statement
                .query_map(params![us(filter.since), us(filter.until), commands, limit], operation)?;
            rows.collect()
        };
        sql(read(), "read the log of operations")
    }
}

fn operation(row: &Row<'_>) -> rusqlite::Result<Operation> {
    let time = |us: i64| jiff::Timestamp::from_microsecond(us).unwrap_or_default();
    Ok(Operation {
        command: row.get(0)?,
        detail: row.get(1)?,
        started: time(row.get(2)?),
        finished: row.get::<_, Option<i64>>(3)?.map(time),
        outcome: row.get(4)?,
        exit_code: row.get(5)?,
        user: row.get(6)?,
        host: row.get(7)?,
        process: row.get(8)?,
        details: row.get(9)?,
    })
}

impl super::IndexHandle {
    /// Writes how the operation ended, with the exit code that `code_of` makes of the error's kind, and with details.
    pub fn log_end_with<T>(
        &self,
        operation: Option<i64>,
        result: &Result<T>,
        code_of: fn(Kind) -> u8,
        details: &str,
    ) {
        self.log_end(operation, result);
        if let Some(operation) = operation {
            let code = result.as_ref().err().map_or(0, |error| code_of(error.kind()));
            self.run(|index| index.log_details(operation, code, details));
        }
    }
}

/// Returns the name of this process's user, and who called sudo.
fn user() -> String {
    let uid = nix::unistd::getuid();
    let known = nix::unistd::User::from_uid(uid).ok().flatten();
    let name = known.map_or_else(|| uid.to_string(), |user| user.name);
    match std::env::var("SUDO_USER") {
        Ok(caller) if !caller.is_empty() && caller != name => format!("{name} (sudo by {caller})"),
        _ => name,
    }
}

/// Returns the name of this machine.
pub fn host() -> String {
    nix::sys::utsname::uname().map(|name| name.nodename().to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::{SignedDuration, Timestamp};

    #[test]
    fn the_log_says_who_did_what_and_filters_it() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let first = index.log_start("expire", "primary").unwrap();
        index.log_end(first, "done").unwrap();
        index.log_details(first, 0, "{\"objects\":3}").unwrap();
        index.log_start("recover", "latest").unwrap();
        let all = index.operations(10).unwrap();
        assert_eq!((all.len(), all[0].command.as_str()), (2, "recover"));
        assert_eq!((all[0].finished, all[0].exit_code), (None, None));
        assert_eq!((all[1].exit_code, all[1].details.as_deref()), (Some(0), Some("{\"objects\":3}")));
        assert!(all.iter().all(|one| one.user.is_some() && one.host.is_some()));
        let count = |filter: OperationFilter| index.operations_of(&filter, 10).unwrap().len();
        let later = Timestamp::now().checked_add(SignedDuration::from_secs(1)).unwrap();
        assert_eq!(count(OperationFilter { commands: vec!["expire".into()], ..Default::default() }), 1);
        assert_eq!(count(OperationFilter { since: Some(later), ..Default::default() }), 0);
        assert_eq!(count(OperationFilter { until: Some(later), ..Default::default() }), 2);
    }
}
