//! The spool: segments that were fetched before the server asked for them.
//!
//! An entry is named after all that it is: `<segment>-<crc32>-<id of the repository's cluster.json>`. It was verified
//! like any other segment before it got that name, and it is verified again when it is taken, since what lies on a disk
//! for a while may be anything. It is not asked again whether the repositories still hold it, for the point is speed; so
//! an entry counts for a bounded time, and only while its repository is one that the caller would ask. Taking is
//! renaming: of two callers one gets it.

use super::content::Expected;
use crate::durable;
use crate::kind::{Error, Result};
use crate::postgres::{SystemIdentifier, WalSegmentName, WalSegmentSize};
use crate::shutdown::TempFile;
use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How long an entry counts.
const ENTRY_LIFE: Duration = Duration::from_mins(10);
/// How long a caller waits for a segment that is being fetched already.
const FETCHING_PATIENCE: Duration = Duration::from_secs(5);
/// How long the prefetcher tries for its lock, which others hold only for the moment in which they look at it.
const LOCK_PATIENCE: Duration = Duration::from_millis(200);
/// What the file of a segment that is being fetched begins with.
const FETCHING: &str = ".fetching-";

/// The spool of one cluster with one system identifier.
#[derive(Debug, Clone)]
pub struct Spool {
    dir: PathBuf,
}

/// What is known of a repository without asking it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownRepository {
    /// The id in its `cluster.json`.
    pub id: String,
    /// The size of the cluster's segments.
    pub size: WalSegmentSize,
    /// Its URL.
    pub url: String,
}

/// What an entry's name says.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    segment: WalSegmentName,
    crc: u32,
    id: String,
}

impl Entry {
    fn parse(name: &str) -> Option<Self> {
        let mut parts = name.splitn(3, '-');
        let (segment, crc, id) = (parts.next()?.parse().ok()?, parts.next()?, parts.next()?);
        if crc.len() != 8 || !is_plain(id) {
            return None;
        }
        Some(Self { segment, crc: u32::from_str_radix(crc, 16).ok()?, id: id.to_owned() })
    }

    fn name(&self) -> String {
        format!("{}-{:08x}-{}", self.segment, self.crc, self.id)
    }
}

/// An id becomes a part of a file's name.
fn is_plain(id: &str) -> bool {
    (1..=64).contains(&id.len()) && id.bytes().all(|b| b.is_ascii_alphanumeric())
}

impl Spool {
    /// Returns the spool below `spools`, the directory of all spools; makes it where there is none.
    pub fn open(spools: &Path, sysid: SystemIdentifier) -> io::Result<Self> {
        let dir = spools.join(sysid.to_string());
        if !dir.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(&dir).map_err(durable::at(&dir))?;
        }
        Ok(Self { dir })
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    fn entries(&self) -> Vec<Entry> {
        let names = std::fs::read_dir(&self.dir).into_iter().flatten().flatten();
        names.filter_map(|entry| Entry::parse(entry.file_name().to_str()?)).collect()
    }

    /// Returns the segments that are ready.
    pub fn ready(&self) -> BTreeSet<WalSegmentName> {
        self.entries().into_iter().map(|entry| entry.segment).collect()
    }

