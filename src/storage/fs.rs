//! A directory as a store: hard links make writes create-only, fsync makes them durable.

use super::{Deadline, Error, Object, PART_SIZE, Put, Result, Storage, Upload};
use crate::durable;
use crate::shutdown::TempFile;
use bytes::Bytes;
use std::collections::HashSet;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// How much is written between two looks at the deadline.
const CHUNK: usize = 1 << 20;

/// A directory. It must exist: where it does not, a disk is probably not mounted, and every call fails.
#[derive(Debug)]
pub struct FsStorage {
    url: String,
    root: PathBuf,
    file_mode: u32,
    /// The folders in which this value has looked for what killed processes left.
    swept: Mutex<HashSet<PathBuf>>,
}

impl FsStorage {
    /// Returns the store at `root`, an absolute path. Does no I/O.
    pub fn new(root: PathBuf) -> Self {
        Self { url: format!("file://{}", root.display()), root, file_mode: 0o640, swept: Mutex::default() }
    }

    /// Creates the directory (for `init` only); its parent must exist.
    pub fn create_root(&self) -> Result<()> {
        match std::fs::create_dir(&self.root) {
            Ok(()) => {
                durable::sync_dir(self.root.parent().unwrap_or(Path::new("/"))).map_err(|e| classify(&e))
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            Err(error) => Err(classify(&durable::at(&self.root)(error))),
        }
    }

    /// Returns who is to own what root writes here: the owner of the directory, so that the server's user can read what
    /// an operator's command wrote.
    fn owner(&self) -> Option<(u32, u32)> {
        use std::os::unix::fs::MetadataExt;
        if !nix::unistd::geteuid().is_root() {
            return None;
        }
        let meta = std::fs::metadata(&self.root).ok()?;
        (meta.uid() != 0).then_some((meta.uid(), meta.gid()))
    }

    fn create_dirs(&self, dir: &Path) -> Result<()> {
        durable::create_dirs_below(&self.root, dir, self.owner()).map_err(|e| classify(&e))
    }

    fn temp_beside(&self, path: &Path) -> Result<(File, TempFile)> {
        let (file, temp) = durable::temp_beside(path, self.file_mode).map_err(|e| classify(&e))?;
        let dir = path.parent().unwrap_or(&self.root).to_path_buf();
        if self.swept.lock().is_ok_and(|mut swept| swept.insert(dir)) {
            durable::remove_stale(&temp, |_| true);
        }
        if let Some((uid, gid)) = self.owner() {
            std::os::unix::fs::fchown(&file, Some(uid), Some(gid))
                .map_err(|e| classify(&durable::at(temp.path())(e)))?;
        }
        Ok((file, temp))
    }

    fn path(&self, key: &str) -> Result<PathBuf> {
        if key.is_empty() || key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(Error::Refused(format!("\"{key}\" is not a key")));
        }
        Ok(self.root.join(key))
    }

    /// A missing file proves absence only while the root is there.
    fn missing(&self, key: &str) -> Error {
        match self.check_root() {
            Ok(()) => Error::NotFound(key.to_owned()),
            Err(error) => error,
        }
    }

