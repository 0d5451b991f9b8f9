//! The names of databases and relations, taken where there is a connection: the log has numbers only.

use crate::index::{DatabaseName, IndexHandle, RelationName};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use crate::server::Server;

/// Relations that initdb made keep their numbers, so only others are of interest, and those of its whose file is another
/// one since. Temporary ones are nobody's loss.
const RELATIONS: &str = "
    select case when c.relisshared then 0 else d.oid end, c.oid,
           coalesce(nullif(c.reltablespace, 0), d.dattablespace), coalesce(pg_relation_filenode(c.oid), 0), c.relkind,
           format('%I.%I', n.nspname, c.relname)
    from pg_class c join pg_namespace n on n.oid = c.relnamespace
         cross join (select oid, dattablespace from pg_database where datname = current_database()) d
    where (c.oid >= 16384 or pg_relation_filenode(c.oid) >= 16384) and c.relpersistence <> 't'";

/// Writes the names of everything that the server has now into the index. A database that cannot be connected to is left
/// out; what else fails is warned of.
pub fn take_names(server: &Server, sysid: SystemIdentifier, index: &IndexHandle) {
    if let Err(error) = try_take(server, sysid, index) {
        tracing::warn!("could not read the names of tables, which walden events shows: {error}");
    }
}

fn try_take(server: &Server, sysid: SystemIdentifier, index: &IndexHandle) -> Result<()> {
    let now = jiff::Timestamp::now().as_microsecond();
    let seen = (now, now);
    let mut session = server.again()?;
    let listed = session.rows("select oid, datname, datallowconn from pg_database")?;
    let mut databases = Vec::new();
    for row in listed {
        let [Some(oid), Some(name), Some(connects)] = row.as_slice() else { continue };
        let Ok(oid) = oid.parse() else { continue };
        databases.push((DatabaseName { oid, name: name.clone(), seen }, connects == "t"));
    }
    for (database, _) in databases.iter().filter(|(_, connects)| *connects) {
        match relations(server, &database.name, seen) {
            Ok(relations) => {
                index.run(|index| index.record_names(sysid, std::slice::from_ref(database), &relations));
            }
            Err(error) => tracing::debug!("names in database \"{}\" are not read: {error}", database.name),
        }
    }
    let databases: Vec<DatabaseName> = databases.into_iter().map(|(database, _)| database).collect();
    index.run(|index| index.record_names(sysid, &databases, &[]));
    Ok(())
}

fn relations(server: &Server, database: &str, seen: (i64, i64)) -> Result<Vec<RelationName>> {
    let rows = server.in_database(database)?.rows(RELATIONS)?;
    Ok(rows.iter().filter_map(|row| relation(row, seen)).collect())
}

fn relation(row: &[Option<String>], seen: (i64, i64)) -> Option<RelationName> {
    let number = |column: usize| row.get(column)?.as_ref()?.parse::<u32>().ok();
    Some(RelationName {
        database: number(0)?,
        oid: number(1)?,
        tablespace: number(2)?,
        filenode: number(3)?,
        kind: row.get(4)?.as_ref()?.chars().next()?,
        name: row.get(5)?.clone()?,
        seen,
    })
}
