//! Writing files so that they survive a crash: the one place that knows about fsync, link and rename; and the space for them.
//!
//! A rename or a new name is durable only after the directory that holds it was fsynced (fsync(2)); a new
//! directory only after its parent was.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::shutdown::TempFile;

/// The space of a filesystem, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskSpace {
    /// What this user may still write.
    pub free: u64,
    /// All of it.
    pub size: u64,
}

/// Returns the space of the filesystem on which `path` is.
pub fn disk_space(path: &Path) -> io::Result<DiskSpace> {
    let stat = nix::sys::statvfs::statvfs(path)?;
    let bytes = |blocks: u64| blocks.saturating_mul(stat.fragment_size());
    Ok(DiskSpace { free: bytes(stat.blocks_available()), size: bytes(stat.blocks()) })
}

/// Adds the path to an I/O error.
pub fn at(path: &Path) -> impl Fn(io::Error) -> io::Error + '_ {
    move |error| io::Error::new(error.kind(), format!("\"{}\": {error}", path.display()))
}

/// Makes the entries of directory `dir` durable.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir).and_then(|d| d.sync_all()).map_err(at(dir))
}

/// Makes `file` and every directory from its own up to `root` durable.
pub fn sync_up_to(file: &Path, root: &Path) -> io::Result<()> {
    File::open(file).and_then(|f| f.sync_all()).map_err(at(file))?;
    let mut dir = file.parent();
    while let Some(current) = dir {
        sync_dir(current)?;
        if current == root {
            break;
        }
        dir = current.parent();
    }
    Ok(())
}

/// Creates the directories from below `root` down to `dir`, each given to `owner` and made durable in its parent. `root`
/// itself must be there: a missing root is an unmounted disk, not a directory to create.
pub fn create_dirs_below(root: &Path, dir: &Path, owner: Option<(u32, u32)>) -> io::Result<()> {
    let Ok(relative) = dir.strip_prefix(root) else {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "directory lies outside the root"));
    };
    if dir.is_dir() {
        return Ok(());
    }
    let mut current = root.to_path_buf();
    for part in relative.components() {
        let parent = current.clone();
        current.push(part);
        match std::fs::create_dir(&current) {
            Ok(()) => {
                if let Some((uid, gid)) = owner {
                    std::os::unix::fs::chown(&current, Some(uid), Some(gid)).map_err(at(&current))?;
                }
                sync_dir(&parent)?;
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(at(&current)(error)),
        }
    }
    Ok(())
}

/// Returns a fresh temporary file beside `path`, to be linked or renamed onto it. It is removed when dropped, and
/// on SIGTERM.
pub fn temp_beside(path: &Path, mode: u32) -> io::Result<(File, TempFile)> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    loop {
        let candidate = dir.join(format!(".{name}.{}.{:08x}.tmp", std::process::id(), fastrand::u32(..)));
        let create = |path: &Path| {
            OpenOptions::new().write(true).create_new(true).mode(mode).open(path).map_err(at(path))
        };
        match TempFile::create(candidate, create) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            result => return result,
        }
    }
}

/// How long a temporary file is left alone after it was last written to.
const STALE: Duration = Duration::from_hours(1);

