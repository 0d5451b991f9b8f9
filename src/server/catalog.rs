//! The names of the server's databases and relations.

use super::Server;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{Catalog, CatalogRelation, RelationKind};

/// How many relations are asked for at a time: a database of a million must not fill memory.
const AT_A_TIME: usize = 5000;

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

/// A part of what the server's catalogs name.
#[derive(Debug)]
pub enum CatalogPart {
    /// A database, before its relations.
    Database {
        /// Its OID.
        oid: u32,
        /// Its name.
        name: String,
    },
    /// Relations of one database, at most 5,000. Shared ones come with the first database only.
    Relations(Vec<CatalogRelation>),
}

impl Server {
    /// Returns the names of all databases and, of those that take connections, of their relations.
    pub fn catalog(&mut self) -> Result<Catalog> {
        let mut catalog = Catalog::new();
        self.read_catalog(|part| {
            match part {
                CatalogPart::Database { oid, name } => catalog.add_database(oid, name),
                CatalogPart::Relations(relations) => {
                    for relation in relations {
                        catalog.add_relation(relation);
                    }
                }
            }
            Ok(())
        })?;
        Ok(catalog)
    }

    /// Hands the names of all databases and, of those that take connections, of their relations to `take`, in parts. Each
    /// database is connected to in turn; one that went away meanwhile, or that the role may not connect to, is named
    /// without its relations. Ends early when `take` fails.
    pub fn read_catalog(&mut self, mut take: impl FnMut(CatalogPart) -> Result<()>) -> Result<()> {
        let mut with_shared = true;
        for row in self.rows("select oid, datname, datallowconn::text from pg_database order by oid")? {
            let [Some(oid), Some(name), Some(allowed)] = &row[..] else { continue };
            take(CatalogPart::Database { oid: number(oid)?, name: name.clone() })?;
            if allowed == "true"
                && let Ok(mut database) = self.in_database(name)
            {
                database.read_relations(with_shared, &mut take)?;
                with_shared = false;
            }
        }
        Ok(())
    }

    /// Hands the relations of the session's database to `take`.
    fn read_relations(
        &mut self,
        with_shared: bool,
        take: &mut impl FnMut(CatalogPart) -> Result<()>,
    ) -> Result<()> {
        let mut after = 0;
        loop {
            let rows =
                self.rows(&format!("{RELATIONS} and c.oid > {after} order by c.oid limit {AT_A_TIME}"))?;
            let last = rows.len() < AT_A_TIME;
            let mut relations = Vec::with_capacity(rows.len());
            for row in rows {
                let [Some(database), Some(oid), Some(tablespace), Some(file), Some(kind), Some(name)] =
                    &row[..]
                else {
                    continue;
                };
                let [database, oid, tablespace, file] =
                    [number(database)?, number(oid)?, number(tablespace)?, number(file)?];
                after = oid;
                let Some(kind) = kind.chars().next().and_then(RelationKind::from_letter) else { continue };
                // Shared relations are seen from every database.
                if database != 0 || with_shared {
                    let name = name.clone();
                    relations.push(CatalogRelation { database, oid, tablespace, file, kind, name });
                }
            }
            take(CatalogPart::Relations(relations))?;
            if last {
                return Ok(());
            }
        }
    }
}

fn number(text: &str) -> Result<u32> {
    text.parse().map_err(|_| Error::new(Kind::Server, format!("the server returned \"{text}\" for an OID")))
}
