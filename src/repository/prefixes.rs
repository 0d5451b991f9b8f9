//! Listings of many prefixes of one repository at once.

use super::Repository;
use crate::parallel::in_parallel;
use crate::storage::{self, Object};

/// How many listings are asked for at once.
const LISTINGS: usize = 8;

/// Lists everything below each of `prefixes`, several at once, in the order of keys.
pub fn list_prefixes(
    repository: &Repository,
    prefixes: impl IntoIterator<Item = String>,
) -> storage::Result<Vec<Object>> {
    let prefixes: Vec<String> = prefixes.into_iter().collect();
    let lists = in_parallel(&prefixes, LISTINGS, |prefix| {
        repository.storage().list(prefix, "", usize::MAX, &repository.deadline())
    });
    let mut found = Vec::new();
    for list in lists {
        found.extend(list?);
    }
    found.sort_by(|a: &Object, b| a.key.cmp(&b.key));
    Ok(found)
}