/// Removes temporary files beside `fresh`, one of this process, that killed processes left: made by [`temp_beside`] for a
/// name that `of` says yes to, and not written to for an hour. Time is that of the filesystem, as `fresh` shows it. A process
/// that was stopped for so long and goes on cannot name its file any more, and says so.
pub fn remove_stale(fresh: &TempFile, of: impl Fn(&str) -> bool) {
    let modified = |path: &Path| std::fs::symlink_metadata(path).and_then(|meta| meta.modified());
    let (Some(dir), Ok(now)) = (fresh.path().parent(), modified(fresh.path())) else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        if !name.to_str().and_then(temporary_for).is_some_and(&of) {
            continue;
        }
        let age = modified(&entry.path()).ok().and_then(|then| now.duration_since(then).ok());
        if age.is_some_and(|age| age > STALE) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Returns the name for which [`temp_beside`] made the temporary file `name`; none if it is not one of ours.
fn temporary_for(name: &str) -> Option<&str> {
    let (rest, random) = name.strip_prefix('.')?.strip_suffix(".tmp")?.rsplit_once('.')?;
    let (of, process) = rest.rsplit_once('.')?;
    let is_ours = random.len() == 8
        && random.bytes().all(|byte| byte.is_ascii_hexdigit())
        && !process.is_empty()
        && process.bytes().all(|byte| byte.is_ascii_digit());
    (is_ours && !of.is_empty()).then_some(of)
}

/// Gives the temporary file its final name unless that is taken. Returns whether it was free. Durable on return
/// in its own directory; the directories above are the caller's.
pub fn publish_new(temp: TempFile, path: &Path) -> io::Result<bool> {
    let created = match std::fs::hard_link(temp.path(), path) {
        Ok(()) => true,
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
        Err(link_error) => {
            // Some network and FUSE filesystems have no hard links; a rename that does not replace is as good.
            use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
            match renameat2(AT_FDCWD, temp.path(), AT_FDCWD, path, RenameFlags::RENAME_NOREPLACE) {
                Ok(()) => {
                    temp.forget();
                    sync_dir(path.parent().unwrap_or(Path::new(".")))?;
                    return Ok(true);
                }
                Err(nix::errno::Errno::EEXIST) => false,
                Err(_) => return Err(at(path)(link_error)),
            }
        }
    };
    drop(temp);
    if created {
        sync_dir(path.parent().unwrap_or(Path::new(".")))?;
    }
    Ok(created)
}

/// Renames the temporary file onto `path`, replacing what is there, durably.
pub fn publish_over(temp: TempFile, path: &Path) -> io::Result<()> {
    std::fs::rename(temp.path(), path).map_err(at(path))?;
    temp.forget();
    sync_dir(path.parent().unwrap_or(Path::new(".")))
}

/// Writes `content` to `path` in one step: there is either the old file or the whole new one, at any crash.
pub fn write_atomically(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (mut file, temp) = temp_beside(path, mode)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(at(temp.path()))?;
    publish_over(temp, path)
}

/// Writes `content` to `path` in one step, for notes that need not outlive a crash: whoever reads it sees the old
/// content or the whole new one.
pub fn replace(path: &Path, content: &[u8], mode: u32) -> io::Result<()> {
    let (mut file, temp) = temp_beside(path, mode)?;
    file.write_all(content).map_err(at(temp.path()))?;
    std::fs::rename(temp.path(), path).map_err(at(path))?;
    temp.forget();
    Ok(())
}

/// Moves the temporary file onto `path`, by a copy beside it where that is another filesystem; what is at `path` is
/// replaced in one step either way. Not durable: the server makes restored WAL durable itself (`durable_rename` in
/// `KeepFileRestoredFromArchive`).
pub fn move_onto(temp: TempFile, path: &Path, mode: u32) -> io::Result<()> {
    match std::fs::rename(temp.path(), path) {
        Ok(()) => {
            temp.forget();
            Ok(())
        }
        Err(error) if error.kind() == io::ErrorKind::CrossesDevices => {
            let mut from = File::open(temp.path()).map_err(at(temp.path()))?;
            let (mut file, beside) = temp_beside(path, mode)?;
            io::copy(&mut from, &mut file).map_err(at(beside.path()))?;
            std::fs::rename(beside.path(), path).map_err(at(path))?;
            beside.forget();
            Ok(())
        }
        Err(error) => Err(at(path)(error)),
    }
}

/// Writes `content` to a new file at `path`, durably. Returns false where the name is taken.
pub fn write_new(path: &Path, content: &[u8], mode: u32) -> io::Result<bool> {
    let (mut file, temp) = temp_beside(path, mode)?;
    file.write_all(content).and_then(|()| file.sync_all()).map_err(at(temp.path()))?;
    publish_new(temp, path)
}

/// Returns `path` as an absolute one, without asking whether it exists and without resolving links.
pub fn absolute(path: &Path) -> io::Result<PathBuf> {
    std::path::absolute(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn what_killed_processes_left_is_removed_an_hour_later_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let make = |name: &str, age: Duration| {
            let file = File::create(dir.path().join(name)).unwrap();
            file.set_modified(std::time::SystemTime::now() - age).unwrap();
        };
        let (old, young) = (Duration::from_secs(3700), Duration::from_secs(3500));
        make(".a.12.0123abcd.tmp", old);
        make(".b.12.0123abcd.tmp", old);
        make(".a.13.0123abcd.tmp", young);
        let others = [
            "a",
            ".a",
            ".a.tmp",
            ".a.x.0123abcd.tmp",
            ".a.12.0123.tmp",
            "a.12.0123abcd.tmp",
            "..12.0123abcd.tmp",
        ];
        for name in others {
            make(name, old);
        }
        let (_, fresh) = temp_beside(&dir.path().join("a"), 0o600).unwrap();
        remove_stale(&fresh, |of| of == "a");
        let left = |name: &str| dir.path().join(name).exists();
        assert!(!left(".a.12.0123abcd.tmp") && left(".a.13.0123abcd.tmp") && left(".b.12.0123abcd.tmp"));
        assert!(others.iter().all(|name| left(name)) && fresh.path().exists());
    }

    #[test]
    fn a_file_is_moved_onto_another_within_a_filesystem_and_across() {
        let here = tempfile::tempdir().unwrap();
        let beside = tempfile::tempdir_in(here.path()).unwrap();
        let elsewhere = tempfile::tempdir_in("/dev/shm").ok();
        let device = |dir: &Path| std::fs::metadata(dir).unwrap().dev();
        if elsewhere.as_ref().is_none_or(|dir| device(dir.path()) == device(here.path())) {
            eprintln!("only one filesystem to try");
        }
        for from in [beside.path()].into_iter().chain(elsewhere.as_ref().map(tempfile::TempDir::path)) {
            let (mut file, temp) = temp_beside(&from.join("x"), 0o600).unwrap();
            file.write_all(b"new").unwrap();
            let target = here.path().join("target");
            std::fs::write(&target, "old").unwrap();
            move_onto(temp, &target, 0o600).unwrap();
            assert_eq!(std::fs::read(&target).unwrap(), b"new");
            assert_eq!(std::fs::read_dir(from).unwrap().count(), 0, "nothing is left behind");
        }
    }
}
