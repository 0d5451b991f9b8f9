//! A real segment on its way: a restore point, a switch to the next segment, and the server's archiver does the rest. The
//! segment must arrive in each repository and read back. A standby cannot switch: there the newest archived segment is read.

use super::{Item, Shared, Target, probe};
use crate::codec::Opener;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::wal::{ReaderOptions, Summarizer};
use crate::postgres::{ArchiveFileName, ControlFile, WalSegmentName};
use crate::repository::{
    ClusterKeys, Repository, WalObject, copy_wal_object, find_contents, list_wal_from, list_wal_timeline,
};
use crate::server::{Server, quote_literal};
use jiff::Timestamp;
use std::io::{Read, Write};
use std::time::{Duration, Instant};

const NAME: &str = "round trip";

/// How often it is looked for the segment: first, and at the longest. Each look is a listing.
const FIRST_LOOK: Duration = Duration::from_millis(50);
const LOOK: Duration = Duration::from_secs(2);
/// How long a repository may lack what the server says is archived, where none has it, and where another has.
const NOWHERE: Duration = Duration::from_secs(5);
const BEHIND: Duration = Duration::from_secs(15);
/// How many attempts of the archiver must fail before the wait is given up: it makes so many in a row.
const FAILURES: i64 = 3;
/// After how long it is said what is waited for.
const WORTH_SAYING: Duration = Duration::from_secs(2);
/// How many bytes a restore point's record takes at the most, with the headers of a page.
const RECORD: u64 = 256;

type Say<'a> = &'a mut dyn FnMut(Item);

/// The segment that is sent around.
struct Sent {
    segment: WalSegmentName,
    /// The restore point in it.
    restore_point: String,
    /// When it was begun.
    began: Timestamp,
    archiver: Archiver,
}

/// What the server's archiver has done so far.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Archiver {
    archived: i64,
    failed: i64,
    last_archived: String,
    last_failed: String,
}

impl Archiver {
    fn ask(server: &mut Server) -> Result<Self> {
        let rows = server.rows(
            "select archived_count, failed_count, last_archived_wal, last_failed_wal from pg_stat_archiver",
        )?;
        let mut row = rows.into_iter().next().unwrap_or_default().into_iter();
        let mut column = || row.next().flatten().unwrap_or_default();
        Ok(Self {
            archived: column().parse().unwrap_or(0),
            failed: column().parse().unwrap_or(0),
            last_archived: column(),
            last_failed: column(),
        })
    }

    /// Returns whether the segment counts as archived.
    fn has_archived(&self, segment: WalSegmentName) -> bool {
        let name = segment.to_string();
        let same_timeline = self.last_archived.get(..8) == name.get(..8);
        self.last_archived.len() == name.len() && same_timeline && self.last_archived >= name
    }
}

/// Sends a segment around, or says why not.
pub(super) fn check(shared: &Shared, say: Say<'_>) {
    if let Err(item) = try_check(shared, say) {
        say(*item);
    }
}

fn try_check(shared: &Shared, say: Say<'_>) -> Result<(), Box<Item>> {
    let skipped = |why: &str| Box::new(Item::skipped(NAME, why));
    if !shared.subject.round_trip {
        return Err(skipped("left out (--no-round-trip): no restore point is made, and no segment switched"));
    }
    let facts = shared.facts.get().ok_or_else(|| skipped("the server cannot be asked"))?;
    let (control, keys) =
        shared.control.get().zip(shared.keys()).ok_or_else(|| skipped("data_dir cannot be read"))?;
    let usable = |target: &&Target| shared.is_usable(target.repository.name());
    let targets: Vec<&Target> = shared.subject.targets.iter().filter(usable).collect();
    if targets.is_empty() {
        return Err(skipped("no repository can be used"));
    }
    let failed = |error: Error| Box::new(Item::failed(NAME, &error));
    let opener = opener(shared).map_err(|_| skipped("the identity cannot be used: see keys"))?;
    let trip = Trip { control, keys, opener };
    if facts.standby {
        for target in targets {
            say(trip.newest(&target.repository).of(target.repository.name()));
        }
        return Ok(());
    }
    if !facts.archives {
        return Err(skipped("archive_mode is off: nothing would arrive"));
    }
    if !facts.may_switch {
        return Err(skipped("the role may not make one: see privileges"));
    }
    let sent = shared
        .with_session(|server| send(server, control))
        .ok_or_else(|| skipped("the server cannot be asked"))?
        .map_err(failed)?;
    trip.follow(shared, &sent, &targets, say);
    Ok(())
}

fn opener(shared: &Shared) -> Result<Opener> {
    match &shared.subject.identity_file {
        Some(path) => Opener::from_identity_file(path),
        None => Ok(Opener::without_identity()),
    }
}

