//! The names of databases and relations, as they were when somebody with a connection looked. A table that was dropped since
//! is still known by the name that it had.

use super::{Index, sql};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use rusqlite::{Row, params};
use serde::{Deserialize, Serialize};

pub(super) const SCHEMA: &str = "
CREATE TABLE database_name (
    sysid      TEXT NOT NULL,
    oid        INTEGER NOT NULL,
    name       TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    digested   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (sysid, oid, name)
) WITHOUT ROWID;
CREATE TABLE relation_name (
    sysid      TEXT NOT NULL,
    database   INTEGER NOT NULL,
    oid        INTEGER NOT NULL,
    tablespace INTEGER NOT NULL,
    filenode   INTEGER NOT NULL,
    kind       TEXT NOT NULL,
    name       TEXT NOT NULL,
    first_seen INTEGER NOT NULL,
    last_seen  INTEGER NOT NULL,
    digested   INTEGER NOT NULL DEFAULT 0,
    PRIMARY KEY (sysid, database, oid, tablespace, filenode, name)
) WITHOUT ROWID;
CREATE INDEX relation_catalog ON relation_name (sysid) WHERE oid < 16384;
CREATE INDEX relation_file ON relation_name (sysid, database, filenode);
";

/// A database and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DatabaseName {
    /// The database's OID.
    pub oid: u32,
    /// Its name.
    pub name: String,
    /// When it had that name, in µs since 1970: first and last sight.
    pub seen: (i64, i64),
}

/// A relation and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RelationName {
    /// The database's OID; 0 for a shared relation.
    pub database: u32,
    /// The relation's OID.
    pub oid: u32,
    /// Its tablespace's OID.
    pub tablespace: u32,
    /// Its `relfilenode`; 0 if it has no file.
    pub filenode: u32,
    /// Its `relkind`.
    pub kind: char,
    /// Its name, with the schema, quoted where it needs it.
    pub name: String,
    /// When it had that name and that file, in µs since 1970: first and last sight.
    pub seen: (i64, i64),
}

impl Index {
    /// Writes names that were seen.
    pub fn record_names(
        &self,
        sysid: SystemIdentifier,
        databases: &[DatabaseName],
        relations: &[RelationName],
    ) -> Result<()> {
        let write = || -> rusqlite::Result<()> {
            let transaction = self.connection.unchecked_transaction()?;
            for database in databases {
                self.insert_database(sysid, database, false)?;
            }
            for relation in relations {
                self.insert_relation(sysid, relation, false)?;
            }
            transaction.commit()
        };
        sql(write(), "record names")
    }

    pub(super) fn insert_database(
        &self,
        sysid: SystemIdentifier,
        database: &DatabaseName,
        digested: bool,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO database_name (sysid, oid, name, first_seen, last_seen, digested) VALUES (?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET first_seen = min(first_seen, excluded.first_seen),
                    last_seen = max(last_seen, excluded.last_seen)",
            )?
            .execute(params![
                sysid.to_string(),
                database.oid,
                database.name,
                database.seen.0,
                database.seen.1,
                digested
            ])?;
        Ok(())
    }