    fn check_root(&self) -> Result<()> {
        match std::fs::metadata(&self.root) {
            Ok(meta) if meta.is_dir() => Ok(()),
            Ok(_) => Err(Error::Refused(format!("\"{}\" is not a directory", self.root.display()))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(Error::Unreachable(format!(
                "directory \"{}\" does not exist (not mounted?)",
                self.root.display()
            ))),
            Err(error) => Err(classify(&durable::at(&self.root)(error))),
        }
    }

    /// Gives a temporary file whose content is durable the name of its object.
    fn publish(&self, temp: TempFile, path: &Path) -> Result<Put> {
        if durable::publish_new(temp, path).map_err(|e| classify(&e))? {
            // The folders above may have been made by another process that has not synced them yet.
            let mut above = path.parent().unwrap_or(&self.root);
            while above != self.root {
                above = above.parent().unwrap_or(&self.root);
                durable::sync_dir(above).map_err(|e| classify(&e))?;
            }
            Ok(Put::Created)
        } else {
            durable::sync_up_to(path, &self.root).map_err(|e| classify(&e))?;
            Ok(Put::Existed)
        }
    }

    fn walk(
        &self,
        dir: &str,
        prefix: &str,
        start_after: &str,
        limit: usize,
        found: &mut Vec<Object>,
    ) -> Result<()> {
        // In the order of whole keys a folder sorts by its name with the slash behind it.
        let mut names: Vec<(String, bool)> = Vec::new();
        let path = if dir.is_empty() { self.root.clone() } else { self.root.join(dir) };
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if is_absence(&error) => return self.check_root(),
            Err(error) => return Err(classify(&durable::at(&path)(error))),
        };
        for entry in entries {
            let entry = entry.map_err(|e| classify(&durable::at(&path)(e)))?;
            let Ok(name) = entry.file_name().into_string() else { continue };
            if name.starts_with('.') {
                continue; // temporary files, and what is not ours
            }
            let key = format!("{dir}{name}");
            if is_dir(&entry)? {
                let key = key + "/";
                let wanted = key.starts_with(prefix) || prefix.starts_with(&key);
                // A folder lies wholly before the start when the start begins with none of it and sorts later.
                let past = key.as_str() > start_after || start_after.starts_with(&key);
                if wanted && past {
                    names.push((key, true));
                }
            } else if key.starts_with(prefix) && key.as_str() > start_after {
                names.push((key, false));
            }
        }
        names.sort();
        for (key, is_dir) in names {
            if found.len() >= limit {
                break;
            }
            if is_dir {
                self.walk(&key, prefix, start_after, limit, found)?;
            } else {
                match std::fs::metadata(self.root.join(&key)) {
                    Ok(meta) => found.push(object(key, &meta)),
                    Err(error) if error.kind() == io::ErrorKind::NotFound => {} // deleted meanwhile
                    Err(error) => return Err(classify(&error)),
                }
            }
        }
        Ok(())
    }
}

fn object(key: String, meta: &std::fs::Metadata) -> Object {
    let modified = meta.modified().ok().and_then(|time| jiff::Timestamp::try_from(time).ok());
    Object { key, size: meta.len(), modified, crc32: None }
}

/// Returns whether the error says that there is no such file: also where a part of its path is a file itself.
fn is_absence(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory)
}

/// Returns whether the entry is a folder, or a link to one: operators move old folders to other disks. A link that
/// leads nowhere (that disk is not mounted) is a failure, since what it hides is not proven absent.
fn is_dir(entry: &std::fs::DirEntry) -> Result<bool> {
    let path = entry.path();
    let kind = entry.file_type().map_err(|e| classify(&durable::at(&path)(e)))?;
    if !kind.is_symlink() {
        return Ok(kind.is_dir());
    }
    match std::fs::metadata(&path) {
        Ok(meta) => Ok(meta.is_dir()),
        // Not "not found" but "could not tell".
        Err(error) => Err(Error::Unreachable(format!("link {}", durable::at(&path)(error)))),
    }
}

/// Tells apart what trying again may mend from what it does not.
fn classify(error: &io::Error) -> Error {
    use io::ErrorKind as K;
    match error.kind() {
        K::PermissionDenied
        | K::ReadOnlyFilesystem
        | K::StorageFull
        | K::QuotaExceeded
        | K::InvalidFilename
        | K::NotADirectory
        | K::IsADirectory => Error::Refused(error.to_string()),
        _ => Error::Unreachable(error.to_string()),
    }
}

/// An object that grows in a temporary file beside its place.
struct FsUpload<'a> {
    store: &'a FsStorage,
    path: PathBuf,
    file: File,
    /// None once it was given the object's name.
    temp: Option<TempFile>,
    deadline: Deadline,
}

