//! The journal of a backup that is being taken: which pieces are stored, and of which files as they were when they were
//! read. It lies in the state directory, one file a backup, and is gone when the backup is complete. So a journal that
//! nobody holds the lock of belongs to a backup that broke off.
//!
//! A line is written after its piece is stored, and never synced: after a crash of the machine a journal is of no use
//! anyway ([`boot_id`]).

use super::manifest::hex;
use super::pages::Findings;
use super::pieces::PartDone;
use super::plan::{Content, Item};
use super::tar_stream::Attributes;
use super::unchanged::{Identity, boot_id};
use crate::durable::at;
use crate::kind::{Context, Error, Result};
use crate::postgres::{SystemIdentifier, TimelineId};
use crate::repository::backup::{Extent, StoredObject, path_text};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// The form of journals that this version writes and reads.
const FORMAT: u32 = 1;
/// What ends the names of journals.
const ENDING: &str = "jsonl";

/// The first line: what must be the same for the backup to be continued.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Head {
    format: u32,
    /// The backup's id.
    pub id: String,
    /// The system identifier.
    pub system_identifier: SystemIdentifier,
    /// The server's timeline.
    pub timeline: TimelineId,
    /// The data directory.
    #[serde(with = "path_text")]
    pub data_dir: PathBuf,
    /// How objects are encrypted: a digest of the recipients.
    pub sealing: String,
    /// The URLs of the repositories that it goes to.
    pub repositories: Vec<String>,
    /// The label.
    pub label: String,
    /// The remark.
    pub note: Option<String>,
    boot: Option<String>,
}

impl Head {
    /// Returns the head of a backup that begins now and is encrypted to `recipients`, or to nobody.
    pub fn new(
        id: String,
        system_identifier: SystemIdentifier,
        timeline: TimelineId,
        data_dir: PathBuf,
        recipients: &[String],
    ) -> Self {
        let sealing = hex(&Sha256::digest(recipients.join("\n")));
        let (repositories, label, note) = (Vec::new(), String::new(), None);
        Self {
            format: FORMAT,
            id,
            system_identifier,
            timeline,
            data_dir,
            sealing,
            repositories,
            label,
            note,
            boot: boot_id(),
        }
    }

    /// Returns why a backup with this head cannot be continued as `other`; none if it can.
    pub fn differs_from(&self, other: &Self) -> Option<&'static str> {
        let lost = |url: &String| !other.repositories.contains(url);
        let reasons = [
            (self.format != FORMAT, "another version of walden wrote its journal"),
            (self.boot.is_none() || self.boot != other.boot, "the machine was restarted since"),
            (self.system_identifier != other.system_identifier, "it is of another cluster"),
            (self.data_dir != other.data_dir, "it is of another data directory"),
            (self.timeline != other.timeline, "the server is on another timeline now"),
            (self.sealing != other.sealing, "the recipients of the encryption are others now"),
            (self.repositories.iter().any(lost), "a repository that it went to is missing"),
        ];
        reasons.into_iter().find_map(|(differs, reason)| differs.then_some(reason))
    }
}

/// A part in a line: path, directory, (mode, mtime, uid, gid), size, number of the item, index, last, identity, extent.
#[derive(Debug, Serialize, Deserialize)]
struct PartLine(
    #[serde(with = "path_text")] PathBuf,
    bool,
    (u32, i64, u32, u32),
    u64,
    u64,
    u32,
    bool,
    Option<Identity>,
    Option<Extent>,
);

/// A piece that is stored.
#[derive(Debug, Serialize, Deserialize)]
struct PieceLine {
    number: u32,
    object: StoredObject,
    parts: Vec<PartLine>,
}

/// A piece as a journal has it.
pub struct JournaledPiece {
    /// The number in its name.
    pub number: u32,
    /// The object.
    pub object: StoredObject,
    /// What is in it.
    pub parts: Vec<PartDone>,
}

/// The journal of this process's backup. Dropping it leaves the file, for a later attempt.
#[derive(Debug)]
pub struct Journal {
    path: PathBuf,
    /// None once writing failed.
    file: Option<BufWriter<File>>,
    head: Head,
}

