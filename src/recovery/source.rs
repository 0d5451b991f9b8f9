//! A backup's objects, from whichever repository has a good copy.

use super::restore::Source;
use crate::kind::{Error, Result};
use crate::repository::Repository;
use crate::repository::backup::StoredObject;
use bytes::Bytes;
use std::io::Read;

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
        let failed = |error| repository.error(&format!("get \"{key}\" from"), &error);
        let stored = repository.storage().get(&key, None, &repository.deadline()).map_err(failed)?;
        let mut body = Vec::with_capacity(object.size as usize);
        stored.take(object.size + 1).read_to_end(&mut body).map_err(|error| {
            Error::new(
                crate::kind::Kind::Repository,
                format!("get \"{key}\" from repository \"{}\": {error}", repository.name()),
            )
        })?;
        Ok(Some(Bytes::from(body)))
    }
    fn name(&self, copy: usize) -> String {
        self.repositories
            .get(copy)
            .map_or_else(String::new, |repository| format!("repository \"{}\"", repository.name()))
    }
}
