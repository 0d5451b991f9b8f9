//! Damage that was found in the repositories: objects that are there and are not what they should be.

use super::{Index, now_us, sql};
use crate::kind::Result;
use rusqlite::params;

/// The table, a version of the schema by itself.
pub(super) const SCHEMA: &str = "
CREATE TABLE damage (
    url      TEXT NOT NULL,
    key      TEXT NOT NULL,
    what     TEXT NOT NULL,
    found_at INTEGER NOT NULL,
    PRIMARY KEY (url, key)
) WITHOUT ROWID;
";

/// A damaged object.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Damage {
    /// The URL of the repository.
    pub url: String,
    /// The object's key.
    pub key: String,
    /// What is wrong with it.
    pub what: String,
    /// When it was seen last.
    pub found: jiff::Timestamp,
}

impl Index {
    /// Notes that the object `key` in the repository at `url` is damaged.
    pub fn note_damage(&self, url: &str, key: &str, what: &str) -> Result<()> {
        let statement = "INSERT OR REPLACE INTO damage (url, key, what, found_at) VALUES (?, ?, ?, ?)";
        sql(self.connection.execute(statement, params![url, key, what, now_us()]), "note damage")?;
        Ok(())
    }

    /// Forgets the damage of an object that was mended or removed, and what was seen of the object: what is there now is
    /// another copy.
    pub fn forget_damage(&self, url: &str, key: &str) -> Result<()> {
        let forget = || -> rusqlite::Result<()> {
            self.connection.execute("DELETE FROM damage WHERE url = ? AND key = ?", params![url, key])?;
            self.connection.execute(
                "DELETE FROM verified WHERE key = ?2 AND store IN (SELECT id FROM verified_store WHERE url = ?1)",
                params![url, super::verified::below_cluster(key)],
            )?;
            Ok(())
        };
        sql(forget(), "forget damage")
    }

    /// Takes back that an object is damaged: it was checked and is what it should be.
    pub fn refute_damage(&self, url: &str, key: &str) -> Result<()> {
        let statement = "DELETE FROM damage WHERE url = ? AND key = ?";
        sql(self.connection.execute(statement, params![url, key]), "refute damage")?;
        Ok(())
    }

    /// Returns the damage that is known, ordered by repository and key.
    pub fn damages(&self) -> Result<Vec<Damage>> {
        let read = || -> rusqlite::Result<Vec<Damage>> {
            let mut statement =
                self.connection.prepare("SELECT url, key, what, found_at FROM damage ORDER BY url, key")?;
            let rows = statement.query_map([], |row| {
                let found = jiff::Timestamp::from_microsecond(row.get(3)?).unwrap_or_default();
                Ok(Damage { url: row.get(0)?, key: row.get(1)?, what: row.get(2)?, found })
            })?;
            rows.collect()
        };
        sql(read(), "read the damage")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn damage_is_noted_once_for_each_object_and_forgotten_when_mended() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index")).unwrap();
        index.note_damage("file:///a", "x", "first").unwrap();
        index.note_damage("file:///a", "x", "second").unwrap();
        index.note_damage("file:///b", "x", "other").unwrap();
        let damages = index.damages().unwrap();
        assert_eq!(damages.iter().map(|d| d.what.as_str()).collect::<Vec<_>>(), ["second", "other"]);
        index.forget_damage("file:///a", "x").unwrap();
        assert_eq!(index.damages().unwrap().len(), 1);
    }
}
