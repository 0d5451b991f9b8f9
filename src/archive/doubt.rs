//! Doubt that outlives one call.
//!
//! The server looks for a segment on the newest timeline first and, when that is refused with 1-125, on its parents
//! (`XLogFileReadAnyTLI`). If a child's segment was refused in doubt and the parent's were then handed out, the server
//! would replay a branch that was abandoned. So a doubt leaves a note, and while it stands the same segment is refused
//! on every lower timeline.
//!
//! A note is about one run of one server: a server that starts anew, or another one, begins with the newest timeline of
//! its own. Where no server can be told (a call by hand), a note holds until its segment can be answered for.
//!
//! A call that fails before it knows where to leave notes (its configuration or its key cannot be read) leaves none. What it
//! was asked for follows from the histories in `pg_wal`: the server keeps there the history of the timeline that it
//! follows (timeline.c, `readTimeLineHistory`).

use super::request::control_beside;
use crate::durable;
use crate::postgres::{ArchiveFileName, TimelineHistory, TimelineId, WalSegmentName, WalSegmentSize};
use std::fs::DirBuilder;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

/// A server that still waits asks again within seconds, which renews its note.
const NOTE_LIFE: Duration = Duration::from_hours(24);

/// One run of a server: data directory, process id, start time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerRun {
    data_dir: PathBuf,
    process: Option<String>,
}

impl ServerRun {
    /// Returns the run of the server that wants a file at `path`, by `postmaster.pid` in its data directory.
    pub fn of(path: &Path) -> Self {
        let beside = path.parent().and_then(Path::parent).unwrap_or(Path::new(""));
        let beside = if beside == Path::new("") { Path::new(".") } else { beside };
        let data_dir = std::fs::canonicalize(beside).unwrap_or_else(|_| beside.to_path_buf());
        let text = std::fs::read_to_string(data_dir.join("postmaster.pid")).unwrap_or_default();
        let mut lines = text.lines().map(str::trim);
        // miscadmin.h: LOCK_FILE_LINE_PID 1, LOCK_FILE_LINE_START_TIME 3.
        let process = lines.next().zip(lines.nth(1)).map(|(pid, start)| format!("{pid} {start}"));
        Self { data_dir, process }
    }

    fn text(&self) -> String {
        format!("{}\n{}\n", self.data_dir.display(), self.process.as_deref().unwrap_or_default())
    }

    fn parse(text: &str) -> Option<Self> {
        let (rest, process) = text.strip_suffix('\n')?.rsplit_once('\n')?;
        let process = (!process.is_empty()).then(|| process.to_owned());
        Some(Self { data_dir: PathBuf::from(rest), process })
    }
}

/// A note that stands in the way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// The segment in doubt.
    pub segment: WalSegmentName,
    /// Whether it is certainly this run of the server to which it was refused.
    pub same_run: bool,
}

/// The notes of one cluster.
#[derive(Debug, Clone)]
pub struct DoubtNotes {
    dir: PathBuf,
    run: ServerRun,
}

impl DoubtNotes {
    /// Returns the notes in the spool directory `spool`, as they concern `run`. Does no I/O.
    pub fn new(spool: &Path, run: ServerRun) -> Self {
        Self { dir: spool.join("doubt"), run }
    }

    fn path(&self, segment: WalSegmentName, run: &ServerRun) -> PathBuf {
        self.dir.join(format!("{segment}-{:08x}", crc32fast::hash(run.text().as_bytes())))
    }

    /// Notes that `segment` was refused in doubt.
    pub fn write(&self, segment: WalSegmentName) -> io::Result<()> {
        if !self.dir.is_dir() {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(&self.dir)
                .map_err(durable::at(&self.dir))?;
        }
        durable::replace(&self.path(segment, &self.run), self.run.text().as_bytes(), 0o600)
    }