/// Makes a restore point and ends its segment.
fn send(server: &mut Server, control: &ControlFile) -> Result<Sent> {
    let began = Timestamp::now();
    let restore_point = format!("walden check {}", began.strftime("%Y-%m-%dT%H:%M:%SZ"));
    let archiver = Archiver::ask(server)?;
    let point = format!("select pg_create_restore_point({})", quote_literal(&restore_point));
    let make = |server: &mut Server| -> Result<crate::postgres::Lsn> {
        server.query_one_text(&point)?.parse().kind(Kind::Server, "position of the restore point")
    };
    let size = control.wal_segment_size.bytes();
    let mut end = make(server).map_err(|error| error.context("create restore point"))?;
    // One that begins in the segment before cannot be read from this one alone; the next cannot.
    if end.0 % size < RECORD {
        end = make(server).map_err(|error| error.context("create restore point"))?;
    }
    let name = server.query_one_text(&format!("select pg_walfile_name('{end}')"))?;
    server.execute("select pg_switch_wal()").map_err(|error| error.context("switch to another segment"))?;
    let segment = name.parse().kind(Kind::Server, "name of the segment")?;
    Ok(Sent { segment, restore_point, began, archiver })
}

/// What reading back takes.
struct Trip<'a> {
    control: &'a ControlFile,
    keys: ClusterKeys,
    opener: Opener,
}

impl Trip<'_> {
    /// Waits for the segment in each repository, and reads it back from there.
    fn follow(&self, shared: &Shared, sent: &Sent, targets: &[&Target], say: Say<'_>) {
        let began = Instant::now();
        let mut waiting: Vec<&Target> = targets.to_vec();
        let mut arrived: Vec<(&Target, WalObject, Timestamp)> = Vec::new();
        let mut archived_since = None;
        let mut pause = FIRST_LOOK;
        let mut said = false;
        let gave_up = loop {
            waiting.retain(|target| match self.look(&target.repository, sent.segment) {
                Some(object) => {
                    arrived.push((target, object, Timestamp::now()));
                    false
                }
                None => true,
            });
            if waiting.is_empty() {
                break None;
            }
            let now = shared.with_session(Archiver::ask).and_then(Result::ok);
            if now.as_ref().is_some_and(|now| now.has_archived(sent.segment)) {
                archived_since.get_or_insert_with(Instant::now);
            }
            let patience = if arrived.is_empty() { NOWHERE } else { BEHIND };
            let over = archived_since.is_some_and(|since| since.elapsed() > patience)
                || began.elapsed() > shared.subject.deadline
                || now.as_ref().is_some_and(|now| {
                    now.archived == sent.archiver.archived && now.failed >= sent.archiver.failed + FAILURES
                });
            if over {
                break Some((now, began.elapsed()));
            }
            if !said && began.elapsed() > WORTH_SAYING {
                said = true;
                let names: Vec<&str> = waiting.iter().map(|target| target.repository.name()).collect();
                tracing::info!("waiting for WAL segment {} in repository {}", sent.segment, names.join(", "));
            }
            std::thread::sleep(pause);
            pause = (pause * 2).min(LOOK);
        };
        let somewhere = !arrived.is_empty();
        for target in targets {
            let name = target.repository.name();
            match arrived.iter().find(|(found, ..)| found.repository.name() == name) {
                Some((_, object, seen)) => {
                    let item = self.read_back(&target.repository, object, sent, began.elapsed());
                    say(item.of(name));
                    // A probe that could not be deleted tells nothing of the present.
                    if let Some(stored) = object.object.modified.filter(|_| !shared.is_timed(name)) {
                        say(probe::store_clock(&target.repository, stored, (sent.began, *seen)).of(name));
                    }
                }
                None => {
                    let (now, waited) = gave_up.clone().unwrap_or((None, Duration::ZERO));
                    let error = lacking(shared, sent, somewhere, now.as_ref(), waited);
                    say(Item::failed(NAME, &error).of(name));
                }
            }
        }
    }

    /// Returns the segment, if the repository has it by now. One that does not answer has not.
    fn look(&self, repository: &Repository, segment: WalSegmentName) -> Option<WalObject> {
        let name = ArchiveFileName::Segment(segment);
        find_contents(repository, &self.keys, name, &repository.deadline()).ok()?.pop()
    }

    fn read_back(&self, repository: &Repository, object: &WalObject, sent: &Sent, took: Duration) -> Item {
        let segment = sent.segment;
        match self.content(repository, object) {
            Err(error) => Item::failed(NAME, &error),
            Ok(Content::Plain(points)) if points.contains(&sent.restore_point) => Item::ok(
                NAME,
                format!(
                    "{segment} arrived and reads back, restore point \"{}\" in it ({:.1} s)",
                    sent.restore_point,
                    took.as_secs_f64()
                ),
            ),
            Ok(Content::Plain(_)) => Item::failed(
                NAME,
                &Error::corrupt(format!("{segment} reads back, and restore point \"{}\" is not in it", sent.restore_point))
                    .with_hint("another server archives under this cluster's name and system identifier, a copy of it perhaps"),
            ),
            Ok(Content::Stored(how)) => {
                Item::ok(NAME, format!("{segment} arrived and reads back, {how} ({:.1} s)", took.as_secs_f64()))
            }
        }
    }

    /// Reads the newest segment that is archived.
    fn newest(&self, repository: &Repository) -> Item {
        let found = self.find_newest(repository);
        match found.and_then(|object| Ok((self.content(repository, &object)?, object))) {
            Ok((content, object)) => {
                let how = match content {
                    Content::Plain(_) => "decrypted, with the right CRC".to_owned(),
                    Content::Stored(how) => how,
                };
                Item::ok(
                    NAME,
                    format!("a standby cannot switch; \"{}\", archived last, reads back, {how}", object.name),
                )
            }
            Err(error) => Item::failed(NAME, &error),
        }
    }

    fn find_newest(&self, repository: &Repository) -> Result<WalObject> {
        let (timeline, size) = (self.control.timeline, self.control.wal_segment_size);
        let from = WalSegmentName::containing(timeline, self.control.redo, size);
        let deadline = repository.deadline();
        let named = |error| repository.error("list", &error);
        let mut objects =
            list_wal_from(repository, &self.keys, from, 1000, &deadline).map_err(named)?.objects;
        if objects.is_empty() {
            objects = list_wal_timeline(repository, &self.keys, timeline, &deadline).map_err(named)?;
        }
        objects.into_iter().rfind(|object| object.segment().is_some()).ok_or_else(|| {
            Error::new(Kind::Repository, format!("no WAL of timeline {} is archived", timeline.0))
                .with_hint("does the primary archive into this repository? walden check says, there")
        })
    }

    fn content(&self, repository: &Repository, object: &WalObject) -> Result<Content> {
        let key = &object.object.key;
        if key.ends_with(crate::codec::LZ4_AGE) && !self.opener.has_identity() {
            return stored(repository, object).map(Content::Stored);
        }
        let mut reader = Reading(Summarizer::new(ReaderOptions::default(), None));
        let length = self.control.wal_segment_size.bytes();
        copy_wal_object(repository, object, Some(length), &self.opener, &mut reader)?;
        let (summary, ..) = reader.0.finish();
        Ok(Content::Plain(summary.restore_points.into_iter().map(|point| point.name).collect()))
    }
}

