//! The names of the server's databases and relations.

use super::Server;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{Catalog, CatalogRelation, RelationKind};

/// Relations that hold rows, and the system's own only where their files have other numbers than at initdb. Temporary
/// ones are left out: no other session sees them, and the log does not hold them.
const RELATIONS: &str = "
select case when c.relisshared then 0 else d.oid end, c.oid,
       case when c.reltablespace <> 0 then c.reltablespace when c.relisshared then 1664 else d.dattablespace end,
       coalesce(pg_relation_filenode(c.oid), 0), c.relkind, quote_ident(n.nspname) || '.' || quote_ident(c.relname)
from pg_class c join pg_namespace n on n.oid = c.relnamespace
     join pg_database d on d.datname = current_database()
where c.relkind in ('r', 'p', 'm', 'i', 't', 'S', 'f') and c.relpersistence <> 't'
      and (c.oid >= 16384 or pg_relation_filenode(c.oid) >= 16384)";

impl Server {
    /// Returns the names of all databases and, of those that take connections, of their relations. Each is connected to in
    /// turn; one that went away meanwhile, or that the role may not connect to, is named without its relations.
    pub fn catalog(&mut self) -> Result<Catalog> {
        let mut catalog = Catalog::new();
        for row in self.rows("select oid, datname, datallowconn::text from pg_database order by oid")? {
            let [Some(oid), Some(name), Some(allowed)] = &row[..] else { continue };
            catalog.add_database(number(oid)?, name);
            if allowed == "true"
                && let Ok(mut database) = self.in_database(name)
            {
                database.add_relations(&mut catalog)?;
            }
        }
        Ok(catalog)
    }

    /// Adds the relations of the session's database.
    fn add_relations(&mut self, catalog: &mut Catalog) -> Result<()> {
        for row in self.rows(RELATIONS)? {
            let [Some(database), Some(oid), Some(tablespace), Some(file), Some(kind), Some(name)] = &row[..]
            else {
                continue;
            };
            let Some(kind) = kind.chars().next().and_then(RelationKind::from_letter) else { continue };
            let [database, oid, tablespace, file] =
                [number(database)?, number(oid)?, number(tablespace)?, number(file)?];
            // Shared relations are seen from every database.
            if catalog.by_oid(database, oid).is_none() {
                let name = name.clone();
                catalog.add_relation(CatalogRelation { database, oid, tablespace, file, kind, name });
            }
        }
        Ok(())
    }
}

fn number(text: &str) -> Result<u32> {
    text.parse().map_err(|_| Error::new(Kind::Server, format!("the server returned \"{text}\" for an OID")))
}
