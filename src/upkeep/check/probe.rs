//! What a repository lets this host do, tried out on a small object of its own.
//!
//! Each run has a key of its own, because others may check at the same time. Where this host may not delete, every run would
//! leave an object behind: there all runs share one, which stays.

use super::{Item, Shared, Target, clock, place};
use crate::kind::{Error, Kind, Result};
use crate::postgres::ControlFile;
use crate::repository::{ClusterFile, ClusterKeys, ClusterState, Repository};
use crate::storage::{self, Deadline, Object, Put};
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use std::io::Read;
use std::sync::PoisonError;
use std::time::Duration;

/// What the probe holds; always the same, so that one that could not be deleted is as good as a new one.
const CONTENT: &[u8] = b"walden check wrote this to see whether it may; it can be deleted\n";
/// What a second write under its key would make of it.
const OTHER: &[u8] = b"walden check overwrote the probe: this store does not refuse a second write\n";

/// How long all calls to one repository may take together.
const LIMIT: Duration = Duration::from_secs(45);
/// By how much a probe must be older than this run's to be one that a run left behind; far longer than [`LIMIT`].
const LEFT_BEHIND: SignedDuration = SignedDuration::from_hours(1);
/// How many probes are looked through.
const LISTED: usize = 1000;

type Say<'a> = &'a mut dyn FnMut(Item);

/// Checks one repository. Where it cannot be reached or belongs to another cluster, that is all that is said.
pub(super) fn check(shared: &Shared, target: &Target, say: Say<'_>) {
    let Some((control, keys)) = shared.control.get().zip(shared.keys()) else {
        return say(Item::skipped("cluster", "which cluster it should hold is not known: see data_dir"));
    };
    let deadline = target.repository.deadline();
    deadline.cut_after(LIMIT);
    match ask(target, &shared.subject.cluster, control, &deadline) {
        Ok(file) => say(Item::ok(
            "cluster",
            format!(
                "{}: cluster.json of format {}, system identifier {}",
                target.repository.url(),
                file.format,
                file.system_identifier
            ),
        )),
        Err(error) => return say(Item::failed("cluster", &error)),
    }
    shared.usable.lock().unwrap_or_else(PoisonError::into_inner).insert(target.repository.name().to_owned());
    if let Some(root) = &target.directory {
        place::check(shared, root, say);
    }
    let mut timed = false;
    Probe::new(target, keys, deadline).run(&mut |item| {
        timed |= item.name == "clock";
        say(item);
    });
    if timed {
        shared
            .timed
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(target.repository.name().to_owned());
    }
}

/// Returns the repository's `cluster.json`, if it is this cluster's.
fn ask(target: &Target, cluster: &str, control: &ControlFile, deadline: &Deadline) -> Result<ClusterFile> {
    let (repository, sysid) = (&target.repository, control.system_identifier);
    let state = ClusterState::ask(repository, cluster, sysid, deadline).map_err(|error| {
        repository
            .error("look into", &error)
            .with_hint("is it mounted, or can the network and the credentials be relied on?")
    })?;
    let file = match state {
        ClusterState::Known(file) => file,
        ClusterState::OtherOnly(others) => {
            let others: Vec<String> = others.iter().map(ToString::to_string).collect();
            let message = format!(
                "\"{cluster}\" in {} belongs to system identifier {}, and the data directory has {sysid}",
                repository.url(),
                others.join(", ")
            );
            return Err(Error::corrupt(message).with_hint(
                "after pg_upgrade run walden init again; else another cluster has this name: give this one a name of its own",
            ));
        }
        ClusterState::Nothing => {
            let message = format!("{} holds no cluster \"{cluster}\"", repository.url());
            return Err(Error::new(Kind::Repository, message)
                .with_hint("not mounted, a wrong prefix, or not initialised: walden init"));
        }
    };
    if file.system_identifier != sysid || file.wal_segment_size != control.wal_segment_size {
        let message = format!(
            "cluster.json says system identifier {} and WAL segments of {} bytes, the data directory {sysid} and {}",
            file.system_identifier,
            file.wal_segment_size.bytes(),
            control.wal_segment_size.bytes()
        );
        return Err(
            Error::corrupt(message).with_hint("it was written for another cluster, or changed by hand")
        );
    }
    Ok(file)
}