impl Upload for FsUpload<'_> {
    fn part(&mut self, index: u32, bytes: &Bytes) -> Result<()> {
        let mut offset = u64::from(index) * PART_SIZE as u64;
        for chunk in bytes.chunks(CHUNK) {
            self.deadline.check("write")?;
            self.file.write_all_at(chunk, offset).map_err(|e| classify(&durable::at(&self.path)(e)))?;
            offset += chunk.len() as u64;
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<Put> {
        self.deadline.check("write")?;
        self.file.sync_all().map_err(|e| classify(&durable::at(&self.path)(e)))?;
        match self.temp.take() {
            Some(temp) => self.store.publish(temp, &self.path),
            // An attempt before this one named it and then failed, or could not name it.
            None if self.path.exists() => {
                durable::sync_up_to(&self.path, &self.store.root).map_err(|e| classify(&e))?;
                Ok(Put::Existed)
            }
            None => Err(Error::Refused(format!("\"{}\" could not be given its name", self.path.display()))),
        }
    }
}

impl Storage for FsStorage {
    fn url(&self) -> &str {
        &self.url
    }

    fn put_new(&self, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
        let path = self.path(key)?;
        self.check_root()?;
        deadline.check(key)?;
        if path.exists() {
            durable::sync_up_to(&path, &self.root).map_err(|e| classify(&e))?;
            return Ok(Put::Existed);
        }
        let dir = path.parent().unwrap_or(&self.root);
        self.create_dirs(dir)?;
        let (mut file, temp) = self.temp_beside(&path)?;
        for chunk in body.chunks(CHUNK) {
            deadline.check(key)?;
            file.write_all(chunk).map_err(|e| classify(&durable::at(temp.path())(e)))?;
        }
        file.sync_all().map_err(|e| classify(&durable::at(temp.path())(e)))?;
        drop(file);
        self.publish(temp, &path)
    }

    fn upload_new<'a>(&'a self, key: &str, deadline: &Deadline) -> Result<Box<dyn Upload + 'a>> {
        let path = self.path(key)?;
        self.check_root()?;
        deadline.check(key)?;
        let dir = path.parent().unwrap_or(&self.root);
        self.create_dirs(dir)?;
        let (file, temp) = self.temp_beside(&path)?;
        let (temp, deadline) = (Some(temp), deadline.clone());
        Ok(Box::new(FsUpload { store: self, path, file, temp, deadline }))
    }

    fn get(&self, key: &str, range: Option<Range<u64>>, deadline: &Deadline) -> Result<Box<dyn Read + Send>> {
        let path = self.path(key)?;
        deadline.check(key)?;
        let mut file = match File::open(&path) {
            Ok(file) => file,
            Err(error) if is_absence(&error) => return Err(self.missing(key)),
            Err(error) => return Err(classify(&durable::at(&path)(error))),
        };
        let meta = file.metadata().map_err(|e| classify(&durable::at(&path)(e)))?;
        if !meta.is_file() {
            return Err(self.missing(key)); // a folder, which is no object
        }
        match range {
            None => Ok(Box::new(file)),
            Some(range) => {
                let size = meta.len();
                if range.end > size {
                    return Err(Error::Refused(format!(
                        "object \"{key}\" ends at byte {size}, wanted up to {}",
                        range.end
                    )));
                }
                file.seek(SeekFrom::Start(range.start)).map_err(|e| classify(&durable::at(&path)(e)))?;
                Ok(Box::new(file.take(range.end - range.start)))
            }
        }
    }

    fn head(&self, key: &str, deadline: &Deadline) -> Result<Object> {
        let path = self.path(key)?;
        deadline.check(key)?;
        match std::fs::metadata(&path) {
            Ok(meta) if meta.is_file() => Ok(object(key.to_owned(), &meta)),
            Ok(_) => Err(self.missing(key)),
            Err(error) if is_absence(&error) => Err(self.missing(key)),
            Err(error) => Err(classify(&durable::at(&path)(error))),
        }
    }

    fn list(
        &self,
        prefix: &str,
        start_after: &str,
        limit: usize,
        deadline: &Deadline,
    ) -> Result<Vec<Object>> {
        deadline.check(prefix)?;
        self.check_root()?;
        let mut found = Vec::new();
        let dir = prefix.rfind('/').map_or("", |slash| &prefix[..=slash]);
        self.walk(dir, prefix, start_after, limit, &mut found)?;
        Ok(found)
    }

    fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>> {
        deadline.check(prefix)?;
        self.check_root()?;
        let path = self.root.join(prefix);
        let entries = match std::fs::read_dir(&path) {
            Ok(entries) => entries,
            Err(error) if is_absence(&error) => return Ok(Vec::new()),
            Err(error) => return Err(classify(&durable::at(&path)(error))),
        };
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| classify(&durable::at(&path)(e)))?;
            if let (true, Ok(name)) = (is_dir(&entry)?, entry.file_name().into_string())
                && !name.starts_with('.')
            {
                names.push(name);
            }
        }
        names.sort();
        Ok(names)
    }

    fn delete(&self, key: &str, deadline: &Deadline) -> Result<()> {
        let path = self.path(key)?;
        deadline.check(key)?;
        match std::fs::remove_file(&path) {
            Ok(()) => Ok(()),
            Err(error) if is_absence(&error) || error.kind() == io::ErrorKind::IsADirectory => {
                self.check_root()
            }
            Err(error) => Err(classify(&durable::at(&path)(error))),
        }
    }

    fn confirm(&self, key: &str, deadline: &Deadline) -> Result<()> {
        let path = self.path(key)?;
        deadline.check(key)?;
        // Whoever made the file and its folders may have died before it synced them.
        durable::sync_up_to(&path, &self.root).map_err(|e| classify(&e))
    }

    fn tidy(&self, prefix: &str, deadline: &Deadline) -> Result<()> {
        deadline.check(prefix)?;
        let dir = self.path(prefix.trim_end_matches('/'))?;
        self.check_root()?;
        remove_temporary(&dir).map(drop).map_err(|error| classify(&error))
    }

    fn free_space(&self) -> Option<u64> {
        Some(durable::disk_space(&self.root).ok()?.free)
    }

    fn probe(&self, deadline: &Deadline) -> Result<()> {
        deadline.check("probe")?;
        self.check_root()
    }
}

