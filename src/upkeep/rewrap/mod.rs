//! `keys rewrap`: copies a repository into a new one whose objects open with other keys. Each age header is written anew for
//! the new recipients; payloads are copied as they are.
//!
//! Nothing is rewritten in place: an object, once written, is never written again, and who was trusted with the old
//! repository may go on from it until the new one is proven. Keys and order are those of [`super::sync`], so that a run
//! that is broken off is gone on with by the next. Only `backup.json` differs: it gives the sizes and checksums that the
//! objects have in the new repository.

use super::sync::{Copied, Task, bring_in_order, is_of_whole_backup, objects_in, run_with};
use crate::codec::{self, LZ4_AGE, Opener, Sealer, header_length};
use crate::kind::{Error, Kind, Result};
use crate::parallel::lock;
use crate::postgres::{ArchiveFileName, SystemIdentifier};
use crate::progress::Progress;
use crate::repository::backup::{BACKUP_FORMAT, SUMMARY_NAME, StoredObject};
use crate::repository::{
    ClusterFile, ClusterKeys, LARGEST_WHOLE, Repository, checksum_stored, copy_changed, copy_object,
    find_contents, read_stored, read_summary, summary_text,
};
use crate::storage::{self, Put};
use bytes::Bytes;
use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// How much of an object is read to see its header and its nonce, in bytes.
const START: u64 = 64 << 10;
/// The length of the nonce before a payload, in bytes.
const NONCE: usize = 16;
/// Of how many objects that both repositories hold the headers are compared.
const SAMPLES: usize = 16;

/// What helps where the new repository is none.
pub const EMPTY: &str =
    "what is stored is never rewritten; give a prefix or directory that holds nothing yet";

/// From where to where, and who opens what.
#[derive(Debug)]
pub struct Request<'r> {
    /// The cluster's name.
    pub cluster: &'r str,
    /// The system identifier.
    pub sysid: SystemIdentifier,
    /// The repository that is copied.
    pub from: &'r Repository,
    /// The new one.
    pub to: &'r Repository,
    /// Opens what is in the old one.
    pub opener: &'r Opener,
    /// Wraps for the new recipients.
    pub sealer: &'r Sealer,
    /// Who they are, by [`codec::recipients_id`].
    pub recipients: &'r str,
}

/// What a run did.
#[derive(Debug, Default, serde::Serialize)]
pub struct Outcome {
    /// Objects that are in the new repository now.
    pub copied: usize,
    /// Their bytes, as the old repository has them.
    pub bytes: u64,
    /// Those among them that are not encrypted: there is no header.
    pub unencrypted: usize,
    /// Keys of objects that no identity opens. They are not in the new repository.
    pub unreadable: Vec<String>,
    /// Keys of objects that are damaged, and why it is thought so. They are not in the new repository.
    pub damaged: Vec<(String, String)>,
    /// What could not be copied, and why.
    #[serde(serialize_with = "as_text")]
    pub failed: Vec<Error>,
}

fn as_text<S: serde::Serializer>(errors: &[Error], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.collect_seq(errors.iter().map(ToString::to_string))
}

impl Outcome {
    /// Returns whether the new repository has all that was to be copied.
    pub fn is_whole(&self) -> bool {
        self.unreadable.is_empty() && self.damaged.is_empty() && self.failed.is_empty()
    }
}

/// Returns what the new repository lacks, in the order of its turn.
pub fn plan<'r>(request: &Request<'r>) -> Result<Vec<Task<'r>>> {
    request.known()?;
    let keys = request.keys();
    let held = request.objects(request.from)?;
    let there = request.objects(request.to)?;
    request.refuse_mere_copies(&held, &there)?;
    let mut tasks: Vec<Task<'r>> = held
        .iter()
        .filter(|(key, _)| !there.contains_key(*key))
        .filter(|(key, _)| is_of_whole_backup(&keys, key, |summary| held.contains_key(summary)))
        .map(|(_, object)| Task { from: request.from, to: request.to, object: object.clone() })
        .collect();
    bring_in_order(&mut tasks);
    Ok(tasks)
}

