//! The names of databases and relations, taken where there is a connection: the log has numbers only.

use crate::index::{DatabaseName, IndexHandle, RelationName};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use crate::server::Server;

/// Writes the names of everything that the server has now into the index. A failure is warned of.
pub fn take_names(server: &Server, sysid: SystemIdentifier, index: &IndexHandle) {
    if let Err(error) = try_take(server, sysid, index) {
        tracing::warn!("could not read the names of tables, which walden events shows: {error}");
    }
}

fn try_take(server: &Server, sysid: SystemIdentifier, index: &IndexHandle) -> Result<()> {
    let catalog = server.again()?.catalog()?;
    let now = jiff::Timestamp::now().as_microsecond();
    let seen = (now, now);
    let databases: Vec<DatabaseName> =
        catalog.databases().map(|(oid, name)| DatabaseName { oid, name: name.to_owned(), seen }).collect();
    let relations: Vec<RelationName> = catalog
        .relations()
        .map(|relation| RelationName {
            database: relation.database,
            oid: relation.oid,
            tablespace: relation.tablespace,
            filenode: relation.file,
            kind: relation.kind.letter(),
            name: relation.name.clone(),
            seen,
        })
        .collect();
    index.run(|index| index.record_names(sysid, &databases, &relations));
    Ok(())
}
