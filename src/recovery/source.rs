//! A backup's objects, from whichever repository has a good copy.

use super::restore::Source;
use crate::kind::Result;
use crate::repository::backup::StoredObject;
use crate::repository::{Repository, read_stored};
use bytes::Bytes;

/// The repositories that hold one backup.
#[derive(Debug)]
pub struct RepositorySource<'r> {
    repositories: Vec<&'r Repository>,
    folder: String,
}

impl<'r> RepositorySource<'r> {
    /// Returns the source of the backup whose folder is `folder` (ending in `/`). Does no I/O.
    pub fn new(repositories: Vec<&'r Repository>, folder: String) -> Self {
        Self { repositories, folder }
    }
}

impl Source for RepositorySource<'_> {
    fn get(&self, object: &StoredObject, copy: usize) -> Result<Option<Bytes>> {
        let Some(repository) = self.repositories.get(copy) else { return Ok(None) };
        let key = format!("{}{}", self.folder, object.name);
        let body = read_stored(repository, &key, object.size)?;
        Ok(Some(Bytes::from(body)))
    }
    fn name(&self, copy: usize) -> String {
        self.repositories
            .get(copy)
            .map_or_else(String::new, |repository| format!("repository \"{}\"", repository.name()))
    }
}