    pub(super) fn insert_relation(
        &self,
        sysid: SystemIdentifier,
        relation: &RelationName,
        digested: bool,
    ) -> rusqlite::Result<()> {
        self.connection
            .prepare_cached(
                "INSERT INTO relation_name (sysid, database, oid, tablespace, filenode, kind, name, first_seen, last_seen,
                                            digested)
                 VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
                 ON CONFLICT DO UPDATE SET first_seen = min(first_seen, excluded.first_seen),
                    last_seen = max(last_seen, excluded.last_seen)",
            )?
            .execute(params![
                sysid.to_string(),
                relation.database,
                relation.oid,
                relation.tablespace,
                relation.filenode,
                relation.kind.to_string(),
                relation.name,
                relation.seen.0,
                relation.seen.1,
                digested
            ])?;
        Ok(())
    }

    /// Returns the names that a database had.
    pub fn database_names(&self, sysid: SystemIdentifier, oid: u32) -> Result<Vec<DatabaseName>> {
        let read = || -> rusqlite::Result<Vec<DatabaseName>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT name, first_seen, last_seen FROM database_name WHERE sysid = ? AND oid = ?",
            )?;
            let rows = statement.query_map(params![sysid.to_string(), oid], |row| {
                Ok(DatabaseName { oid, name: row.get(0)?, seen: (row.get(1)?, row.get(2)?) })
            })?;
            rows.collect()
        };
        sql(read(), "look up a database")
    }

    /// Returns the relations that had an OID: one for each name and file.
    pub fn relations_of_oid(
        &self,
        sysid: SystemIdentifier,
        database: u32,
        oid: u32,
    ) -> Result<Vec<RelationName>> {
        self.relations("oid = ?3", params![sysid.to_string(), database, oid])
    }

    /// Returns the relations that had a file.
    pub fn relations_of_file(
        &self,
        sysid: SystemIdentifier,
        database: u32,
        tablespace: u32,
        filenode: u32,
    ) -> Result<Vec<RelationName>> {
        self.relations(
            "filenode = ?3 AND tablespace = ?4",
            params![sysid.to_string(), database, filenode, tablespace],
        )
    }

    /// Returns database (0 for a shared one), OID and file of the system catalogs whose file is not the one that initdb made.
    pub fn moved_catalogs(&self, sysid: SystemIdentifier) -> Result<Vec<(u32, u32, u32)>> {
        let read = || -> rusqlite::Result<Vec<(u32, u32, u32)>> {
            let mut statement = self.connection.prepare_cached(
                "SELECT database, oid, filenode FROM relation_name INDEXED BY relation_catalog
                 WHERE sysid = ? AND oid < 16384",
            )?;
            let rows = statement
                .query_map([sysid.to_string()], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)))?;
            rows.collect()
        };
        sql(read(), "look for system catalogs")
    }

    fn relations(&self, which: &str, key: &[&dyn rusqlite::ToSql]) -> Result<Vec<RelationName>> {
        let read = || -> rusqlite::Result<Vec<RelationName>> {
            let mut statement = self.connection.prepare_cached(&format!(
                "SELECT {RELATION} FROM relation_name WHERE sysid = ?1 AND database = ?2 AND {which}"
            ))?;
            let rows = statement.query_map(key, relation_at)?;
            rows.collect()
        };
        sql(read(), "look up a relation")
    }
}

/// Returns the one of `seen` that was there at `time` (µs since 1970), or the nearest to it; of several the one that was seen
/// last.
pub fn nearest<T>(known: &[T], seen: impl Fn(&T) -> (i64, i64), time: i64) -> Option<&T> {
    known.iter().min_by_key(|item| {
        let (first, last) = seen(item);
        (first.saturating_sub(time).max(time.saturating_sub(last)).max(0), std::cmp::Reverse(last))
    })
}

pub(super) const RELATION: &str = "database, oid, tablespace, filenode, kind, name, first_seen, last_seen";

/// Reads what [`RELATION`] names.
pub(super) fn relation_at(row: &Row<'_>) -> rusqlite::Result<RelationName> {
    Ok(RelationName {
        database: row.get(0)?,
        oid: row.get(1)?,
        tablespace: row.get(2)?,
        filenode: row.get(3)?,
        kind: row.get::<_, String>(4)?.chars().next().unwrap_or('?'),
        name: row.get(5)?,
        seen: (row.get(6)?, row.get(7)?),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_relation_has_the_name_that_it_had_nearest_to_the_time() {
        let dir = tempfile::tempdir().unwrap();
        let index = Index::open(&dir.path().join("i")).unwrap();
        let sysid = SystemIdentifier(7);
        let named = |name: &str, filenode, seen| RelationName {
            database: 5,
            oid: 16_384,
            tablespace: 1663,
            filenode,
            kind: 'r',
            name: name.into(),
            seen,
        };
        let database = |name: &str, seen| DatabaseName { oid: 5, name: name.into(), seen };
        index.record_names(sysid, &[database("a", (10, 10))], &[named("public.a", 1, (10, 10))]).unwrap();
        index.record_names(sysid, &[database("a", (20, 20))], &[named("public.a", 1, (20, 20))]).unwrap();
        index.record_names(sysid, &[database("b", (40, 40))], &[named("public.b", 2, (40, 40))]).unwrap();
        let of_oid = index.relations_of_oid(sysid, 5, 16_384).unwrap();
        let by_oid = |time| nearest(&of_oid, |relation| relation.seen, time).unwrap().clone();
        assert_eq!(by_oid(0).seen, (10, 20));
        let names = [0, 15, 25, 35, 90].map(|time| by_oid(time).name);
        assert_eq!(names, ["public.a", "public.a", "public.a", "public.b", "public.b"]);
        let by_file = |filenode| index.relations_of_file(sysid, 5, 1663, filenode).unwrap();
        assert_eq!(by_file(2)[0].name, "public.b");
        assert_eq!(by_file(3), []);
        let databases = index.database_names(sysid, 5).unwrap();
        assert_eq!(nearest(&databases, |database| database.seen, 50).unwrap().name, "b");
    }
}
