//! What a directory holds already of a backup: a restore over it writes the rest, and removes what does not belong.
//!
//! Contents decide, by CRC-32C, and never times: a file that was changed and given its old time is restored.

use super::layout::{ExtentRecord, Layout};
use super::pieces::CHUNK;
use crate::durable::at;
use crate::kind::{Context, Error, Kind, Result};
use crate::parallel::each_in_parallel;
use crate::progress::Progress;
use std::collections::HashSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

/// How many names a message lists.
const NAMED: usize = 5;

/// How a directory differs from a backup.
#[derive(Debug)]
pub struct Differences {
    /// Which extents are to be written, by their number.
    pub wanted: Vec<bool>,
    /// Which files are not as they were in the backup, by their number.
    pub changed: Vec<bool>,
    /// What does not belong to the backup, apart from WAL.
    pub strangers: Vec<PathBuf>,
    /// What is in `pg_wal`.
    pub wal: Vec<PathBuf>,
}

impl Differences {
    /// Returns the bytes that are to be written.
    pub fn bytes(&self, layout: &Layout) -> u64 {
        let wanted = self.wanted.iter().enumerate().filter(|(_, wanted)| **wanted);
        wanted.map(|(at, _)| layout.extent(at).length).sum()
    }

    /// Says what is about to be removed.
    pub fn warn(&self, data_dir: &Path) {
        let relative = |path: &'_ PathBuf| path.strip_prefix(data_dir).unwrap_or(path).to_path_buf();
        // That is written anew.
        let is_signal = |path: &PathBuf| path == Path::new("recovery.signal");
        let strangers: Vec<PathBuf> =
            self.strangers.iter().map(relative).filter(|path| !is_signal(path)).collect();
        if !strangers.is_empty() {
            let names = strangers.iter().take(NAMED).map(|path| format!("\"{}\"", path.display()));
            let more = strangers.len().saturating_sub(NAMED);
            tracing::warn!(
                "removing {} not belong to the backup: {}{}",
                count(strangers.len(), "file or directory that does", "files and directories that do"),
                names.collect::<Vec<_>>().join(", "),
                if more > 0 { format!(" and {more} more") } else { String::new() }
            );
        }
        if !self.wal.is_empty() {
            tracing::warn!(
                "removing {} from pg_wal: WAL comes from the archive",
                count(self.wal.len(), "file", "files")
            );
        }
    }
}

fn count(n: usize, one: &str, many: &str) -> String {
    format!("{n} {}", if n == 1 { one } else { many })
}

/// Reads what is in `data_dir` and compares it with the backup. `links` are the directories below it that are symbolic
/// links and remain so, `replaced` those that become other links. Changes nothing. Fails with [`Kind::Server`] where
/// writing could reach something else, or where WAL waits to be archived.
pub fn compare(
    layout: &Layout,
    data_dir: &Path,
    links: &[PathBuf],
    replaced: &[PathBuf],
    pieces: usize,
    parallel: usize,
    progress: &Progress,
) -> Result<Differences> {
    refuse_unarchived(data_dir)?;
    refuse_links(layout, data_dir, &[links, replaced].concat())?;
    let is_replaced = |path: &Path| replaced.iter().any(|link| path.starts_with(link));
    let (strangers, wal) = strangers(layout, data_dir, links)?;
    let flags = |count: usize| -> Vec<AtomicBool> {
        std::iter::repeat_with(AtomicBool::default).take(count).collect()
    };
    let (wanted, changed) = (flags(layout.extent_count()), flags(layout.file_count()));
    each_in_parallel(parallel, layout.file_count(), |number| {
        let Some(file) = layout.file(number) else { return Ok(()) };
        let path = data_dir.join(file.path);
        if is_replaced(&path) || !is_of_size(&path, file.size) {
            changed[number].store(true, Ordering::Relaxed);
        }
        Ok(())
    })?;
    each_in_parallel(parallel, pieces, |piece| {
        let mut buffer = vec![0; CHUNK];
        for number in layout.extents_of(piece as u32) {
            let extent = layout.extent(number);
            let (record, is_control_file) = layout.file_of(extent);
            let path = data_dir.join(record.path);
            if !is_control_file && !is_replaced(&path) && holds(&path, extent, &mut buffer) {
                progress.add(extent.length);
            } else {
                wanted[number].store(true, Ordering::Relaxed);
                changed[extent.file_number()].store(true, Ordering::Relaxed);
            }
        }
        Ok(())
    })?;
    let plain = |flags: Vec<AtomicBool>| flags.into_iter().map(AtomicBool::into_inner).collect();
    Ok(Differences { wanted: plain(wanted), changed: plain(changed), strangers, wal })
}

/// Returns whether the path is a regular file of that size, and known by this name only: writing to a file with
/// another name would change a copy.
fn is_of_size(path: &Path, size: u64) -> bool {
    std::fs::symlink_metadata(path)
        .is_ok_and(|meta| meta.is_file() && meta.nlink() == 1 && meta.len() == size)
}

/// Returns whether the file has the extent's content at its place. One that cannot be read has not.
fn holds(path: &Path, extent: &ExtentRecord, buffer: &mut [u8]) -> bool {
    let mut crc = || -> io::Result<u32> {
        let mut options = OpenOptions::new();
        let file = options.read(true).custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits()).open(path)?;
        let meta = file.metadata()?;
        if !meta.is_file() || meta.nlink() != 1 {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let (mut done, mut crc) = (0, 0);
        while done < extent.length {
            let chunk = &mut buffer[..(extent.length - done).min(CHUNK as u64) as usize];
            file.read_exact_at(chunk, extent.offset + done)?;
            crc = crc32c::crc32c_append(crc, chunk);
            done += chunk.len() as u64;
        }
        Ok(crc)
    };
    crc().is_ok_and(|crc| crc == extent.crc32c)
}