impl Journal {
    /// Begins a journal in `dir`, which is made if need be. If there is one of that id already, it is replaced once
    /// [`Journal::publish`] is called.
    pub fn create(dir: &Path, head: Head) -> Result<Self> {
        std::fs::create_dir_all(dir).map_err(at(dir)).context("create directory")?;
        let path = dir.join(format!("{}.{ENDING}", head.id));
        let new = path.with_extension("new");
        let open = OpenOptions::new().write(true).create(true).truncate(true).mode(0o640).open(&new);
        let file = open.map_err(at(&new)).context("create journal")?;
        file.try_lock().map_err(|error| Error::other(format!("lock \"{}\": {error}", new.display())))?;
        let mut journal = Self { path, file: Some(BufWriter::new(file)), head };
        let head = serde_json::to_string(&journal.head).context("write journal")?;
        journal.line(&head);
        Ok(journal)
    }

    /// Gives the journal its name, in the place of the one that it continues.
    pub fn publish(&mut self) -> Result<()> {
        let new = self.path.with_extension("new");
        std::fs::rename(&new, &self.path).map_err(at(&new)).context("name journal")
    }

    /// Returns the first line.
    pub fn head(&self) -> &Head {
        &self.head
    }

    /// Notes that a piece is stored. A failure is warned of, once: only continuing the backup is lost by it.
    pub fn add(&mut self, number: u32, object: &StoredObject, parts: &[PartDone]) {
        if self.file.is_none() {
            return;
        }
        let parts = parts.iter().map(|part| {
            let item = &part.item;
            let Attributes { mode, mtime, uid, gid } = item.attributes;
            // What the check of its pages left open is decided by reading it again.
            let identity = item.identity.filter(|_| part.findings == Findings::default());
            PartLine(
                item.path.clone(),
                item.directory,
                (mode, mtime, uid, gid),
                item.size,
                item.number,
                part.index,
                part.last,
                identity,
                part.extent.clone(),
            )
        });
        let line = PieceLine { number, object: object.clone(), parts: parts.collect() };
        match serde_json::to_string(&line) {
            Ok(line) => self.line(&line),
            Err(error) => self.give_up(&error),
        }
    }

    /// Removes the journal: the backup is complete.
    pub fn finish(self) {
        if let Err(error) = std::fs::remove_file(&self.path) {
            tracing::warn!("could not remove \"{}\": {error}", self.path.display());
        }
    }

    fn line(&mut self, line: &str) {
        let Some(file) = &mut self.file else { return };
        let written = file.write_all(line.as_bytes()).and_then(|()| file.write_all(b"\n"));
        if let Err(error) = written.and_then(|()| file.flush()) {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &dyn std::fmt::Display) {
        self.file = None;
        tracing::warn!(
            "could not write \"{}\": {error}; the backup cannot be continued if it breaks off",
            self.path.display()
        );
    }
}

/// The journal of a backup whose process is no more. As long as this is held, nobody else takes it up.
#[derive(Debug)]
pub struct BrokenOff {
    /// The backup's id.
    pub id: String,
    path: PathBuf,
    file: File,
}

impl BrokenOff {
    /// Returns the first line, or why there is none.
    pub fn head(&self) -> Result<Head> {
        let file = File::open(&self.path).map_err(at(&self.path)).context("read journal")?;
        let mut line = String::new();
        BufReader::new(file).read_line(&mut line).context("read journal")?;
        serde_json::from_str(&line).context("read journal")
    }

    /// Calls `each` with every piece, in the order in which they were stored. Lines that are cut off end it.
    pub fn pieces(&self, each: &mut dyn FnMut(JournaledPiece) -> Result<()>) -> Result<()> {
        let file = File::open(&self.path).map_err(at(&self.path)).context("read journal")?;
        for line in BufReader::with_capacity(256 * 1024, file).lines().skip(1) {
            let line = line.context("read journal")?;
            let Ok(piece) = serde_json::from_str::<PieceLine>(&line) else { break };
            each(JournaledPiece {
                number: piece.number,
                object: piece.object,
                parts: piece.parts.into_iter().map(part_done).collect(),
            })?;
        }
        Ok(())
    }

