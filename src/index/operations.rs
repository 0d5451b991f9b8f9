//! The log of operations: who did what, with which outcome.

use super::{Index, now_us, sql};
use crate::kind::Result;
use rusqlite::params;

/// One entry of the log.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
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
}

impl Index {
    /// Writes that an operation begins and returns its number.
    pub fn log_start(&self, command: &str, detail: &str) -> Result<i64> {
        let statement = "INSERT INTO operation (command, detail, started, process) VALUES (?, ?, ?, ?)";
        sql(
            self.connection.execute(statement, params![command, detail, now_us(), std::process::id()]),
            "log an operation",
        )?;
        Ok(self.connection.last_insert_rowid())
    }

    /// Writes how the operation ended.
    pub fn log_end(&self, operation: i64, outcome: &str) -> Result<()> {
        let statement = "UPDATE operation SET finished = ?, outcome = ? WHERE id = ?";
        sql(self.connection.execute(statement, params![now_us(), outcome, operation]), "log an operation")?;
        Ok(())
    }

    /// Returns the newest operations, newest first.
    pub fn operations(&self, limit: usize) -> Result<Vec<Operation>> {
        let time = |us: i64| jiff::Timestamp::from_microsecond(us).unwrap_or_default();
        let read = || -> rusqlite::Result<Vec<Operation>> {
            let mut statement = self.connection.prepare(
                "SELECT command, detail, started, finished, outcome FROM operation ORDER BY id DESC LIMIT ?",
            )?;
            let rows = statement.query_map([limit as i64], |row| {
                Ok(Operation {
                    command: row.get(0)?,
                    detail: row.get(1)?,
                    started: time(row.get(2)?),
                    finished: row.get::<_, Option<i64>>(3)?.map(time),
                    outcome: row.get(4)?,
                })
            })?;
            rows.collect()
        };
        sql(read(), "read the log of operations")
    }
}
