//! Notifications that are to be delivered, and the last verdict.

use super::{Index, now_us, sql};
use crate::kind::Result;
use rusqlite::{OptionalExtension, params};

/// The tables, a version of the schema by itself.
pub(super) const SCHEMA: &str = "
CREATE TABLE notification (
    id           INTEGER PRIMARY KEY,
    channel      TEXT NOT NULL,
    body         TEXT NOT NULL,
    created      INTEGER NOT NULL,
    attempts     INTEGER NOT NULL DEFAULT 0,
    next_attempt INTEGER NOT NULL,
    last_error   TEXT
);
CREATE TABLE verdict (
    sysid TEXT PRIMARY KEY,
    text  TEXT NOT NULL,
    since INTEGER NOT NULL
);
";

/// How many notifications wait at most for one channel; older ones make room.
const MOST: i64 = 1000;

/// A notification that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notification {
    /// Its number.
    pub id: i64,
    /// The channel that it goes through.
    pub channel: String,
    /// The event, as JSON.
    pub body: String,
    /// When it was written, in µs since 1970.
    pub created: i64,
    /// How often it was tried in vain.
    pub attempts: u32,
    /// What was in the way the last time.
    pub last_error: Option<String>,
}

impl Index {
    /// Writes a notification, to be delivered from now on.
    pub fn queue_notification(&self, channel: &str, body: &str) -> Result<()> {
        let now = now_us();
        let write = || -> rusqlite::Result<()> {
            self.connection.execute(
                "INSERT INTO notification (channel, body, created, next_attempt) VALUES (?, ?, ?, ?)",
                params![channel, body, now, now],
            )?;
            self.connection.execute(
                "DELETE FROM notification WHERE channel = ?1 AND id NOT IN
                 (SELECT id FROM notification WHERE channel = ?1 ORDER BY id DESC LIMIT ?2)",
                params![channel, MOST],
            )?;
            Ok(())
        };
        sql(write(), "queue a notification")
    }

    /// Returns how many notifications wait.
    pub fn waiting_notifications(&self) -> Result<u64> {
        let read =
            self.connection.query_row("SELECT count(*) FROM notification", [], |row| row.get::<_, i64>(0));
        Ok(sql(read, "count notifications")?.cast_unsigned())
    }

    /// Takes the oldest notification whose time has come for `channel`, so that no other process does for `lease_us` µs.
    pub fn take_notification(&self, channel: &str, lease_us: i64) -> Result<Option<Notification>> {
        let now = now_us();
        let read = self
            .connection
            .prepare_cached(
                "UPDATE notification SET next_attempt = ?3 WHERE id =
                   (SELECT id FROM notification WHERE channel = ?1 AND next_attempt <= ?2 ORDER BY id LIMIT 1)
                 RETURNING id, channel, body, created, attempts, last_error",
            )
            .and_then(|mut statement| {
                statement
                    .query_row(params![channel, now, now.saturating_add(lease_us)], |row| {
                        Ok(Notification {
                            id: row.get(0)?,
                            channel: row.get(1)?,
                            body: row.get(2)?,
                            created: row.get(3)?,
                            attempts: row.get(4)?,
                            last_error: row.get(5)?,
                        })
                    })
                    .optional()
            });
        sql(read, "take a notification")
    }

    /// Removes a notification: it is delivered, or given up.
    pub fn drop_notification(&self, id: i64) -> Result<()> {
        sql(self.connection.execute("DELETE FROM notification WHERE id = ?", [id]), "remove a notification")?;
        Ok(())
    }

    /// Notes that a notification could not be delivered, and that it is to be tried again in `rest_us` µs.
    pub fn notification_failed(&self, id: i64, error: &str, rest_us: i64) -> Result<()> {
        let statement =
            "UPDATE notification SET attempts = attempts + 1, next_attempt = ?, last_error = ? WHERE id = ?";
        let row = params![now_us().saturating_add(rest_us), error, id];
        sql(self.connection.execute(statement, row), "note a notification")?;
        Ok(())
    }

    /// Writes the verdict on a cluster and returns the former one, where it was another; none where it was the same.
    /// Of several processes that find the same change, one is told. The very first has an empty one before it.
    pub fn verdict_changed(
        &self,
        sysid: crate::postgres::SystemIdentifier,
        text: &str,
    ) -> Result<Option<String>> {
        let sysid = sysid.to_string();
        let write = || -> rusqlite::Result<Option<String>> {
            let transaction = rusqlite::Transaction::new_unchecked(
                &self.connection,
                rusqlite::TransactionBehavior::Immediate,
            )?;
            let former: Option<String> = transaction
                .query_row("SELECT text FROM verdict WHERE sysid = ?", [&sysid], |row| row.get(0))
                .optional()?;
            if former.as_deref() == Some(text) {
                return Ok(None);
            }
            transaction.execute(
                "INSERT OR REPLACE INTO verdict (sysid, text, since) VALUES (?, ?, ?)",
                params![sysid, text, now_us()],
            )?;
            transaction.commit()?;
            Ok(Some(former.unwrap_or_default()))
        };
        sql(write(), "keep the verdict")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::postgres::SystemIdentifier;

    fn index() -> (tempfile::TempDir, Index) {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        (dir, index)
    }

    #[test]
    fn a_notification_is_taken_once_and_again_when_its_time_has_come() {
        let (_dir, index) = index();
        index.queue_notification("webhook", "1").unwrap();
        index.queue_notification("command", "2").unwrap();
        assert_eq!(index.waiting_notifications().unwrap(), 2);
        let taken = index.take_notification("webhook", 60_000_000).unwrap().unwrap();
        assert_eq!((taken.body.as_str(), taken.attempts), ("1", 0));
        assert_eq!(index.take_notification("webhook", 0).unwrap(), None, "another process has it");
        index.notification_failed(taken.id, "503", 0).unwrap();
        let again = index.take_notification("webhook", 0).unwrap().unwrap();
        assert_eq!((again.attempts, again.last_error.as_deref()), (1, Some("503")));
        index.drop_notification(again.id).unwrap();
        assert_eq!(index.waiting_notifications().unwrap(), 1);
    }

    #[test]
    fn a_queue_that_nobody_empties_does_not_grow_for_ever() {
        let (_dir, index) = index();
        for n in 0..MOST + 3 {
            index.queue_notification("webhook", &n.to_string()).unwrap();
        }
        assert_eq!(index.waiting_notifications().unwrap(), MOST.cast_unsigned());
        assert_eq!(index.take_notification("webhook", 0).unwrap().unwrap().body, "3");
    }

    #[test]
    fn a_change_of_the_verdict_is_told_once() {
        let (_dir, index) = index();
        let changed = |text: &str| index.verdict_changed(SystemIdentifier(7), text).unwrap();
        assert_eq!(changed("ok").as_deref(), Some(""));
        assert_eq!(changed("ok"), None);
        assert_eq!(changed("critical").as_deref(), Some("ok"));
        assert_eq!(index.verdict_changed(SystemIdentifier(8), "critical").unwrap().as_deref(), Some(""));
    }
}
