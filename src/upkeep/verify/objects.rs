//! Looking at single objects, several at once.

use super::report::{Subject, Wrong};
use super::visit::Visit;
use crate::codec::{self, header_length};
use crate::index::{Seen, below_cluster};
use crate::kind::{Kind, Result};
use crate::parallel::{each_in_parallel, lock};
use crate::repository::checksum_stored;
use crate::storage::Object;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// How many targets are done before what their contents told is written down.
const BATCH: usize = 64;
/// After so many failures to look at something the rest of the repository is left, or after twice as many as there are
/// questions at once: one hiccup fails all that are under way.
const FAILURES: usize = 20;
/// The longest age header that is looked at, in bytes.
const LONGEST_HEADER: usize = 64 << 10;
/// How much two objects with the same content differ in length, in bytes: age's header is of no fixed length.
const HEADER_SLACK: u64 = 4 << 10;

/// An object and what it should be.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) object: Object,
    /// Size and CRC-32 of the stored bytes, where `backup.json` tells them.
    pub(super) expected: Option<(u64, u32)>,
    /// The size in bytes with which this host stored the content last.
    pub(super) stored_size: Option<u64>,
    pub(super) subject: Subject,
}

/// Checks the contents of a list of targets.
pub(super) trait Content: Sync {
    /// Checks the content of the target of that number.
    fn check(&self, at: usize) -> Result<()>;
    /// Takes note that the targets up to now are done.
    fn done(&self) {}
}

/// What looking at an object's stored bytes gave.
struct Stored {
    size: u64,
    crc: Option<u32>,
    /// Whether the object begins as its ending says; none where that was not looked at.
    begins: Option<bool>,
}

