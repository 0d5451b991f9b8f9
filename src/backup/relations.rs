//! Whose files are bad: from a path to database, schema and relation, as the server itself knows it.

use super::record::BadFile;
use crate::kind::Result;
use crate::server::{Server, quote_literal};
use std::collections::HashMap;
use std::path::Path;

/// How many files are looked up; with more, the disk is the matter and not the relation.
const LOOKED_UP: usize = 200;

/// The OIDs of the tablespaces that every cluster has (`pg_tablespace.dat`).
const DEFAULT_TABLESPACE: u32 = 1663;
const GLOBAL_TABLESPACE: u32 = 1664;

/// Where a relation's file lies.
#[derive(Debug, PartialEq, Eq)]
struct Place {
    tablespace: u32,
    /// None for the relations that all databases share.
    database: Option<u32>,
}

impl Place {
    fn of(path: &Path) -> Option<Self> {
        let parts: Vec<&str> = path.iter().map(|part| part.to_str()).collect::<Option<_>>()?;
        let number = |text: &str| text.parse().ok();
        Some(match parts[..] {
            ["global", _] => Self { tablespace: GLOBAL_TABLESPACE, database: None },
            ["base", database, _] => {
                Self { tablespace: DEFAULT_TABLESPACE, database: Some(number(database)?) }
            }
            ["pg_tblspc", tablespace, _, database, _] => {
                Self { tablespace: number(tablespace)?, database: Some(number(database)?) }
            }
            _ => return None,
        })
    }
}

/// Writes into each file's findings whose it is, where the server can say so. A server that cannot is no failure.
pub fn name(server: &Server, bad_files: &mut [BadFile]) {
    let mut sessions: HashMap<Option<u32>, Option<(Server, String)>> = HashMap::new();
    for bad in bad_files.iter_mut().take(LOOKED_UP) {
        let (Some(place), Some(relation)) = (Place::of(&bad.line.path), bad.relation) else { continue };
        let session = sessions.entry(place.database).or_insert_with(|| {
            connect(server, place.database)
                .inspect_err(|error| tracing::debug!("bad pages are not named: {error}"))
                .ok()
        });
        let Some((session, prefix)) = session else { continue };
        let found = look_up(session, place.tablespace, relation.number).unwrap_or_default();
        if let (Some(name), Some(pages)) = (found, &mut bad.line.bad_pages) {
            pages.relation = Some(format!("{prefix}{name}"));
        }
    }
}

/// Returns a session in the database with this OID, and what its relations' names begin with.
fn connect(server: &Server, database: Option<u32>) -> Result<(Server, String)> {
    let mut session = server.again()?;
    let Some(oid) = database else { return Ok((session, String::new())) };
    let name = session.query_one_text(&format!("select datname from pg_database where oid = {oid}"))?;
    let quoted = session.query_one_text(&format!("select quote_ident({})", quote_literal(&name)))?;
    let session = server.in_database(&name)?;
    Ok((session, format!("{quoted}.")))
}

/// Returns schema and name of the relation with this file; of a TOAST table also whose it is.
fn look_up(session: &mut Server, tablespace: u32, number: u32) -> Result<Option<String>> {
    let rows = session.rows(&format!(
        "select format('%I.%I', n.nspname, c.relname) \
           || coalesce((select format(' (of %s)', o.oid::regclass) from pg_class o where o.reltoastrelid = c.oid), '') \
         from pg_class c join pg_namespace n on n.oid = c.relnamespace \
         where c.oid = pg_filenode_relation({tablespace}, {number})"
    ))?;
    Ok(rows.into_iter().next().and_then(|row| row.into_iter().next().flatten()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_say_tablespace_and_database() {
        let of = |path: &str| Place::of(Path::new(path)).map(|place| (place.tablespace, place.database));
        assert_eq!(of("base/5/1259"), Some((1663, Some(5))));
        assert_eq!(of("global/1260_vm"), Some((1664, None)));
        assert_eq!(of("pg_tblspc/16400/PG_15_202209061/5/16401.1"), Some((16400, Some(5))));
        for other in ["base/x/1", "PG_VERSION", "pg_tblspc/16400", "base/5/deeper/1"] {
            assert_eq!(of(other), None, "{other}");
        }
    }
}
