//! Circuit breakers: which repositories failed lately and are left alone for a while.

use super::{Index, now_us, sql};
use crate::kind::Result;
use rusqlite::{OptionalExtension, params};
use std::time::Duration;

/// After the first failure a repository is left alone this long, and twice as long after each further one.
const FIRST_REST: Duration = Duration::from_secs(5);
/// The longest that it is left alone.
const LONGEST_REST: Duration = Duration::from_mins(5);

/// Since when a repository fails, a version of the schema by itself; none for one that failed before there was this.
pub(super) const SINCE: &str = "ALTER TABLE breaker ADD COLUMN since INTEGER;\n";

/// The state of one repository's breaker.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Breaker {
    /// How many calls failed in a row.
    pub failures: u32,
    /// When the first of them failed, in µs since 1970.
    pub since: Option<i64>,
    /// Until when it is left alone, in µs since 1970.
    pub open_until: i64,
    /// What the last failure was.
    pub last_error: String,
}

impl Breaker {
    /// Returns whether the repository is to be left alone now. A clock that was set back does not keep it closed off:
    /// a rest that is longer than the longest one is over.
    pub fn is_open(&self) -> bool {
        let rest = self.open_until - now_us();
        rest > 0 && rest <= i64::try_from(LONGEST_REST.as_micros()).unwrap_or(i64::MAX)
    }
}

impl Index {
    /// Returns the breaker of the repository at `url`; none if its last call went well.
    pub fn breaker(&self, url: &str) -> Result<Option<Breaker>> {
        let read = self
            .connection
            .prepare_cached("SELECT failures, open_until, last_error, since FROM breaker WHERE url = ?")
            .and_then(|mut statement| {
                statement
                    .query_row([url], |row| {
                        Ok(Breaker {
                            failures: row.get(0)?,
                            open_until: row.get(1)?,
                            last_error: row.get(2)?,
                            since: row.get(3)?,
                        })
                    })
                    .optional()
            });
        sql(read, "read a breaker")
    }

    /// Notes that a call to the repository went well.
    pub fn breaker_succeeded(&self, url: &str) -> Result<()> {
        sql(self.connection.execute("DELETE FROM breaker WHERE url = ?", [url]), "close a breaker")?;
        Ok(())
    }

    /// Notes that a call to the repository failed.
    pub fn breaker_failed(&self, url: &str, error: &str) -> Result<()> {
        let before = self.breaker(url)?;
        let failures = before.as_ref().map_or(0, |breaker| breaker.failures).saturating_add(1);
        let since = before.map_or(Some(now_us()), |breaker| breaker.since);
        let rest = FIRST_REST.saturating_mul(1 << (failures - 1).min(10)).min(LONGEST_REST);
        let open_until = now_us().saturating_add(i64::try_from(rest.as_micros()).unwrap_or(i64::MAX));
        let written = self.connection.execute(
            "INSERT OR REPLACE INTO breaker (url, failures, open_until, last_error, since) VALUES (?, ?, ?, ?, ?)",
            params![url, failures, open_until, error, since],
        );
        sql(written, "open a breaker")?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_breaker_opens_at_the_first_failure_and_closes_at_a_success() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        assert_eq!(index.breaker("a").unwrap(), None);
        index.breaker_failed("a", "down").unwrap();
        let first = index.breaker("a").unwrap().unwrap();
        assert!(first.is_open() && first.failures == 1);
        for _ in 0..50 {
            index.breaker_failed("a", "down").unwrap();
        }
        let late = index.breaker("a").unwrap().unwrap();
        assert!(late.is_open() && late.open_until - now_us() <= 300_000_000);
        assert!(first.since.is_some() && late.since == first.since, "since the first failure");
        assert!(
            !Breaker { open_until: now_us() + 10_000_000_000, ..late }.is_open(),
            "the clock was set back"
        );
        assert_eq!(index.breaker("b").unwrap(), None);
        index.breaker_succeeded("a").unwrap();
        assert_eq!(index.breaker("a").unwrap(), None);
    }
}