    /// Takes `segment` out and returns its file, if it is there, good, and from one of the repositories with the URLs
    /// `asked`; waits a little for one that is just being fetched. What is there and not good is removed.
    pub fn take(
        &self,
        segment: WalSegmentName,
        sysid: SystemIdentifier,
        asked: &BTreeSet<&str>,
    ) -> Option<TempFile> {
        let began = Instant::now();
        let fetching = self.fetching(segment);
        loop {
            let was_fetching = fetching.exists();
            let mut found = self.entries();
            found.retain(|entry| entry.segment == segment);
            if !found.is_empty() {
                return self.take_one(&found, sysid, asked);
            }
            if !was_fetching || began.elapsed() > FETCHING_PATIENCE || !self.is_watched() {
                return None;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn take_one(&self, found: &[Entry], sysid: SystemIdentifier, asked: &BTreeSet<&str>) -> Option<TempFile> {
        let known = self.known();
        let conflict = found.iter().any(|entry| entry.crc != found[0].crc);
        let mut taken = None;
        for entry in found {
            let path = self.dir.join(entry.name());
            let mine = self.dir.join(format!(".taken-{}-{:08x}", std::process::id(), fastrand::u32(..)));
            let Ok(((), mine)) = TempFile::create(mine, |mine| std::fs::rename(&path, mine)) else {
                continue; // somebody else has it
            };
            if taken.is_some() || conflict {
                continue; // dropping it removes the file
            }
            let from = known.iter().find(|known| known.id == entry.id && asked.contains(known.url.as_str()));
            let checked = match from {
                None => Err(Error::other("is of a repository that is not known")),
                Some(known) => check(&mine, entry, known.size, sysid),
            };
            match checked {
                Ok(()) => taken = Some(mine),
                Err(error) => {
                    tracing::warn!("prefetched segment \"{}\" is not used: {error}", entry.segment);
                }
            }
        }
        taken
    }

    /// Puts a segment into the spool: `fetch` writes and verifies it.
    pub fn put(
        &self,
        segment: WalSegmentName,
        crc: u32,
        id: &str,
        fetch: impl FnOnce(&mut File) -> Result<()>,
    ) -> Result<()> {
        if !is_plain(id) {
            return Err(Error::other(format!("the id \"{id}\" of a repository is not plain")));
        }
        let failed = |error: io::Error| Error::other(format!("write to the spool: {error}"));
        let path = self.fetching(segment);
        let options = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).clone();
        let (mut file, temp) = TempFile::create(path, |path| options.open(path)).map_err(failed)?;
        fetch(&mut file)?;
        let name = Entry { segment, crc, id: id.to_owned() }.name();
        std::fs::rename(temp.path(), self.dir.join(name)).map_err(failed)?;
        temp.forget();
        Ok(())
    }

    fn fetching(&self, segment: WalSegmentName) -> PathBuf {
        self.dir.join(format!("{FETCHING}{segment}"))
    }

    /// Removes the entries that `keep` does not name.
    pub fn retain(&self, keep: impl Fn(WalSegmentName) -> bool) {
        for entry in self.entries().iter().filter(|entry| !keep(entry.segment)) {
            let _ = std::fs::remove_file(self.dir.join(entry.name()));
        }
    }

    /// Removes every entry, and what killed processes left.
    pub fn clear(&self) {
        self.retain(|_| false);
        for file in std::fs::read_dir(&self.dir).into_iter().flatten().flatten() {
            let name = file.file_name();
            let left_behind = || file.metadata().is_ok_and(|meta| age(&meta).is_none());
            if name
                .to_str()
                .is_some_and(|name| name.starts_with(FETCHING) || (name.starts_with('.') && left_behind()))
            {
                let _ = std::fs::remove_file(file.path());
            }
        }
    }

    /// Notes the segment that the server got last; returns whether it is the one right after the one before, so that
    /// fetching ahead makes sense: `pg_rewind` goes backwards, and who fetches one file by hand wants that file only.
    pub fn note_wanted(&self, segment: WalSegmentName) -> io::Result<bool> {
        let (before, known) = (self.wanted(), self.known());
        durable::replace(&self.dir.join("wanted"), format!("{segment}\n").as_bytes(), 0o600)?;
        Ok(before.zip(known.first()).is_some_and(|(before, known)| before.next(known.size) == segment))
    }

    /// Returns the segment that the server got last.
    pub fn wanted(&self) -> Option<WalSegmentName> {
        std::fs::read_to_string(self.dir.join("wanted")).ok()?.trim_end().parse().ok()
    }

    /// Notes what the repositories said of themselves.
    pub fn note_known(&self, list: &[KnownRepository]) -> io::Result<()> {
        if list.is_empty() || self.known() == list {
            return Ok(());
        }
        let line = |known: &KnownRepository| format!("{} {} {}\n", known.id, known.size.bytes(), known.url);
        let text: String = list.iter().map(line).collect();
        durable::replace(&self.dir.join("repositories"), text.as_bytes(), 0o600)
    }

    /// Returns what the repositories said of themselves when they were last asked.
    pub fn known(&self) -> Vec<KnownRepository> {
        let text = std::fs::read_to_string(self.dir.join("repositories")).unwrap_or_default();
        let parse = |line: &str| {
            let mut parts = line.splitn(3, ' ');
            let (id, size, url) = (parts.next()?, parts.next()?, parts.next()?);
            let size = WalSegmentSize::new(size.parse().ok()?).ok()?;
            Some(KnownRepository { id: id.to_owned(), size, url: url.to_owned() })
        };
        text.lines().filter_map(parse).collect()
    }

    fn lock_file(&self) -> io::Result<File> {
        let path = self.dir.join("lock");
        let options = OpenOptions::new().write(true).create(true).truncate(false).mode(0o600).clone();
        options.open(&path).map_err(durable::at(&path))
    }

    /// Returns whether a prefetcher lives.
    pub fn is_watched(&self) -> bool {
        self.lock_file().is_ok_and(|file| file.try_lock_shared().is_err())
    }

    /// Returns the prefetcher's lock, or none if another one has it. It is free once the file is dropped, however
    /// its process ends.
    pub fn lock(&self) -> io::Result<Option<File>> {
        let file = self.lock_file()?;
        let began = Instant::now();
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(std::fs::TryLockError::Error(error)) => return Err(error),
                Err(std::fs::TryLockError::WouldBlock) if began.elapsed() > LOCK_PATIENCE => return Ok(None),
                Err(std::fs::TryLockError::WouldBlock) => std::thread::sleep(Duration::from_millis(5)),
            }
        }
    }
}