/// The probe of one repository.
struct Probe<'a> {
    target: &'a Target,
    keys: ClusterKeys,
    deadline: Deadline,
    /// The folder of this run.
    folder: String,
    key: String,
    may_delete: bool,
}

impl<'a> Probe<'a> {
    fn new(target: &'a Target, keys: ClusterKeys, deadline: Deadline) -> Self {
        let run = format!("{:016x}", fastrand::u64(..));
        let (folder, own) = (keys.probe_folder(&run), keys.probe(&run));
        // A store refuses this whether there is such an object or not; other failures show again further on.
        let deleted = target.repository.storage().delete(&own, &deadline);
        let may_delete = !matches!(deleted, Err(storage::Error::Refused(_)));
        let key = if may_delete { own } else { keys.lasting_probe() };
        Self { target, keys, deadline, folder, key, may_delete }
    }

    fn run(&self, say: Say<'_>) {
        let (repository, key) = (&self.target.repository, &self.key);
        let store = repository.storage();
        let from = Timestamp::now();
        let put = match store.put_new(key, &Bytes::from_static(CONTENT), &self.deadline) {
            Ok(put) => put,
            Err(error) => return say(self.failed("write", "put to", &error)),
        };
        let to = Timestamp::now();
        say(Item::ok(
            "write",
            match put {
                Put::Created => format!("\"{key}\""),
                Put::Existed => format!(
                    "\"{key}\" of an earlier check is there and was refused; a round trip writes more"
                ),
            },
        ));
        say(self.second_write());
        self.read(say);
        let left_behind = self.list((put == Put::Created).then_some((from, to)), say);
        say(self.delete(&left_behind));
    }

    fn failed(&self, name: &str, what: &str, error: &storage::Error) -> Item {
        Item::failed(name, &self.target.repository.error(what, error))
    }

    /// Whether a key that is taken stays as it is.
    fn second_write(&self) -> Item {
        const NAME: &str = "conditional write";
        let repository = &self.target.repository;
        let again = repository.storage().put_new(&self.key, &Bytes::from_static(OTHER), &self.deadline);
        let conditional = repository.storage().writes_conditionally();
        match again {
            Ok(Put::Existed) if conditional => Item::ok(NAME, "a second write under the same key is refused"),
            Ok(Put::Existed) if !self.target.conditional_writes => Item::ok(
                NAME,
                "not used (conditional_writes = false): the store is asked first whether a key is taken",
            ),
            Ok(Put::Existed) => Item::risk(
                NAME,
                "the store does not know conditional writes: it is asked first whether a key is taken, and of two hosts \
                 that write at the same moment one may overwrite the other",
                "where that is known and accepted, conditional_writes = false in its [[repository]]",
            ),
            Ok(Put::Created) => Item::risk(
                NAME,
                "a second write under the same key overwrote the first: the store ignores If-None-Match",
                "set conditional_writes = false in its [[repository]]: then it is asked first whether a key is taken",
            ),
            Err(error) => self.failed(NAME, "put to", &error),
        }
    }

    /// Whether it comes back; where the second write overwrote it, as that left it.
    fn read(&self, say: Say<'_>) {
        let repository = &self.target.repository;
        let reader = match repository.storage().get(&self.key, None, &self.deadline) {
            Ok(reader) => reader,
            Err(error) => return say(self.failed("read", "get the probe from", &error)),
        };
        let mut content = Vec::new();
        let read = reader.take(1 << 16).read_to_end(&mut content);
        say(match read {
            Err(error) => {
                let message = format!("get the probe from repository \"{}\": {error}", repository.name());
                Item::failed("read", &Error::new(Kind::Repository, message))
            }
            Ok(_) if content == CONTENT || content == OTHER => {
                Item::ok("read", "it comes back as it was written")
            }
            Ok(_) => Item::failed(
                "read",
                &Error::corrupt("the probe does not come back as it was written")
                    .with_hint("the store, or something on the way to it, changes what it is given"),
            ),
        });
    }

