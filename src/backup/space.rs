//! Whether a backup will fit: repositories with a bound are asked before anything is read.

use crate::kind::{Error, Kind};
use crate::repository::{ClusterKeys, Repository, list_backups, read_summary};

/// The best compression that is believed of a database of which there is no backup yet: one below a tenth of the space is
/// refused, and one that may not do is warned of.
const BEST_RATIO: f64 = 0.1;

/// Fails if a backup of about `size` bytes of files will not fit into the repository, as far as that can be told: by what
/// the newest backup there takes of its files' size, else only where no compression could help.
pub fn check(repository: &Repository, keys: &ClusterKeys, size: u64) -> Result<(), Error> {
    let Some(free) = repository.storage().free_space() else { return Ok(()) };
    if free >= size {
        return Ok(());
    }
    let ratio = newest_ratio(repository, keys);
    let needed = (size as f64 * ratio.unwrap_or(BEST_RATIO)) as u64;
    if free < needed {
        return Err(Error::new(
            Kind::Repository,
            format!(
                "repository \"{}\" has {} MB of free space, and the backup will take about {} MB or more",
                repository.name(),
                free >> 20,
                needed >> 20
            ),
        )
        .with_hint(format!("make room in {}", repository.url())));
    }
    if ratio.is_none() {
        tracing::warn!(
            "repository \"{}\" has {} MB of free space for a database of {} MB: the backup may not fit",
            repository.name(),
            free >> 20,
            size >> 20
        );
    }
    Ok(())
}

/// Returns what the newest backup in the repository takes there of its files' size.
fn newest_ratio(repository: &Repository, keys: &ClusterKeys) -> Option<f64> {
    let newest = list_backups(repository, keys).ok()?.pop()?;
    let summary = read_summary(repository, keys, &newest).ok()?;
    (summary.size > 0).then(|| summary.stored_size as f64 / summary.size as f64)
}
