//! WAL in a directory that is about to be gone over, which no repository holds: the last commits of a server that crashed
//! are in a segment that was never full.

use super::places::running_server;
use crate::backup::conf::ConfLine;
use crate::durable::at;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::wal::{Carry, ReaderOptions, SegmentSummary, Summarizer};
use crate::postgres::{SegmentHeader, SystemIdentifier, WalSegmentName};
use crate::repository::{ClusterKeys, Repository, ask_all, list_wal_from};
use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::Path;

/// How much of a segment is read at once.
const CHUNK: usize = 1 << 20;

/// Refuses a data directory whose `pg_wal` (a link to `wal_dir`, where that is given) holds commits that are archived nowhere. A copy that was told not to archive
/// has none that count. Fails with [`Kind::Server`], and with [`Kind::Repository`] where a repository cannot be asked.
pub fn refuse_lost_commits(
    data_dir: &Path,
    wal_dir: Option<&Path>,
    cluster: &str,
    sysid: SystemIdentifier,
    repositories: &[&Repository],
) -> Result<()> {
    let pg_wal = data_dir.join("pg_wal");
    // What runs there is refused by the restore itself, and so is a link that may lead to another's WAL.
    let is_refused = running_server(data_dir).is_some()
        || pg_wal.is_symlink() && std::fs::read_link(&pg_wal).ok().as_deref() != wal_dir;
    if is_refused || does_not_archive(data_dir) {
        return Ok(());
    }
    let present = segments_in(&pg_wal, sysid)?;
    let archived = archived_of(&present, &ClusterKeys::new(cluster, sysid), repositories)?;
    let lost = || present.iter().filter(|name| !archived.contains(*name));
    let (mut commits, mut last) = (0, None);
    let mut before: Option<(WalSegmentName, Option<Carry>)> = None;
    for name in lost() {
        let header = read_header(&pg_wal.join(name.to_string()))?;
        let previous = header.and_then(|header| name.previous(header.segment_size));
        let carry = match (before.take(), previous) {
            (Some((read, carry)), Some(previous)) if read == previous => carry,
            (_, Some(previous)) if present.contains(&previous) => {
                read_segment(&pg_wal.join(previous.to_string()), None)?.1
            }
            _ => None,
        };
        let (summary, carry) = read_segment(&pg_wal.join(name.to_string()), carry)?;
        commits += summary.commits;
        last = summary.last_commit.map(|commit| commit.time).or(last);
        before = Some((*name, carry));
    }
    let (Some(last), Some(first)) = (last, lost().next()) else { return Ok(()) };
    Err(Error::new(
        Kind::Server,
        format!(
            "\"{}\" holds {commits} commit{} archived nowhere, the last of {}",
            pg_wal.display(),
            if commits == 1 { " that is" } else { "s that are" },
            super::target::utc(last.into())
        ),
    )
    .with_hint(format!(
        "if its server never runs again, archive what holds them, in the order of the names: walden archive-push {}; if they \
         may be lost, or that server runs elsewhere, move it away",
        pg_wal.join(first.to_string()).display()
    )))
}

/// Returns whether this is a copy that was restored without --take-over: what was written there belongs to no archive.
fn does_not_archive(data_dir: &Path) -> bool {
    let text = std::fs::read_to_string(data_dir.join("postgresql.auto.conf")).unwrap_or_default();
    let archive_mode = |line| match ConfLine::parse(line) {
        ConfLine::Setting(name, value) if name == "archive_mode" => Some(value == "off"),
        _ => None,
    };
    text.lines().filter_map(archive_mode).next_back() == Some(true)
}

/// Returns the segments in `pg_wal` whose headers say that they are what their names say: not those that were renamed to be
/// written to later.
fn segments_in(pg_wal: &Path, sysid: SystemIdentifier) -> Result<BTreeSet<WalSegmentName>> {
    let mut found = BTreeSet::new();
    for entry in std::fs::read_dir(pg_wal).into_iter().flatten() {
        let entry = entry.map_err(at(pg_wal)).context("read directory")?;
        let Some(name) = entry.file_name().to_str().and_then(|name| name.parse::<WalSegmentName>().ok())
        else {
            continue;
        };
        let length = entry.metadata().map_or(0, |meta| meta.len());
        let header = read_header(&entry.path())?;
        let is_own =
            |header: &SegmentHeader| header.system_identifier == sysid && header.check(name, length).is_ok();
        if header.as_ref().is_some_and(is_own) {
            found.insert(name);
        }
    }
    Ok(found)
}

fn read_header(path: &Path) -> Result<Option<SegmentHeader>> {
    let mut bytes = [0; SegmentHeader::LEN];
    let read = File::open(path).and_then(|mut file| file.read_exact(&mut bytes));
    match read {
        Ok(()) => Ok(SegmentHeader::parse(&bytes).ok()),
        Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(at(path)(error)).context("read WAL segment"),
    }
}

/// Returns those of `segments` that some repository holds, by one listing a timeline.
fn archived_of(
    segments: &BTreeSet<WalSegmentName>,
    keys: &ClusterKeys,
    repositories: &[&Repository],
) -> Result<BTreeSet<WalSegmentName>> {
    let mut archived = BTreeSet::new();
    let mut timeline = None;
    for first in segments.iter().filter(|name| timeline.replace(name.timeline) != Some(name.timeline)) {
        let answers = ask_all(
            repositories,
            usize::MAX,
            |repository, deadline| {
                (repository, list_wal_from(repository, keys, *first, usize::MAX, deadline))
            },
            |_| false,
        );
        for (repository, answer) in answers {
            let listing = answer.map_err(|error| repository.error("list", &error))?;
            archived.extend(listing.objects.iter().filter_map(crate::repository::WalObject::segment));
        }
    }
    Ok(archived)
}

fn read_segment(path: &Path, carry: Option<Carry>) -> Result<(SegmentSummary, Option<Carry>)> {
    let mut file = File::open(path).map_err(at(path)).context("read WAL segment")?;
    let mut reader = Summarizer::new(ReaderOptions::default(), carry);
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer).map_err(at(path)).context("read WAL segment")? {
            0 => break,
            n => reader.push(&buffer[..n]),
        }
    }
    let (summary, carry, _) = reader.finish();
    Ok((summary, carry))
}
