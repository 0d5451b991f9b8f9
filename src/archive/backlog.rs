//! Spare time for what a repository missed while it was down.

use super::targets::{Target, Targets};
use crate::index::{IndexHandle, Missing};
use crate::kind::Result;
use crate::postgres::SystemIdentifier;
use crate::repository::{ClusterKeys, copy_object, find_contents};
use std::time::{Duration, Instant};

/// How many files one call copies at most.
const FILES: usize = 16;
/// After this long a call begins no further copy: the server waits for it.
const TIME: Duration = Duration::from_millis(500);

/// Copies some of the files that a repository lacks from one that holds them, as they are stored. A failure is left to
/// later calls, and to `sync`.
pub fn send_some(keys: &ClusterKeys, sysid: SystemIdentifier, targets: &Targets<'_>, index: &IndexHandle) {
    let began = Instant::now();
    for target in &targets.ready {
        // One that failed in this very call is left alone.
        let breaker = index.run(|index| index.breaker(target.repository.url())).flatten();
        if breaker.is_some_and(|breaker| breaker.is_open()) {
            continue;
        }
        let missing = index.run(|index| index.backlog(sysid, target.repository.url(), FILES));
        for file in missing.unwrap_or_default() {
            if began.elapsed() > TIME {
                return;
            }
            match send(keys, target, targets, &file, index) {
                Ok(true) => {
                    index.run(|index| index.record_copied(sysid, &file.name, file.crc, &target.stamp()));
                }
                Ok(false) => {}
                Err(error) => {
                    tracing::warn!("\"{}\" stays in the backlog: {error}", file.name);
                    return;
                }
            }
        }
    }
}

/// Returns whether the repository has the file now; false where no other one holds it, or a damaged object
/// has its place.
fn send(
    keys: &ClusterKeys,
    to: &Target<'_>,
    targets: &Targets<'_>,
    file: &Missing,
    index: &IndexHandle,
) -> Result<bool> {
    let Ok(name) = file.name.parse() else { return Ok(false) };
    for from in targets.ready.iter().filter(|from| from.repository.name() != to.repository.name()) {
        let held = find_contents(from.repository, keys, name, &from.repository.deadline())
            .map_err(|error| from.repository.error("list", &error))?;
        if let Some(object) = held.iter().find(|held| held.crc == file.crc) {
            let (key, url) = (&object.object.key, to.repository.url());
            // What is there and damaged is in the way; sync replaces it.
            let damages = index.run(crate::index::Index::damages).unwrap_or_default();
            if damages.iter().any(|damage| damage.key == *key && damage.url == url) {
                return Ok(false);
            }
            copy_object(from.repository, to.repository, key)?;
            return Ok(true);
        }
    }
    Ok(false)
}