/// Returns how many objects `other` holds that the repository that is copied lacks.
pub fn only_in(request: &Request<'_>, other: &Repository) -> Result<usize> {
    let keys = request.keys();
    let (held, theirs) = (request.objects(request.from)?, request.objects(other)?);
    let counts = |key: &&String| {
        !held.contains_key(*key)
            && !key.starts_with(&keys.digests())
            && is_of_whole_backup(&keys, key, |summary| theirs.contains_key(summary))
    };
    Ok(theirs.keys().filter(counts).count())
}

/// Carries out the tasks, several at once. The new repository is initialised first, where it was not.
pub fn run(
    request: &Request<'_>,
    tasks: &[Task<'_>],
    parallel: usize,
    progress: &Progress,
) -> Result<Outcome> {
    request.initialise()?;
    let run = Run {
        request,
        keys: request.keys(),
        written: Mutex::default(),
        left_out: Mutex::default(),
        unencrypted: AtomicUsize::new(0),
    };
    let copied = run_with(tasks, parallel, progress, |task| run.copy(task));
    let mut outcome = Outcome {
        copied: copied.copied,
        bytes: copied.bytes,
        unencrypted: run.unencrypted.into_inner(),
        failed: copied.failed,
        ..Outcome::default()
    };
    for (key, error) in run.left_out.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match error.kind() {
            Kind::Config => outcome.unreadable.push(key),
            _ => outcome.damaged.push((key, error.to_string())),
        }
    }
    Ok(outcome)
}

impl Request<'_> {
    fn keys(&self) -> ClusterKeys {
        ClusterKeys::new(self.cluster, self.sysid)
    }

    /// Returns everything that is copied. Backups are listed first: the WAL of one that becomes complete meanwhile is then in
    /// the listing of WAL.
    fn objects(&self, repository: &Repository) -> Result<BTreeMap<String, storage::Object>> {
        let keys = self.keys();
        objects_in(repository, &[keys.backups(), keys.wal(), keys.digests(), keys.pins()])
    }

    /// Returns whether the new repository was begun. Fails where that was not by this command, or for other recipients: what
    /// is stored cannot be wrapped anew.
    fn known(&self) -> Result<bool> {
        let refuse = |why: &str| {
            let text = format!("repository \"{}\" {why}", self.to.name());
            Err(Error::new(Kind::Conflict, text).with_hint(EMPTY))
        };
        match ClusterFile::read(self.to, &self.keys(), &self.to.deadline()) {
            Ok(file) if file.recipients.as_deref() == Some(self.recipients) => Ok(true),
            Ok(ClusterFile { recipients: Some(_), .. }) => refuse("was begun for other recipients"),
            Ok(_) => refuse("was set up by walden init, not by this command, which does it by itself"),
            Err(error) if error.is_not_found() => Ok(false),
            Err(error) => Err(self.to.error("look into", &error)),
        }
    }

    /// Makes the new repository one of the cluster.
    fn initialise(&self) -> Result<()> {
        if self.known()? {
            return Ok(());
        }
        let keys = self.keys();
        let to = self.to;
        let old = ClusterFile::read(self.from, &keys, &self.from.deadline())
            .map_err(|error| self.from.error("look into", &error))?;
        let new = ClusterFile::new(self.cluster, self.sysid, old.wal_segment_size, old.postgresql_version);
        ClusterFile { recipients: Some(self.recipients.to_owned()), ..new }
            .set_up(to, self.sealer.ending())?;
        // Of two that began at once one has written it.
        self.known().map(drop)
    }

    /// Fails where what both hold is the same with the same header: the new repository was filled by `sync`, and nothing in
    /// it can be replaced.
    fn refuse_mere_copies(
        &self,
        held: &BTreeMap<String, storage::Object>,
        there: &BTreeMap<String, storage::Object>,
    ) -> Result<()> {
        let both: Vec<&String> =
            there.keys().filter(|key| key.ends_with(LZ4_AGE) && held.contains_key(*key)).collect();
        for key in both.iter().step_by(both.len().div_ceil(SAMPLES).max(1)) {
            let (old, new) =
                (start(self.from, key, held[*key].size)?, start(self.to, key, there[*key].size)?);
            let header = |start: &[u8]| Some(start.get(..header_length(start)? as usize)?.to_vec());
            if header(&old).is_some() && header(&old) == header(&new) {
                return Err(Error::new(
                    Kind::Conflict,
                    format!(
                        "\"{key}\" in repository \"{}\" is wrapped as it was: it came there by sync",
                        self.to.name()
                    ),
                )
                .with_hint(
                    "what is stored is never rewritten; give a prefix or directory that holds nothing yet",
                ));
            }
        }
        Ok(())
    }
}