    /// Returns the notes about the same segment on higher timelines. Fails where they cannot be read. Notes of runs
    /// that are over are removed.
    pub fn above(&self, segment: WalSegmentName) -> io::Result<Vec<Note>> {
        let files = match std::fs::read_dir(&self.dir) {
            Ok(files) => files,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(durable::at(&self.dir)(error)),
        };
        let mut notes = Vec::new();
        for file in files {
            let file = file.map_err(durable::at(&self.dir))?;
            let name = file.file_name();
            let Some((about, _)) = name.to_str().and_then(|name| name.split_once('-')) else { continue };
            let Ok(about) = about.parse::<WalSegmentName>() else { continue };
            if (about.log, about.segment) != (segment.log, segment.segment)
                || about.timeline <= segment.timeline
            {
                continue;
            }
            let text = match std::fs::read_to_string(file.path()) {
                Ok(text) => text,
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                Err(error) => return Err(durable::at(&file.path())(error)),
            };
            let Some(run) = ServerRun::parse(&text) else { continue };
            match self.concerns(&run) {
                Some(same_run) if !is_old(&file) => notes.push(Note { segment: about, same_run }),
                Some(_) => drop(std::fs::remove_file(file.path())),
                None if run.data_dir == self.run.data_dir => drop(std::fs::remove_file(file.path())),
                None => {}
            }
        }
        notes.sort_by_key(|note| note.segment);
        Ok(notes)
    }

    /// Returns none for a note of a run that is certainly another one, else whether it is certainly this one.
    fn concerns(&self, run: &ServerRun) -> Option<bool> {
        match (&run.process, &self.run.process) {
            (Some(theirs), Some(ours)) => {
                (theirs == ours && run.data_dir == self.run.data_dir).then_some(true)
            }
            _ => Some(false),
        }
    }

    /// Removes the notes about `segment` that concern this run: it was answered for certain.
    pub fn settle(&self, segment: WalSegmentName) {
        let Ok(files) = std::fs::read_dir(&self.dir) else { return };
        for file in files.flatten() {
            let name = file.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(&segment.to_string())) {
                let text = std::fs::read_to_string(file.path()).unwrap_or_default();
                if ServerRun::parse(&text).is_none_or(|run| self.concerns(&run).is_some()) {
                    let _ = std::fs::remove_file(file.path());
                }
            }
        }
    }
}

/// Returns the segments of higher timelines for which a server asks before it asks for `segment` at `path`, if it follows
/// one of the timelines whose histories are in its `pg_wal`.
pub fn asked_before(path: &Path, segment: WalSegmentName) -> Vec<WalSegmentName> {
    let Some(pg_wal) = path.parent() else { return Vec::new() };
    let histories: Vec<TimelineHistory> = std::fs::read_dir(pg_wal)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|file| above(&file, segment))
        .collect();
    if histories.is_empty() {
        return Vec::new();
    }
    let size = control_beside(path).map(|control| control.wal_segment_size);
    let mut before: Vec<WalSegmentName> = size
        .iter()
        .flat_map(|size| histories.iter().flat_map(|history| on_the_way(history, segment, *size)))
        .collect();
    before.sort();
    before.dedup();
    before
}

/// Returns the history in `file`, if it is one of a timeline above that of `segment`.
fn above(file: &std::fs::DirEntry, segment: WalSegmentName) -> Option<TimelineHistory> {
    let Ok(ArchiveFileName::History(timeline)) = file.file_name().to_str()?.parse() else { return None };
    if timeline <= segment.timeline {
        return None;
    }
    TimelineHistory::parse(timeline, std::fs::read(file.path()).ok()?).ok()
}

/// Returns the segments at the place of `segment` of the timelines that come after its own in `history` and have begun
/// there (xlogrecovery.c, `XLogFileReadAnyTLI`).
fn on_the_way(
    history: &TimelineHistory,
    segment: WalSegmentName,
    size: WalSegmentSize,
) -> Vec<WalSegmentName> {
    let path = history.path();
    let own = path.iter().position(|span| span.timeline == segment.timeline);
    let later = own.map_or(&[][..], |own| &path[own + 1..]);
    let begun = later
        .iter()
        .filter(|span| WalSegmentName::containing(segment.timeline, span.begin, size) <= segment)
        .map(|span| span.timeline);
    begun.map(|timeline: TimelineId| WalSegmentName { timeline, ..segment }).collect()
}

