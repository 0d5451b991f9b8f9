//! A backup's objects, from whichever repository has a good copy.

use crate::repository::Repository;

/// The repositories that hold one backup.
#[derive(Debug)]
pub struct RepositorySource<'r> {
    repositories: Vec<&'r Repository>,
    folder: String,
}

impl<'r> RepositorySource<'r> {
    /// Returns the source of the backup whose folder is `folder` (ending in `/`).
    pub fn new(repositories: Vec<&'r Repository>, folder: String) -> Self {
        Self { repositories, folder }
    }
}