/// Removes the temporary files below `dir` and the directories without objects, and it itself if it is one. Returns
/// whether it is gone.
fn remove_temporary(dir: &Path) -> io::Result<bool> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if is_absence(&error) => return Ok(true),
        Err(error) => return Err(durable::at(dir)(error)),
    };
    let mut empty = true;
    for entry in entries {
        let entry = entry.map_err(durable::at(dir))?;
        let (path, name) = (entry.path(), entry.file_name());
        let temporary =
            name.as_encoded_bytes().starts_with(b".") && name.as_encoded_bytes().ends_with(b".tmp");
        if entry.file_type().map_err(durable::at(&path))?.is_dir() {
            empty &= remove_temporary(&path)?;
        } else if temporary {
            std::fs::remove_file(&path).map_err(durable::at(&path))?;
        } else {
            empty = false;
        }
    }
    if empty {
        std::fs::remove_dir(dir).map_err(durable::at(dir))?;
    }
    Ok(empty)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::conformance;

    #[test]
    fn conforms() {
        let dir = tempfile::tempdir().unwrap();
        conformance::run(&FsStorage::new(dir.path().to_owned()));
    }

    #[test]
    fn a_folder_that_was_moved_behind_a_link_is_seen_and_a_dangling_link_proves_nothing() {
        let (dir, aside) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let store = FsStorage::new(dir.path().to_owned());
        let deadline = Deadline::stall(std::time::Duration::from_secs(10));
        store.put_new("wal/1/a", &Bytes::from_static(b"x"), &deadline).unwrap();
        std::fs::rename(dir.path().join("wal/1"), aside.path().join("1")).unwrap();
        std::os::unix::fs::symlink(aside.path().join("1"), dir.path().join("wal/1")).unwrap();
        let list = || store.list("wal/", "", 10, &deadline);
        assert_eq!(list().unwrap().len(), 1);
        assert_eq!(store.list_folders("wal/", &deadline).unwrap(), ["1"]);
        std::fs::rename(aside.path().join("1"), aside.path().join("2")).unwrap();
        assert!(list().unwrap_err().is_retryable());
        assert!(store.list_folders("wal/", &deadline).is_err());
    }

    #[test]
    fn without_a_root_nothing_is_proven_absent() {
        let dir = tempfile::tempdir().unwrap();
        conformance::run_without_root(&FsStorage::new(dir.path().join("not mounted")));
    }
}