fn is_old(file: &std::fs::DirEntry) -> bool {
    let modified = file.metadata().and_then(|meta| meta.modified()).ok();
    modified.and_then(|time| SystemTime::now().duration_since(time).ok()).is_some_and(|age| age > NOTE_LIFE)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segment(name: &str) -> WalSegmentName {
        name.parse().unwrap()
    }

    fn run(dir: &str, process: Option<&str>) -> ServerRun {
        ServerRun { data_dir: PathBuf::from(dir), process: process.map(str::to_owned) }
    }

    #[test]
    fn a_doubt_covers_lower_timelines_of_the_same_segment_until_it_is_settled() {
        let dir = tempfile::tempdir().unwrap();
        let notes = DoubtNotes::new(dir.path(), run("/data", Some("7 100")));
        let doubted = segment("000000030000000000000005");
        assert_eq!(notes.above(segment("000000010000000000000005")).unwrap(), []);
        notes.write(doubted).unwrap();
        notes.write(doubted).unwrap();
        for lower in ["000000010000000000000005", "000000020000000000000005"] {
            assert_eq!(notes.above(segment(lower)).unwrap(), [Note { segment: doubted, same_run: true }]);
        }
        for other in ["000000030000000000000005", "000000040000000000000005", "000000010000000000000006"] {
            assert_eq!(notes.above(segment(other)).unwrap(), [], "{other}");
        }
        notes.settle(doubted);
        assert_eq!(notes.above(segment("000000010000000000000005")).unwrap(), []);
    }

    #[test]
    fn a_note_is_about_one_run_of_one_server() {
        let dir = tempfile::tempdir().unwrap();
        let of = |run| DoubtNotes::new(dir.path(), run);
        let doubted = segment("000000020000000000000005");
        let lower = segment("000000010000000000000005");
        of(run("/a", Some("7 100"))).write(doubted).unwrap();
        assert_eq!(of(run("/b", Some("8 100"))).above(lower).unwrap(), [], "another server");
        of(run("/b", Some("8 100"))).settle(doubted);
        assert_eq!(
            of(run("/a", Some("7 100"))).above(lower).unwrap().len(),
            1,
            "is not settled by another one"
        );
        let by_hand = of(run("/c", None)).above(lower).unwrap();
        assert_eq!(by_hand, [Note { segment: doubted, same_run: false }]);
        assert_eq!(of(run("/a", Some("9 200"))).above(lower).unwrap(), [], "the server was started anew");
        assert_eq!(of(run("/a", Some("7 100"))).above(lower).unwrap(), [], "and the old note is gone");
    }

    #[test]
    fn a_server_that_follows_a_timeline_asks_for_it_first_from_the_fork_onward() {
        let on_the_way = |timeline: u32, text: &str, wanted: &str| -> Vec<String> {
            let history = TimelineHistory::parse(TimelineId(timeline), text).unwrap();
            let found = on_the_way(&history, segment(wanted), WalSegmentSize::DEFAULT);
            found.iter().map(ToString::to_string).collect()
        };
        let text = "1\t0/5000100\t\n2\t0/7000000\t\n";
        assert_eq!(on_the_way(3, text, "000000010000000000000004"), [""; 0]);
        assert_eq!(on_the_way(3, text, "000000010000000000000005"), ["000000020000000000000005"]);
        assert_eq!(
            on_the_way(3, text, "000000010000000000000007"),
            ["000000020000000000000007", "000000030000000000000007"]
        );
        assert_eq!(on_the_way(3, text, "000000020000000000000008"), ["000000030000000000000008"]);
        assert_eq!(on_the_way(4, "1\t0/5000100\t\n", "000000020000000000000008"), [""; 0], "another branch");
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        std::fs::write(&file, "").unwrap();
        let notes = DoubtNotes::new(&file, run("/data", None));
        assert!(notes.write(segment("000000020000000000000005")).is_err());
        assert!(notes.above(segment("000000010000000000000005")).is_err());
    }
}