    /// Removes the journal: nothing is left of the backup.
    pub fn remove(self) {
        let _ = std::fs::remove_file(&self.path);
        drop(self.file);
    }
}

fn part_done(line: PartLine) -> PartDone {
    let PartLine(path, directory, (mode, mtime, uid, gid), size, number, index, last, identity, extent) =
        line;
    let attributes = Attributes { mode, mtime, uid, gid };
    let content = Content::Empty;
    let item = Item { number, path, directory, attributes, size, relation: None, identity, content };
    PartDone { item: Arc::new(item), extent, index, last, findings: Findings::default() }
}

/// What the journals in a directory say of backups on this machine.
#[derive(Debug, Default)]
pub struct Journals {
    /// Those that broke off, by id: the newest last.
    pub broken_off: Vec<BrokenOff>,
    /// The ids of those that are being taken.
    pub running: Vec<String>,
}

impl Journals {
    /// Looks into `dir`. One that is not there holds none.
    pub fn read(dir: &Path) -> Result<Self> {
        let mut journals = Self::default();
        let entries = match std::fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(journals),
            Err(error) => return Err(at(dir)(error)).context("list journals"),
        };
        for entry in entries {
            let path = entry.map_err(at(dir)).context("list journals")?.path();
            let ending = path.extension().and_then(std::ffi::OsStr::to_str);
            let (Some(id), Some(ENDING | "new")) =
                (path.file_stem().and_then(std::ffi::OsStr::to_str), ending)
            else {
                continue;
            };
            let id = id.to_owned();
            let file = File::open(&path).map_err(at(&path)).context("open journal")?;
            match file.try_lock() {
                // One that never got its name: its writer died before it stored anything.
                Ok(()) if ending == Some("new") => drop(std::fs::remove_file(&path)),
                Ok(()) => journals.broken_off.push(BrokenOff { id, path, file }),
                Err(TryLockError::WouldBlock) => journals.running.push(id),
                Err(TryLockError::Error(error)) => return Err(at(&path)(error)).context("lock journal"),
            }
        }
        journals.broken_off.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(journals)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn head(id: &str) -> Head {
        Head::new(id.into(), SystemIdentifier(7), TimelineId(1), "/data".into(), &[])
    }

    fn piece(name: &str) -> (StoredObject, Vec<PartDone>) {
        let line = PartLine("base/5/\u{1}".into(), false, (0o600, 1, 2, 3), 8192, 4, 0, true, None, None);
        (StoredObject::of(name.into(), b"x"), vec![part_done(line)])
    }

    #[test]
    fn a_journal_belongs_to_its_process_until_that_ends() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().join("journals");
        assert!(Journals::read(&dir).unwrap().broken_off.is_empty());
        let mut journal = Journal::create(&dir, head("b")).unwrap();
        assert_eq!(Journals::read(&dir).unwrap().running, ["b"]);
        journal.publish().unwrap();
        assert_eq!(Journals::read(&dir).unwrap().running, ["b"]);
        let (object, parts) = piece("data/0000000.lz4");
        journal.add(0, &object, &parts);
        drop(journal);
        let found = Journals::read(&dir).unwrap();
        assert_eq!((found.broken_off.len(), found.running.len()), (1, 0));
        assert_eq!(found.broken_off[0].head().unwrap(), head("b"));
        assert!(Journals::read(&dir).unwrap().running.contains(&"b".to_owned()), "taken up by one at a time");
    }

    #[test]
    fn pieces_are_read_back_up_to_where_the_journal_was_cut_off() {
        let dir = tempfile::tempdir().unwrap();
        let mut journal = Journal::create(dir.path(), head("b")).unwrap();
        journal.publish().unwrap();
        for number in 0..3 {
            let (object, parts) = piece(&format!("data/{number:07}.lz4"));
            journal.add(number, &object, &parts);
        }
        let path = dir.path().join("b.jsonl");
        let read = |dir: &Path| {
            let journals = Journals::read(dir).unwrap();
            let mut numbers = Vec::new();
            journals.broken_off[0]
                .pieces(&mut |piece| {
                    assert_eq!(piece.parts[0].item.path, Path::new("base/5/\u{1}"));
                    numbers.push(piece.number);
                    Ok(())
                })
                .unwrap();
            numbers
        };
        drop(journal);
        assert_eq!(read(dir.path()), [0, 1, 2]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..whole.len() - 10]).unwrap();
        assert_eq!(read(dir.path()), [0, 1]);
    }

    #[test]
    fn what_must_be_the_same_is_compared() {
        let (a, mut b) = (head("a"), head("b"));
        assert_eq!(a.differs_from(&b), None);
        b.timeline = TimelineId(2);
        assert!(a.differs_from(&b).unwrap().contains("timeline"));
        b = head("b");
        b.repositories = vec!["file:///more".into()];
        assert_eq!(a.differs_from(&b), None, "one more is filled up");
        assert!(b.differs_from(&a).unwrap().contains("missing"));
    }
}
