//! The names of databases and relations, as a server's catalogs have them.

use std::collections::{BTreeMap, HashMap};

use serde::{Deserialize, Serialize};

use super::ParseError;
use super::wal::RelFileLocator;
use super::wal::events::CatalogFiles;

/// What a relation is (`pg_class.relkind`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum RelationKind {
    /// A table, or a partition.
    #[serde(rename = "r")]
    Table,
    /// A partitioned table, which has no file.
    #[serde(rename = "p")]
    PartitionedTable,
    /// A materialized view.
    #[serde(rename = "m")]
    MaterializedView,
    /// An index.
    #[serde(rename = "i")]
    Index,
    /// A TOAST table.
    #[serde(rename = "t")]
    Toast,
    /// A sequence.
    #[serde(rename = "S")]
    Sequence,
    /// A foreign table, which has no file.
    #[serde(rename = "f")]
    ForeignTable,
}

impl RelationKind {
    /// Returns the kind with that letter in `pg_class.relkind`; `None` for those that hold no rows of their own, such as
    /// views.
    pub fn from_letter(letter: char) -> Option<Self> {
        Some(match letter {
            'r' => Self::Table,
            'p' => Self::PartitionedTable,
            'm' => Self::MaterializedView,
            'i' => Self::Index,
            't' => Self::Toast,
            'S' => Self::Sequence,
            'f' => Self::ForeignTable,
            _ => return None,
        })
    }

    /// Returns the letter in `pg_class.relkind`.
    pub fn letter(self) -> char {
        match self {
            Self::Table => 'r',
            Self::PartitionedTable => 'p',
            Self::MaterializedView => 'm',
            Self::Index => 'i',
            Self::Toast => 't',
            Self::Sequence => 'S',
            Self::ForeignTable => 'f',
        }
    }

    /// Returns whether its rows are those of a user's table.
    pub fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::PartitionedTable | Self::ForeignTable)
    }
}

/// A relation and its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CatalogRelation {
    /// The database's OID; 0 for a shared relation.
    pub database: u32,
    /// The relation's OID.
    pub oid: u32,
    /// Its tablespace's OID.
    pub tablespace: u32,
    /// The number of its file; 0 if it has none.
    pub file: u32,
    /// What it is.
    pub kind: RelationKind,
    /// Its name with the schema, quoted as SQL wants it.
    pub name: String,
}

/// The names of a server's databases and relations.
///
/// Of the system's own relations it holds those whose file no longer bears the number of their OID.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    databases: BTreeMap<u32, String>,
    relations: Vec<CatalogRelation>,
    by_oid: HashMap<(u32, u32), usize>,
    by_file: HashMap<RelFileLocator, usize>,
}

/// A line of a serialised catalog.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Line {
    Relation(CatalogRelation),
    Database { oid: u32, database_name: String },
}

impl Catalog {
    /// Returns an empty catalog.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a database, or gives it another name.
    pub fn add_database(&mut self, oid: u32, name: impl Into<String>) {
        self.databases.insert(oid, name.into());
    }

    /// Adds a relation. Another one that had its file or OID is no longer found by it.
    pub fn add_relation(&mut self, relation: CatalogRelation) {
        let at = self.relations.len();
        self.by_oid.insert((relation.database, relation.oid), at);
        if relation.file != 0 {
            self.by_file.insert(relation.locator(), at);
        }
        self.relations.push(relation);
    }

    /// Returns the databases and their names.
    pub fn databases(&self) -> impl Iterator<Item = (u32, &str)> {
        self.databases.iter().map(|(oid, name)| (*oid, name.as_str()))
    }

    /// Returns a database's name.
    pub fn database(&self, oid: u32) -> Option<&str> {
        self.databases.get(&oid).map(String::as_str)
    }

    /// Returns all relations.
    pub fn relations(&self) -> impl Iterator<Item = &CatalogRelation> {
        self.relations.iter()
    }

    /// Returns the relation with that OID.
    pub fn by_oid(&self, database: u32, oid: u32) -> Option<&CatalogRelation> {
        self.by_oid.get(&(database, oid)).and_then(|at| self.relations.get(*at))
    }

    /// Returns the relation that has that file.
    pub fn by_file(&self, file: RelFileLocator) -> Option<&CatalogRelation> {
        self.by_file.get(&file).and_then(|at| self.relations.get(*at))
    }

    /// Returns where the system catalogs are that were written anew, for the search for events.
    pub fn catalog_files(&self) -> CatalogFiles {
        let mut files = CatalogFiles::default();
        for relation in &self.relations {
            files.insert(relation.database, relation.oid, relation.file);
        }
        files
    }

    /// Returns the catalog as lines of JSON.
    pub fn to_bytes(&self) -> Vec<u8> {
        let databases = self
            .databases
            .iter()
            .map(|(oid, name)| Line::Database { oid: *oid, database_name: name.clone() });
        let relations = self.relations.iter().cloned().map(Line::Relation);
        let mut bytes = Vec::new();
        for line in databases.chain(relations) {
            // Plain data: this cannot fail.
            bytes.extend(serde_json::to_vec(&line).unwrap_or_default());
            bytes.push(b'\n');
        }
        bytes
    }

    /// Returns the catalog that [`Catalog::to_bytes`] wrote.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut catalog = Self::new();
        for line in bytes.split(|&byte| byte == b'\n').filter(|line| !line.is_empty()) {
            match serde_json::from_slice(line) {
                Ok(Line::Relation(relation)) => catalog.add_relation(relation),
                Ok(Line::Database { oid, database_name }) => catalog.add_database(oid, database_name),
                Err(error) => {
                    return Err(ParseError::mismatch(
                        "line of a catalog",
                        error,
                        "a relation or a database as JSON",
                    ));
                }
            }
        }
        Ok(catalog)
    }
}

impl CatalogRelation {
    /// Returns its file.
    pub fn locator(&self) -> RelFileLocator {
        RelFileLocator { tablespace: self.tablespace, database: self.database, relation: self.file }
    }
}