    /// Whether it is listed. Returns the keys of probes that runs left behind which were killed, or which might not delete.
    fn list(&self, written: Option<(Timestamp, Timestamp)>, say: Say<'_>) -> Vec<String> {
        let repository = &self.target.repository;
        let listed = match repository.storage().list(&self.key, "", 1, &self.deadline) {
            Ok(listed) => listed,
            Err(error) => {
                say(self.failed("list", "list", &error));
                return vec![];
            }
        };
        let Some(object) = listed.into_iter().find(|object| object.key == self.key) else {
            let message = format!(
                "a listing of repository \"{}\" does not show what was just written",
                repository.name()
            );
            let error = Error::new(Kind::Repository, message);
            say(Item::failed(
                "list",
                &error.with_hint("Walden relies on listings that show every object at once, as S3's do"),
            ));
            return vec![];
        };
        say(Item::ok("list", "it is listed"));
        if let Some((span, stored)) = written.zip(object.modified) {
            say(store_clock(repository, stored, span));
        }
        let is_left = |other: &Object| {
            let older = object.modified.zip(other.modified).map(|(ours, other)| ours.duration_since(other));
            older.is_some_and(|older| older > LEFT_BEHIND)
        };
        let others = repository.storage().list(&self.keys.probes(), "", LISTED, &self.deadline);
        others.unwrap_or_default().into_iter().filter(is_left).map(|other| other.key).collect()
    }

    /// Whether this host may delete; then so may who takes it over.
    fn delete(&self, left_behind: &[String]) -> Item {
        let (repository, key) = (&self.target.repository, &self.key);
        let deleted = if self.may_delete {
            repository.storage().delete(key, &self.deadline)
        } else {
            Err(storage::Error::Refused(String::new()))
        };
        match deleted {
            Ok(()) => {}
            Err(storage::Error::Refused(_)) => {
                return Item::ok(
                    "delete",
                    format!(
                        "no right to delete: what is archived cannot be removed from here; \"{key}\" stays"
                    ),
                );
            }
            Err(error) => return self.failed("delete", "remove the probe from", &error),
        }
        // Nobody else writes there. What a run left behind is tried again by the next one.
        let _ = repository.storage().tidy(&self.folder, &self.deadline);
        for key in left_behind {
            let _ = repository.storage().delete(key, &self.deadline);
            // Whoever runs now has another folder below that of all.
            if let Some((folder, _)) = key.rsplit_once('/').filter(|_| *key != self.keys.lasting_probe()) {
                let _ = repository.storage().tidy(&format!("{folder}/"), &self.deadline);
            }
        }
        let found = "this host may delete: who takes it over can remove every backup";
        match &self.target.bucket {
            Some(bucket) => Item::risk("delete", found, policy(bucket)),
            None => Item::risk(
                "delete",
                found,
                "keep a second repository that it cannot delete from, such as S3 with a policy, or snapshots of this one",
            ),
        }
    }
}

/// Returns the item for the clock by which the store notes when an object was written.
pub(super) fn store_clock(repository: &Repository, stored: Timestamp, span: (Timestamp, Timestamp)) -> Item {
    // S3 says whole seconds.
    let resolution = if repository.is_local() { 0.1 } else { 1.0 };
    clock::item("clock", "the store's clock", stored, span, resolution)
}

/// Returns what to put into the bucket's policy. Uploads in parts bear the condition on their completion only.
fn policy(bucket: &str) -> String {
    let name = bucket.split('/').next().unwrap_or(bucket);
    format!(
        r#"put these statements into the policy of bucket "{name}", with this host's role as the principal, and run walden
expire elsewhere; a bucket with versions or Object Lock keeps what was deleted or overwritten
{{ "Effect": "Deny", "Principal": {{ "AWS": "arn:aws:iam::ACCOUNT:role/ROLE" }},
  "Action": ["s3:DeleteObject", "s3:DeleteObjectVersion"], "Resource": "arn:aws:s3:::{bucket}/*" }},
{{ "Effect": "Deny", "Principal": {{ "AWS": "arn:aws:iam::ACCOUNT:role/ROLE" }},
  "Action": "s3:PutObject", "Resource": "arn:aws:s3:::{bucket}/*",
  "Condition": {{ "Null": {{ "s3:if-none-match": "true" }}, "Bool": {{ "s3:ObjectCreationOperation": "true" }} }} }}"#
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_is_json() {
        let text = policy("acme-wal/prod");
        let statements = &text[text.find('{').unwrap()..];
        let parsed: serde_json::Value = serde_json::from_str(&format!("[{statements}]")).unwrap();
        assert_eq!(parsed[0]["Resource"], "arn:aws:s3:::acme-wal/prod/*");
    }
}
