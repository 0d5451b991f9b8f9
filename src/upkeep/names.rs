//! The names of databases and relations, taken where there is a connection: the log has numbers only.

use crate::index::{DatabaseName, IndexHandle, RelationName};
use crate::kind::{Error, Result};
use crate::postgres::{CatalogRelation, SystemIdentifier};
use crate::server::{CatalogPart, Server};

/// How many names were taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Names {
    /// Databases.
    pub databases: usize,
    /// Relations.
    pub relations: usize,
}

/// Writes the names of everything that the server has now into the index. A failure is warned of.
pub fn take_names(server: &Server, sysid: SystemIdentifier, index: &IndexHandle) {
    if let Err(error) = try_take_names(server, sysid, index) {
        tracing::warn!("could not read the names of tables, which walden events shows: {error}");
    }
}

/// Writes the names of everything that the server has now into the index, a few thousand at a time, by a session of its
/// own. Returns how many. Fails where there is no index.
pub fn try_take_names(server: &Server, sysid: SystemIdentifier, index: &IndexHandle) -> Result<Names> {
    let now = jiff::Timestamp::now().as_microsecond();
    let seen = (now, now);
    let mut taken = Names::default();
    server.again()?.read_catalog(|part| {
        let (mut databases, mut relations) = (Vec::new(), Vec::new());
        match part {
            CatalogPart::Database { oid, name } => databases.push(DatabaseName { oid, name, seen }),
            CatalogPart::Relations(found) => {
                relations.extend(found.into_iter().map(|relation| named(relation, seen)));
            }
        }
        taken.databases += databases.len();
        taken.relations += relations.len();
        index
            .run(|index| index.record_names(sysid, &databases, &relations))
            .ok_or_else(|| Error::other("there is no index to write them into"))
    })?;
    Ok(taken)
}

fn named(relation: CatalogRelation, seen: (i64, i64)) -> RelationName {
    RelationName {
        database: relation.database,
        oid: relation.oid,
        tablespace: relation.tablespace,
        filenode: relation.file,
        kind: relation.kind.letter(),
        name: relation.name,
        seen,
    }
}