/// Refuses a directory whose `pg_wal` holds WAL that was not archived: it may be all there is of the last commits.
fn refuse_unarchived(data_dir: &Path) -> Result<()> {
    let dir = data_dir.join("pg_wal/archive_status");
    let mut ready: Vec<String> = std::fs::read_dir(&dir)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some(entry.file_name().to_str()?.strip_suffix(".ready")?.to_owned()))
        .collect();
    ready.sort();
    let Some(first) = ready.first() else { return Ok(()) };
    Err(Error::new(
        Kind::Server,
        format!(
            "{} in \"{}\" wait to be archived, the first is \"{first}\"",
            count(ready.len(), "file", "files"),
            data_dir.join("pg_wal").display()
        ),
    )
    .with_hint(format!(
        "archive each, in the order of their names: walden archive-push {}; or remove its .ready file, if it may be lost",
        data_dir.join("pg_wal").join(first).display()
    )))
}

/// Refuses a directory of the backup that is a symbolic link here: what is behind it may be the original's.
fn refuse_links(layout: &Layout, data_dir: &Path, links: &[PathBuf]) -> Result<()> {
    for directory in layout.directories() {
        let path = data_dir.join(directory.path);
        if directory.path == Path::new(".") || links.contains(&path) || !path.is_symlink() {
            continue;
        }
        let to = std::fs::read_link(&path).unwrap_or_default();
        let error = Error::new(
            Kind::Server,
            format!("\"{}\" is a symbolic link to \"{}\"", path.display(), to.display()),
        );
        return Err(if directory.path == Path::new("pg_wal") {
            error.with_hint(format!(
                "if that directory belongs to this cluster alone: --wal-dir {}; else give another one",
                to.display()
            ))
        } else {
            error.with_hint("it may lead to another cluster's files; remove the link")
        });
    }
    Ok(())
}

/// Returns what is there and not in the backup: files and directories, and apart from them what is in `pg_wal`.
fn strangers(layout: &Layout, data_dir: &Path, links: &[PathBuf]) -> Result<(Vec<PathBuf>, Vec<PathBuf>)> {
    let files: HashSet<&[u8]> = (0..layout.file_count())
        .filter_map(|at| layout.file(at))
        .chain(layout.control_file())
        .map(|file| file.path.as_os_str().as_bytes())
        .collect();
    let directories: HashSet<&[u8]> =
        layout.directories().map(|directory| directory.path.as_os_str().as_bytes()).collect();
    let pg_wal = data_dir.join("pg_wal");
    let mut found = (Vec::new(), Vec::new());
    let mut waiting = vec![data_dir.to_path_buf()];
    while let Some(dir) = waiting.pop() {
        let entries = match std::fs::read_dir(&dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(at(&dir)(error)).context("read directory"),
        };
        // Beside the directory of this version, a tablespace may hold those of others.
        let is_tablespace = dir.parent() == Some(&data_dir.join("pg_tblspc"));
        for entry in entries {
            let entry = entry.map_err(at(&dir)).context("read directory")?;
            let path = entry.path();
            let relative = path.strip_prefix(data_dir).unwrap_or(&path);
            let name = relative.as_os_str().as_bytes();
            let kind = entry.file_type().map_err(at(&path)).context("read directory")?;
            if directories.contains(name) && (kind.is_dir() || links.contains(&path)) {
                waiting.push(path);
            } else if files.contains(name) && kind.is_file()
                || is_tablespace
                || (dir == data_dir && (name == b"lost+found" || name == super::places::MARKER.as_bytes()))
            {
                // Belongs there, or is not ours to judge.
            } else if path.starts_with(&pg_wal) {
                found.1.push(path);
            } else {
                found.0.push(path);
            }
        }
    }
    found.0.sort();
    Ok(found)
}

/// Removes what does not belong, and makes files that are there fit to be written to: of the right size, and known by
/// one name.
pub fn clear(layout: &Layout, data_dir: &Path, differences: &Differences) -> Result<()> {
    for path in differences.strangers.iter().chain(&differences.wal) {
        remove(path)?;
    }
    for directory in layout.directories() {
        let path = data_dir.join(directory.path);
        if path.symlink_metadata().is_ok_and(|meta| meta.is_file()) {
            remove(&path)?;
        }
    }
    for number in 0..layout.file_count() {
        let Some(record) = layout.file(number).filter(|_| differences.changed[number]) else { continue };
        let path = data_dir.join(record.path);
        match std::fs::symlink_metadata(&path) {
            Ok(meta) if meta.is_file() && meta.nlink() == 1 => {
                if meta.len() != record.size {
                    let file = File::options().write(true).open(&path);
                    let cut = file.and_then(|file| file.set_len(record.size));
                    cut.map_err(at(&path)).context("cut file")?;
                }
            }
            Ok(_) => remove(&path)?,
            Err(_) => {}
        }
    }
    Ok(())
}

/// Removes a file, a link or a whole directory; what is not there is as good as removed.
pub fn remove(path: &Path) -> Result<()> {
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir_all(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(at(path)(error)).context("remove"),
        _ => Ok(()),
    }
}