/// Returns whether `segment` is a step forward from `before`; another timeline is a fresh start.
pub fn goes_forward(before: Option<WalSegmentName>, segment: WalSegmentName) -> bool {
    before.is_none_or(|before| before.timeline != segment.timeline || before <= segment)
}

/// Returns a file's age, or none when it is too old, or from the future (a clock was set).
fn age(meta: &std::fs::Metadata) -> Option<Duration> {
    let age = SystemTime::now().duration_since(meta.modified().ok()?).ok()?;
    (age < ENTRY_LIFE).then_some(age)
}

fn check(file: &TempFile, entry: &Entry, size: WalSegmentSize, sysid: SystemIdentifier) -> Result<()> {
    let failed = |error: io::Error| Error::other(format!("read the spool: {error}"));
    let meta = std::fs::symlink_metadata(file.path()).map_err(failed)?;
    if !meta.is_file() || age(&meta).is_none() {
        return Err(Error::other("is too old"));
    }
    let content = File::open(file.path()).map_err(failed)?;
    Expected { segment: entry.segment, size, sysid }.check_content(content, entry.crc)
}

/// Moves a segment that was taken out of the spool to where the server wants it.
pub fn hand_over(taken: TempFile, path: &Path) -> Result<()> {
    durable::move_onto(taken, path, 0o600)
        .map_err(|error| Error::other(format!("move out of the spool: {error}")))
}