/// Returns the first bytes of an object.
fn start(repository: &Repository, key: &str, size: u64) -> Result<Vec<u8>> {
    let what = format!("get \"{key}\" from");
    let range = Some(0..size.min(START));
    let mut bytes = Vec::new();
    repository
        .storage()
        .get(key, range, &repository.deadline())
        .map_err(|error| repository.error(&what, &error))?
        .read_to_end(&mut bytes)
        .map_err(|error| {
            Error::new(Kind::Repository, format!("{what} repository \"{}\": {error}", repository.name()))
        })?;
    Ok(bytes)
}

/// One run.
struct Run<'a> {
    request: &'a Request<'a>,
    keys: ClusterKeys,
    /// Size and CRC-32 of what this run wrote.
    written: Mutex<HashMap<String, (u64, u32)>>,
    /// What no identity opens, and what is damaged.
    left_out: Mutex<BTreeMap<String, Error>>,
    unencrypted: AtomicUsize,
}

impl Run<'_> {
    /// Copies one object. What cannot be is left out, and named in the end.
    fn copy(&self, task: &Task<'_>) -> Result<Copied> {
        let key = &task.object.key;
        let done = if key.ends_with(SUMMARY_NAME) && key.starts_with(&self.keys.backups()) {
            self.copy_summary(task).map(|()| None)
        } else if key.ends_with(LZ4_AGE) && task.object.size <= LARGEST_WHOLE {
            self.copy_checked(task)
        } else if key.ends_with(LZ4_AGE) {
            copy_changed(task.from, task.to, key, &|start| self.rewrap(key, start).map(Some))
        } else {
            self.unencrypted.fetch_add(usize::from(key.ends_with(codec::LZ4)), Ordering::Relaxed);
            copy_object(task.from, task.to, key).map(|()| None)
        };
        let error = match done {
            Ok(written) => {
                // Where a store cannot refuse a second write, somebody else's may have come after this one.
                if let Some(written) = written.filter(|_| task.to.storage().writes_conditionally()) {
                    lock(&self.written).insert(key.clone(), written);
                }
                return Ok(Copied::There);
            }
            Err(error) => error,
        };
        let left = match error.kind() {
            Kind::Config => Copied::Later,
            Kind::Corrupt => Copied::LeftOut,
            // It expired since it was listed.
            _ if task
                .from
                .storage()
                .head(key, &task.from.deadline())
                .is_err_and(|error| error.is_not_found()) =>
            {
                return Ok(Copied::LeftOut);
            }
            _ => return Err(error),
        };
        tracing::warn!("{error}; it is left out");
        lock(&self.left_out).insert(key.clone(), error);
        Ok(left)
    }

    fn rewrap(&self, key: &str, start: &[u8]) -> Result<(Vec<u8>, usize)> {
        codec::rewrap(start, self.request.opener, self.request.sealer)
            .map_err(|error| error.context(format!("rewrap \"{key}\"")))
    }

    /// Copies an object that fits into memory, and reads it to its end before: age authenticates every byte, and damage must
    /// not be handed on.
    fn copy_checked(&self, task: &Task<'_>) -> Result<Option<(u64, u32)>> {
        let Task { from, to, object } = task;
        let key = &object.key;
        let mut body = read_stored(from, key, object.size)?;
        let (header, replaced) = self.rewrap(key, &body)?;
        let mut plaintext = self.request.opener.open(key, &body[..])?;
        std::io::copy(&mut plaintext, &mut std::io::sink())
            .map_err(|error| codec::reading_failed(&error).context(format!("rewrap \"{key}\"")))?;
        drop(plaintext);
        body.splice(..replaced, header);
        let (size, crc) = (body.len() as u64, crc32fast::hash(&body));
        let put = to.storage().put_new(key, &Bytes::from(body), &to.deadline());
        let put = put.map_err(|error| to.error(&format!("put \"{key}\" to"), &error))?;
        Ok((put == Put::Created).then_some((size, crc)))
    }

    /// Writes the summary of a backup, once the new repository has all that the backup needs.
    fn copy_summary(&self, task: &Task<'_>) -> Result<()> {
        let key = &task.object.key;
        let below = key.strip_prefix(&self.keys.backups()).unwrap_or_default();
        let id = below.split('/').next().unwrap_or_default();
        let named = |error: Error| error.context(format!("rewrap backup {id}"));
        let mut summary = read_summary(task.from, &self.keys, id)
            .map_err(|error| named(task.from.error("read a backup's summary in", &error)))?;
        if summary.format > BACKUP_FORMAT {
            return Err(named(Error::corrupt(format!("its format is {}", summary.format))));
        }
        for segment in summary.wal_segments() {
            let name = ArchiveFileName::Segment(segment);
            let there = find_contents(task.to, &self.keys, name, &task.to.deadline())
                .map_err(|error| named(task.to.error("list", &error)))?;
            if there.is_empty() {
                let text = format!(
                    "WAL segment {segment}, which it needs, is not in repository \"{}\"",
                    task.to.name()
                );
                return Err(named(self.missing(&self.keys.wal_contents(name), text)));
            }
        }
        let folder = self.keys.backup(id);
        summary.stored_size = 0;
        let objects = summary
            .pieces
            .iter_mut()
            .chain(&mut summary.config)
            .chain(std::iter::once(&mut summary.manifest));
        for object in objects {
            self.describe(&folder, object).map_err(named)?;
            summary.stored_size += object.size;
        }
        let text = summary_text(&summary)?;
        let put = task.to.storage().put_new(key, &Bytes::from(text), &task.to.deadline());
        put.map(drop).map_err(|error| named(task.to.error("put backup.json to", &error)))
    }

    /// Returns the error for what a backup lacks: of the kind for which an object whose key begins with `key` was left out.
    fn missing(&self, key: &str, text: String) -> Error {
        let left_out = lock(&self.left_out);
        let why = left_out.iter().find(|(other, _)| other.starts_with(key)).map(|(_, error)| error.kind());
        Error::new(why.unwrap_or(Kind::Repository), text)
    }

    /// Gives `object` the size and the CRC-32 that it has in the new repository.
    fn describe(&self, folder: &str, object: &mut StoredObject) -> Result<()> {
        let key = format!("{folder}{}", object.name);
        if lock(&self.left_out).contains_key(&key) {
            return Err(self.missing(&key, format!("its object \"{}\" was left out", object.name)));
        }
        let written = lock(&self.written).remove(&key);
        (object.size, object.crc32) = match written {
            Some(written) => written,
            None => self.look_at(&key, object)?,
        };
        Ok(())
    }

    /// Returns size and CRC-32 of an object that an earlier run wrote, after a look at whether it is the same payload.
    fn look_at(&self, key: &str, object: &StoredObject) -> Result<(u64, u32)> {
        let Request { from, to, .. } = self.request;
        let failed = |error: &storage::Error| to.error(&format!("look at \"{key}\" in"), error);
        let size = to.storage().head(key, &to.deadline()).map_err(|error| failed(&error))?.size;
        let (length, crc, new) =
            checksum_stored(to, key, size, START as usize).map_err(|error| failed(&error))?;
        let same = if key.ends_with(LZ4_AGE) {
            let old = payload(&start(from, key, object.size)?, object.size);
            old.is_some() && old == payload(&new, length)
        } else {
            (length, crc) == (object.size, object.crc32)
        };
        if !same || length != size {
            return Err(Error::corrupt(format!(
                "\"{key}\" in repository \"{}\" is not what repository \"{}\" has",
                to.name(),
                from.name()
            )));
        }
        Ok((length, crc))
    }
}

/// Returns the length and the nonce of the payload of an object that begins with `start`; none where it has no whole header.
fn payload(start: &[u8], size: u64) -> Option<(u64, Vec<u8>)> {
    let header = header_length(start)?;
    let at = header as usize;
    Some((size.checked_sub(header)?, start.get(at..at + NONCE)?.to_vec()))
}

#[cfg(test)]
mod tests;
