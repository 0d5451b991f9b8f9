//! Pages with wrong checksums that backups found, with the names of their relations: `backup.json` only counts them,
//! since names are nobody's matter but the cluster's.

use super::{Index, sql};
use crate::kind::Result;
use rusqlite::params;

/// The table, a version of the schema by itself.
pub(super) const SCHEMA: &str = "
CREATE TABLE bad_pages (
    backup   TEXT NOT NULL,
    path     TEXT NOT NULL,
    relation TEXT,
    pages    INTEGER NOT NULL,
    blocks   TEXT NOT NULL,
    PRIMARY KEY (backup, path)
) WITHOUT ROWID;
";

/// Bad pages of one file, as a backup found them.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct BadPagesRow {
    /// The file, relative to the data directory.
    pub path: String,
    /// Database, schema and relation, where that was found out.
    pub relation: Option<String>,
    /// How many there are.
    pub pages: u64,
    /// The first blocks in the relation, as text.
    pub blocks: String,
}

impl Index {
    /// Notes what a backup found in a file.
    pub fn note_bad_pages(&self, backup: &str, row: &BadPagesRow) -> Result<()> {
        let statement =
            "INSERT OR REPLACE INTO bad_pages (backup, path, relation, pages, blocks) VALUES (?, ?, ?, ?, ?)";
        let values = params![backup, row.path, row.relation, row.pages as i64, row.blocks];
        sql(self.connection.execute(statement, values), "note bad pages")?;
        Ok(())
    }

    /// Returns what a backup found, ordered by path.
    pub fn bad_pages(&self, backup: &str) -> Result<Vec<BadPagesRow>> {
        let read = || -> rusqlite::Result<Vec<BadPagesRow>> {
            let mut statement = self.connection.prepare(
                "SELECT path, relation, pages, blocks FROM bad_pages WHERE backup = ? ORDER BY path",
            )?;
            let rows = statement.query_map([backup], |row| {
                Ok(BadPagesRow {
                    path: row.get(0)?,
                    relation: row.get(1)?,
                    pages: row.get::<_, i64>(2)?.cast_unsigned(),
                    blocks: row.get(3)?,
                })
            })?;
            rows.collect()
        };
        sql(read(), "read the bad pages")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bad_pages_are_kept_by_backup() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("index.sqlite")).unwrap();
        let row = |path: &str, relation: Option<&str>| BadPagesRow {
            path: path.into(),
            relation: relation.map(str::to_owned),
            pages: 2,
            blocks: "1, 7".into(),
        };
        index.note_bad_pages("a", &row("base/5/2", None)).unwrap();
        index.note_bad_pages("a", &row("base/5/1", Some("postgres.public.t"))).unwrap();
        index.note_bad_pages("b", &row("base/5/1", None)).unwrap();
        let found = index.bad_pages("a").unwrap();
        assert_eq!(found, [row("base/5/1", Some("postgres.public.t")), row("base/5/2", None)]);
        assert!(index.bad_pages("c").unwrap().is_empty());
    }
}
