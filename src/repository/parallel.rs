//! Many calls to one repository at once.

use super::Repository;
use crate::storage::{self, Object};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How many listings are asked for at once.
const LISTINGS: usize = 8;

/// Runs `work` on every item, several at once, and returns the results in the order of the items.
pub fn in_parallel<T: Sync, R: Send>(items: &[T], workers: usize, work: impl Fn(&T) -> R + Sync) -> Vec<R> {
    let results: Mutex<Vec<(usize, R)>> = Mutex::new(Vec::with_capacity(items.len()));
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..workers.min(items.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(item) = items.get(at) else { return };
                    let result = work(item);
                    results.lock().unwrap_or_else(PoisonError::into_inner).push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results.into_iter().map(|(_, result)| result).collect()
}

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
