//! A repository in a directory: where it is, whose, and its space.

use super::host::user;
use super::{Item, Shared};
use crate::durable::{DiskSpace, disk_space};
use crate::kind::{Error, Kind};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// How many segments must fit at the least.
const LEAST_SEGMENTS: u64 = 16;
/// The part of the filesystem below which free space is pointed out.
const LITTLE: f64 = 0.05;

/// Checks the directory `root` of a repository that answers.
pub(super) fn check(shared: &Shared, root: &Path, say: &mut dyn FnMut(Item)) {
    let subject = &shared.subject;
    let (Ok(data), Ok(place)) = (std::fs::metadata(&subject.data_dir), std::fs::metadata(root)) else {
        return;
    };
    let own = root.join(&subject.cluster);
    let owner = std::fs::metadata(&own).map_or(place.uid(), |meta| meta.uid());
    if owner == data.uid() {
        say(Item::ok("owner", user(owner)));
    } else {
        let (owner, server) = (user(owner), user(data.uid()));
        let message = format!("\"{}\" belongs to {owner}, and the server runs as {server}", own.display());
        let error = Error::new(Kind::Repository, message);
        say(Item::failed("owner", &error.with_hint(format!("chown -R {server} {}", own.display()))));
    }
    if place.dev() == data.dev() {
        say(Item::risk(
            "place",
            format!(
                "\"{}\" is on the filesystem of the data directory: both are lost with one disk",
                root.display()
            ),
            "mount another disk there, or add a repository elsewhere",
        ));
    } else {
        say(Item::ok("place", "on another filesystem than the data directory"));
    }
    say(space(shared, root));
}

fn space(shared: &Shared, root: &Path) -> Item {
    let DiskSpace { free, size } = match disk_space(root) {
        Ok(space) => space,
        Err(error) => {
            return Item::warning("space", format!("not known: {error}"), "see the directory's filesystem");
        }
    };
    let segment = shared.control.get().map_or(16 << 20, |control| control.wal_segment_size.bytes());
    let percent = free as f64 / size.max(1) as f64;
    let found = format!("{} MB free, {:.0} %", free >> 20, percent * 100.0);
    if free < segment * LEAST_SEGMENTS {
        let message = format!("{found}: less than {LEAST_SEGMENTS} WAL segments");
        let error = Error::new(Kind::Repository, message);
        return Item::failed(
            "space",
            &error.with_hint("make room; walden expire removes what the retention does not keep"),
        );
    }
    if percent < LITTLE {
        return Item::warning("space", found, "walden expire removes what the retention does not keep");
    }
    Item::ok("space", found)
}