/// Writes and verifies a file beside `path` by `fetch`, then renames it onto `path`.
pub fn place(path: &Path, fetch: impl FnOnce(&mut File) -> Result<()>) -> Result<()> {
    let failed = |error: io::Error| Error::other(format!("write \"{}\": {error}", path.display()));
    let (mut file, temp) = durable::temp_beside(path, 0o600).map_err(failed)?;
    durable::remove_stale(&temp, |of| path.file_name().is_some_and(|name| name == of));
    fetch(&mut file)?;
    file.flush().and_then(|()| file.sync_data()).map_err(failed)?;
    drop(file);
    std::fs::rename(temp.path(), path).map_err(failed)?;
    temp.forget();
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: &str = "0123456789abcdef";
    const URL: &str = "file:///r";
    const SYSID: SystemIdentifier = SystemIdentifier(7_710_439_461_982_692_055);

    /// A segment of 1 MiB: the first page of a real one with another size in its header, then zeros.
    fn content() -> Vec<u8> {
        let mut content = include_bytes!("../../tests/golden/wal-15-first-page").to_vec();
        content[32..36].copy_from_slice(&(1_u32 << 20).to_le_bytes());
        content.resize(1 << 20, 0);
        content
    }

    fn segment() -> WalSegmentName {
        "000000010000000000000030".parse().unwrap() // 0/3000000 with segments of 1 MiB
    }

    fn spool() -> (tempfile::TempDir, Spool) {
        let dir = tempfile::tempdir().unwrap();
        let spool = Spool::open(dir.path(), SYSID).unwrap();
        let size = WalSegmentSize::new(1 << 20).unwrap();
        spool.note_known(&[KnownRepository { id: ID.into(), size, url: URL.into() }]).unwrap();
        (dir, spool)
    }

    fn take(spool: &Spool) -> Option<TempFile> {
        spool.take(segment(), SYSID, &BTreeSet::from([URL]))
    }

    fn put(spool: &Spool, crc: u32, id: &str, content: &[u8]) {
        spool
            .put(segment(), crc, id, |file| file.write_all(content).map_err(|e| Error::other(e.to_string())))
            .unwrap();
    }

    #[test]
    fn what_was_put_is_taken_once() {
        let (dir, spool) = spool();
        put(&spool, crc32fast::hash(&content()), ID, &content());
        assert_eq!(spool.ready(), BTreeSet::from([segment()]));
        let target = dir.path().join("RECOVERYXLOG");
        hand_over(take(&spool).unwrap(), &target).unwrap();
        assert_eq!(std::fs::read(target).unwrap(), content());
        assert!(take(&spool).is_none());
    }

    #[test]
    fn what_is_not_as_its_name_says_is_dropped() {
        let good = content();
        let crc = crc32fast::hash(&good);
        let mut foreign = good.clone();
        foreign[24] ^= 1;
        let mut other_place = good.clone();
        other_place[10] ^= 1;
        let short = &good[..good.len() - 1];
        let cases: [(&str, u32, &str, &[u8]); 6] = [
            ("a wrong CRC", crc ^ 1, ID, &good),
            ("another cluster's", crc32fast::hash(&foreign), ID, &foreign),
            ("another segment's", crc32fast::hash(&other_place), ID, &other_place),
            ("short", crc32fast::hash(short), ID, short),
            ("empty", 0, ID, &[]),
            ("of an unknown repository", crc, "feedfeed", &good),
        ];
        for (what, crc, id, content) in cases {
            let (_dir, spool) = spool();
            put(&spool, crc, id, content);
            assert!(take(&spool).is_none(), "{what}");
            assert!(spool.ready().is_empty(), "{what} is removed");
        }
    }

    #[test]
    fn two_contents_an_old_entry_and_one_of_a_repository_left_out_are_dropped() {
        let crc = crc32fast::hash(&content());
        let (_dir, spool) = spool();
        put(&spool, crc, ID, &content());
        put(&spool, crc ^ 1, ID, &content());
        assert!(take(&spool).is_none() && spool.ready().is_empty());

        for shift in [-700_i64, 700] {
            put(&spool, crc, ID, &content());
            let path = spool.dir().join(spool.entries()[0].name());
            let now = SystemTime::now();
            let by = Duration::from_secs(shift.unsigned_abs());
            let time = if shift < 0 { now - by } else { now + by };
            File::options().write(true).open(path).unwrap().set_modified(time).unwrap();
            assert!(take(&spool).is_none() && spool.ready().is_empty(), "{shift}");
        }

        put(&spool, crc, ID, &content());
        assert!(spool.take(segment(), SYSID, &BTreeSet::from(["file:///other"])).is_none());
    }

    #[test]
    fn two_segments_in_a_row_are_a_demand() {
        let (_dir, spool) = spool();
        let next = |name: &str| spool.note_wanted(name.parse().unwrap()).unwrap();
        assert!(!next("000000010000000000000005"));
        assert!(next("000000010000000000000006"));
        assert!(!next("000000010000000000000006"), "the server asks for its last segment again");
        assert!(!next("000000010000000000000005"), "as pg_rewind asks");
        assert!(!next("000000020000000000000006"), "another timeline");
        assert!(next("000000020000000000000007"));
        assert_eq!(spool.wanted(), Some("000000020000000000000007".parse().unwrap()));
    }

    #[test]
    fn a_prefetcher_follows_forward_and_to_other_timelines() {
        let forward = |a: &str, b: &str| goes_forward(Some(a.parse().unwrap()), b.parse().unwrap());
        assert!(forward("000000010000000000000005", "000000010000000000000008"));
        assert!(!forward("000000010000000000000005", "000000010000000000000004"));
        assert!(forward("000000010000000000000005", "000000020000000000000004"));
    }

    #[test]
    fn one_prefetcher_at_a_time() {
        let (_dir, spool) = spool();
        assert!(!spool.is_watched());
        let lock = spool.lock().unwrap().unwrap();
        assert!(spool.is_watched() && spool.lock().unwrap().is_none());
        drop(lock);
        assert!(!spool.is_watched());
    }
}
