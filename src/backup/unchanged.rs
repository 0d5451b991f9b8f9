//! Telling whether a file is still what it was when an earlier attempt read it.
//!
//! The comparison is made after the checkpoint with which the new backup begins: by then the server has written out
//! every change from before the position at which replay will begin, and each write has given its file a new time. So a
//! file that looks the same now has the content that reading it now would give.

use super::tar_stream::Attributes;
use std::fs::Metadata;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

/// How long a file must not have been changed when it is opened, so that reading counts for later: the kernel notes
/// a write before it carries it out, and its clock for files goes in steps.
const SETTLED: Duration = Duration::from_secs(5);

/// What changes with a file's content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    mtime_ns: i64,
    ctime_ns: i64,
}

impl Identity {
    /// Returns the identity of a file that is open now; none if it was changed so shortly before that a further change
    /// could go unnoticed.
    pub fn of(meta: &Metadata) -> Option<Self> {
        let identity = Self::unchecked(meta);
        let changed = identity.mtime_ns.max(identity.ctime_ns);
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?;
        (changed.saturating_add(SETTLED.as_nanos() as i64) <= now.as_nanos() as i64).then_some(identity)
    }

    fn unchecked(meta: &Metadata) -> Self {
        let ns = |seconds: i64, ns: i64| seconds.saturating_mul(1_000_000_000).saturating_add(ns);
        Self {
            device: meta.dev(),
            inode: meta.ino(),
            size: meta.size(),
            mtime_ns: ns(meta.mtime(), meta.mtime_nsec()),
            ctime_ns: ns(meta.ctime(), meta.ctime_nsec()),
        }
    }

    /// Returns whether `path` is that file, unchanged.
    pub fn is_at(&self, path: &Path) -> bool {
        std::fs::metadata(path).is_ok_and(|meta| meta.is_file() && Self::unchecked(&meta) == *self)
    }
}

/// Returns whether `path` is a directory with these rights.
pub fn is_same_directory(path: &Path, attributes: Attributes) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| {
        let now = Attributes::of(&meta);
        meta.is_dir() && (now.mode, now.uid, now.gid) == (attributes.mode, attributes.uid, attributes.gid)
    })
}

/// Returns the identifier of this run of the kernel; none where it has none. What a file held when the machine went down
/// may never have reached the disk.
pub fn boot_id() -> Option<String> {
    let id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(id.trim().to_owned()).filter(|id| !id.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::{File, FileTimes, metadata};
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_file_is_itself_until_anything_about_it_changes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f");
        std::fs::write(&path, "one").unwrap();
        let meta = metadata(&path).unwrap();
        assert_eq!(Identity::of(&meta), None, "too young");
        let identity = Identity::unchecked(&meta);
        assert!(identity.is_at(&path));
        // Of the same size, and with the old time of modification: the time of change gives it away.
        // The clock for files goes in steps.
        while metadata(&path).unwrap().ctime_nsec() == meta.ctime_nsec() {
            std::fs::write(&path, "two").unwrap();
        }
        let times = FileTimes::new().set_modified(meta.modified().unwrap());
        File::options().write(true).open(&path).unwrap().set_times(times).unwrap();
        assert_eq!(metadata(&path).unwrap().mtime_nsec(), meta.mtime_nsec());
        assert!(!identity.is_at(&path));
        assert!(!identity.is_at(dir.path()) && !identity.is_at(&dir.path().join("gone")));
    }

    #[test]
    fn a_directory_is_the_same_with_the_same_rights() {
        let dir = tempfile::tempdir().unwrap();
        let attributes = Attributes::of(&metadata(dir.path()).unwrap());
        std::fs::write(dir.path().join("f"), "").unwrap();
        assert!(is_same_directory(dir.path(), attributes));
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o711)).unwrap();
        assert!(!is_same_directory(dir.path(), attributes));
        assert!(!is_same_directory(&dir.path().join("f"), attributes));
    }
}