impl Visit<'_> {
    /// Looks at the targets, which are all that there is below the folder `folder`, or with `some` only a part of it.
    pub(super) fn look(
        &self,
        folder: &str,
        targets: &[Target],
        some: bool,
        deep: Option<&dyn Content>,
    ) -> Result<()> {
        let prefix = below_cluster(folder);
        let known =
            self.index.run(|index| index.seen(&self.stamp.url, self.sysid, prefix)).unwrap_or_default();
        let seen = |target: &Target| known.get(&target.object.key[folder.len()..]);
        if !some {
            let here: BTreeSet<&str> =
                targets.iter().map(|target| &target.object.key[folder.len()..]).collect();
            let gone = known.keys().filter(|key| !here.contains(key.as_str()));
            let gone: Vec<String> = gone.map(|key| format!("{prefix}{key}")).collect();
            if !gone.is_empty() {
                self.index.run(|index| index.forget_seen(&self.stamp.url, self.sysid, &gone));
            }
        }
        let new = targets.iter().filter(|target| !self.is_known(target, seen(target), deep.is_some()));
        let (new, more) = new.fold((0, 0), |(count, bytes), target| (count + 1, bytes + target.object.size));
        self.progress.set_total(self.total.fetch_add(more, Ordering::Relaxed) + more);
        let only_asks = deep.is_none() && !self.repository.is_local();
        let workers = if only_asks { self.request.questions } else { self.request.parallel };
        let workers = workers.min(new).max(1);
        let batch = if deep.is_some() { BATCH } else { usize::MAX };
        let mut result = Ok(());
        for from in (0..targets.len()).step_by(batch) {
            let count = (targets.len() - from).min(batch);
            result = each_in_parallel(workers, count, |at| {
                let target = &targets[from + at];
                let check = || deep.map_or(Ok(()), |deep| deep.check(from + at));
                match self.look_at(target, seen(target), deep.map(|_| &check as &dyn Fn() -> Result<()>)) {
                    Ok(()) => Ok(()),
                    Err(error) if self.failed(&error) < FAILURES.max(2 * workers) => Ok(()),
                    Err(error) => Err(error),
                }
            });
            if let Some(deep) = deep {
                deep.done();
            }
            if result.is_err() {
                break;
            }
        }
        self.flush();
        result.map_err(|error| error.context("given up"))
    }

    /// Returns whether the object need not be looked at: nothing has happened to it since it was.
    fn is_known(&self, target: &Target, seen: Option<&Seen>, deep: bool) -> bool {
        self.knows_bytes(target, seen) && (!deep || self.knows_content(target, seen))
    }

    fn knows_bytes(&self, target: &Target, seen: Option<&Seen>) -> bool {
        // What a store says of an object does not change as long as the object does not.
        let is_fresh = |at| if self.repository.is_local() { self.is_fresh(at) } else { !self.request.all };
        seen.is_some_and(|seen| is_same(target, seen) && is_fresh(seen.seen_at))
            && !self.damaged.contains_key(&target.object.key)
    }

    fn knows_content(&self, target: &Target, seen: Option<&Seen>) -> bool {
        let checked = seen.filter(|seen| is_same(target, seen)).and_then(|seen| seen.deep_at);
        checked.is_some_and(|at| self.is_fresh(at)) && !self.damaged.contains_key(&target.object.key)
    }

    fn is_fresh(&self, at: i64) -> bool {
        let age = Timestamp::now().as_microsecond().saturating_sub(at);
        !self.request.all && u128::from(age.max(0).unsigned_abs()) < self.request.reread.as_micros()
    }

    fn look_at(
        &self,
        target: &Target,
        seen: Option<&Seen>,
        deep: Option<&dyn Fn() -> Result<()>>,
    ) -> Result<()> {
        let Object { key, size, modified, .. } = &target.object;
        self.count(|report| {
            report.objects += 1;
            report.bytes += size;
        });
        let known = self.is_known(target, seen, deep.is_some());
        let mut problem = wrong_size(target, seen).map(|text| (Wrong::Size, text));
        // Where only what was seen before speaks against an object, its content decides.
        let content_decides = target.expected.is_none() && *size > 0;
        if problem.is_some() && (deep.is_none() || !content_decides) {
            if self.is_still_listed(target)? {
                self.settle(target, problem, None);
            }
            return Ok(());
        }
        let reference = target.expected.map(|(_, crc)| crc).or_else(|| seen.and_then(|seen| seen.crc));
        let known_bytes = seen.filter(|seen| self.knows_bytes(target, Some(seen)));
        let mut now = match known_bytes {
            Some(seen) => *seen,
            None => {
                let Some((stored, found)) = self.read(target, reference)? else { return Ok(()) };
                problem = problem.or(found);
                let deep_at = seen.filter(|seen| is_same(target, seen)).and_then(|seen| seen.deep_at);
                Seen { deep_at, ..Seen::now(*size, *modified, stored.crc) }
            }
        };
        if let (Some((_, expected)), Some(found), None) = (target.expected, now.crc, &problem)
            && expected != found
        {
            problem = Some((Wrong::Checksum, differs(found, expected)));
        }
        // What a store says of an object does not tell whether its bytes rotted since.
        let mut confirmed = target.expected.is_some() && self.repository.is_local();
        let to_check = deep.filter(|_| !self.knows_content(target, seen) || problem.is_some());
        if let Some(deep) = to_check
            && (problem.is_none() || content_decides)
        {
            match self.content(target, deep, known_bytes.is_none())? {
                None => return Ok(()),
                Some(Ok(())) => {
                    now.deep_at = Some(Timestamp::now().as_microsecond());
                    (problem, confirmed) = (None, true);
                }
                Some(Err(found)) => problem = Some(found),
            }
        }
        if !known {
            self.progress.add(*size);
        }
        if let (None, Some(what)) = (&problem, self.damaged.get(key)) {
            if confirmed {
                lock(&self.stale).remove(key);
                self.index.run(|index| index.refute_damage(&self.stamp.url, key));
            } else {
                problem = Some((Wrong::Content, format!("was found damaged: {what}")));
            }
        }
        self.settle(target, problem, Some(now).filter(|_| !known));
        if now.crc.is_none() {
            self.count(|report| report.without_checksum += 1);
        }
        Ok(())
    }

    /// Notes what is wrong with the target, else what was seen of it.
    fn settle(&self, target: &Target, problem: Option<(Wrong, String)>, seen: Option<Seen>) {
        let key = &target.object.key;
        match (problem, seen) {
            (Some((wrong, text)), _) => self.wrong(wrong, target.subject.clone(), Some(key), &text),
            (None, Some(seen)) => self.remember(key, seen),
            (None, None) => {}
        }
    }

    /// Checks the content, and a second time where that fails: a bad transfer is not a bad object. Returns what is wrong with
    /// it; none where the object is gone meanwhile. It is `counted` already where its bytes were looked at.
    #[allow(clippy::type_complexity, reason = "three outcomes of one look")]
    fn content(
        &self,
        target: &Target,
        deep: &dyn Fn() -> Result<()>,
        counted: bool,
    ) -> Result<Option<Result<(), (Wrong, String)>>> {
        let Err(error) = deep().or_else(|_| deep()) else {
            self.count(|report| {
                report.looked_at += u64::from(!counted);
                report.bytes_read += target.object.size;
            });
            return Ok(Some(Ok(())));
        };
        match error.kind() {
            Kind::Corrupt => Ok(Some(Err((Wrong::Content, error.message().to_owned())))),
            Kind::Config => Ok(Some(Err((Wrong::Undecryptable, error.message().to_owned())))),
            _ if !self.is_still_listed(target)? => Ok(None),
            _ => Err(error),
        }
    }

    /// Returns what is stored, and what is wrong with it; what seems wrong is looked at twice. None where it is gone.
    #[allow(clippy::type_complexity, reason = "what is there, and what is wrong with it")]
    fn read(
        &self,
        target: &Target,
        reference: Option<u32>,
    ) -> Result<Option<(Stored, Option<(Wrong, String)>)>> {
        let Object { key, size, .. } = &target.object;
        let Some(mut stored) = self.measured(key, *size)? else { return Ok(None) };
        if stored.is_wrong(*size, reference).is_some() {
            let Some(again) = self.measured(key, *size)? else { return Ok(None) };
            stored = again;
        }
        self.count(|report| {
            report.looked_at += 1;
            report.bytes_read += if self.repository.is_local() { stored.size } else { 0 };
        });
        let wrong = stored.is_wrong(*size, reference);
        Ok(Some((stored, wrong)))
    }

    /// Returns what there is under a key now: by its bytes in a directory, by what the store says elsewhere. None where it is
    /// gone.
    fn measured(&self, key: &str, size: u64) -> Result<Option<Stored>> {
        let found = if self.repository.is_local() {
            checksum_stored(self.repository, key, size, LONGEST_HEADER).map(|(size, crc, head)| {
                let begins = key.ends_with(codec::LZ4_AGE).then(|| header_length(&head).is_some());
                Stored { size, crc: Some(crc), begins }
            })
        } else {
            let head = self.repository.storage().head(key, &self.repository.deadline());
            head.map(|object| Stored { size: object.size, crc: object.crc32, begins: None })
        };
        match found {
            Ok(stored) => Ok(Some(stored)),
            Err(error) if error.is_not_found() => {
                lock(&self.vanished).insert(key.to_owned());
                Ok(None)
            }
            Err(error) => Err(self.repository.error(&format!("look at \"{key}\" in"), &error)),
        }
    }

    /// Returns whether the object is still there as it was listed.
    fn is_still_listed(&self, target: &Target) -> Result<bool> {
        let Object { key, size, .. } = &target.object;
        match self.repository.storage().head(key, &self.repository.deadline()) {
            Ok(object) => Ok(object.size == *size),
            Err(error) if error.is_not_found() => {
                lock(&self.vanished).insert(key.clone());
                Ok(false)
            }
            Err(error) => Err(self.repository.error(&format!("look at \"{key}\" in"), &error)),
        }
    }
}

