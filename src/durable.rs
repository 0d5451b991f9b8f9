//! Writing files so that they survive a crash: the one place that knows about fsync, link and rename.
//!
//! A rename or a new name is durable only after the directory that holds it was fsynced (fsync(2)); a new
//! directory only after its parent was.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use crate::shutdown::TempFile;

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

/// Creates the directories from below `root` down to `dir`, each made durable in its parent. `root` itself must
/// be there: a missing root is an unmounted disk, not a directory to create.
pub fn create_dirs_below(root: &Path, dir: &Path) -> io::Result<()> {
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
            Ok(()) => sync_dir(&parent)?,
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
