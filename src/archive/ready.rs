//! What else is waiting to be archived: the `.ready` files beside the segment that was asked for.

use crate::postgres::ArchiveFileName;
use std::path::{Path, PathBuf};

/// Returns the names that wait in `pg_wal/archive_status`, in the archiver's order, without `own`. A directory that
/// cannot be read is an empty one: looking ahead is never needed.
pub fn waiting(pg_wal: &Path, own: ArchiveFileName) -> Vec<ArchiveFileName> {
    let Ok(entries) = std::fs::read_dir(pg_wal.join("archive_status")) else { return Vec::new() };
    let mut names: Vec<ArchiveFileName> = entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.strip_suffix(".ready")?.parse().ok())
        .filter(|name| *name != own)
        .collect();
    names.sort_by(ArchiveFileName::cmp_for_archiving);
    names
}

/// Returns whether `name` still waits.
pub fn still_waits(pg_wal: &Path, name: ArchiveFileName) -> bool {
    ready_file(pg_wal, name).exists()
}

fn ready_file(pg_wal: &Path, name: ArchiveFileName) -> PathBuf {
    pg_wal.join(format!("archive_status/{name}.ready"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn histories_come_first_and_strangers_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("archive_status")).unwrap();
        for name in [
            "000000010000000000000003.ready",
            "000000010000000000000002.ready",
            "00000002.history.ready",
            "000000010000000000000001.done",
            "core.ready",
        ] {
            std::fs::write(dir.path().join("archive_status").join(name), "").unwrap();
        }
        let own = "000000010000000000000002".parse().unwrap();
        let names: Vec<String> = waiting(dir.path(), own).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["00000002.history", "000000010000000000000003"]);
        assert!(still_waits(dir.path(), own));
        assert!(waiting(Path::new("/nonexistent"), own).is_empty());
    }
}