impl Stored {
    /// Returns what is wrong with an object that was listed with `size` bytes and should have that CRC-32.
    fn is_wrong(&self, size: u64, reference: Option<u32>) -> Option<(Wrong, String)> {
        if self.size != size {
            return Some((Wrong::Size, format!("has {} bytes, the listing says {size}", self.size)));
        }
        match (self.crc, reference) {
            (Some(found), Some(expected)) if found != expected => {
                Some((Wrong::Checksum, differs(found, expected)))
            }
            _ if self.begins == Some(false) => {
                Some((Wrong::Checksum, "does not begin as an encrypted object does".to_owned()))
            }
            _ => None,
        }
    }
}

fn differs(found: u32, expected: u32) -> String {
    format!("CRC-32 of the stored bytes is {found:08x}, expected {expected:08x}")
}

/// Returns whether the listing shows the object as it was seen.
fn is_same(target: &Target, seen: &Seen) -> bool {
    let modified = target.object.modified.map(Timestamp::as_microsecond);
    seen.seen_at > 0 && seen.size == target.object.size && seen.modified == modified
}

/// Returns what is wrong with the size that the listing shows.
fn wrong_size(target: &Target, seen: Option<&Seen>) -> Option<String> {
    let size = target.object.size;
    let expected = target.expected.map(|(size, _)| size).or_else(|| seen.map(|seen| seen.size));
    match (expected, target.stored_size) {
        (Some(expected), _) if expected != size => Some(format!("has {size} bytes, expected {expected}")),
        (None, _) if size == 0 => Some("is empty".to_owned()),
        (None, Some(stored)) if size.saturating_add(HEADER_SLACK) < stored => {
            Some(format!("has {size} bytes, stored were about {stored}"))
        }
        _ => None,
    }
}