/// What came back.
enum Content {
    /// The plaintext, with the right CRC; the names of the restore points in it.
    Plain(Vec<String>),
    /// The ciphertext; how far it was compared.
    Stored(String),
}

/// A segment that is read while it comes.
struct Reading(Summarizer);

impl Write for Reading {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.push(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Reads the ciphertext and compares length and CRC-32 with what the store says.
fn stored(repository: &Repository, object: &WalObject) -> Result<String> {
    let key = &object.object.key;
    let failed = |error| repository.error(&format!("get \"{key}\" from"), &error);
    let deadline = repository.deadline();
    let known = repository.storage().head(key, &deadline).map_err(failed)?;
    let mut reader = repository.storage().get(key, None, &deadline).map_err(failed)?;
    let (mut buffer, mut length, mut crc) = (vec![0; 256 << 10], 0, crc32fast::Hasher::new());
    loop {
        let read = match reader.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => read,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error).kind(Kind::Repository, format!("get \"{key}\" from repository")),
        };
        crc.update(&buffer[..read]);
        length += read as u64;
    }
    let crc = crc.finalize();
    if length != object.object.size {
        let size = object.object.size;
        return Err(Error::corrupt(format!("object \"{key}\" is listed with {size} bytes and has {length}")));
    }
    match known.crc32 {
        Some(expected) if expected != crc => Err(Error::corrupt(format!(
            "object \"{key}\" has CRC-32 {crc:08x}, and the store noted {expected:08x}"
        ))),
        Some(_) => Ok("as ciphertext, with the length and the CRC-32 that the store noted".to_owned()),
        None => Ok("as ciphertext, with the length that is listed".to_owned()),
    }
}

/// Returns why a repository lacks the segment, as far as the server knows.
fn lacking(shared: &Shared, sent: &Sent, somewhere: bool, now: Option<&Archiver>, waited: Duration) -> Error {
    let segment = sent.segment;
    let waited = format!("{:.0} s", waited.as_secs_f64());
    let log = shared
        .with_session(|server| super::server::server_log(server, &shared.subject.data_dir))
        .unwrap_or_else(|| "where it writes it".to_owned());
    if somewhere {
        return Error::new(
            Kind::Repository,
            format!("WAL segment {segment} is archived in another repository, and did not arrive here within {waited}"),
        )
        .with_hint("walden sync copies what it lacks");
    }
    match now {
        Some(now) if now.has_archived(segment) => Error::new(
            Kind::Server,
            format!("the server says that WAL segment {segment} is archived, and it is in no repository"),
        )
        .with_hint(
            "archive_command brings WAL to another place: SHOW archive_command; walden init --apply sets it",
        ),
        Some(now) if now.failed > sent.archiver.failed => Error::new(
            Kind::Server,
            format!("the server could not archive \"{}\": archive_command failed", now.last_failed),
        )
        .with_hint(format!("the server's log says why: {log}")),
        _ => Error::new(Kind::Server, format!("WAL segment {segment} was not archived within {waited}"))
            .with_hint(format!(
                "is the archiver at work on older ones (walden status)? The server's log: {log}"
            )),
    }
}
