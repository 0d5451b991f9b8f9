//! Events out of the WAL of real servers: each is what the script did, none is missing, none is too many.

mod names;
mod script;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use script::{DROPS, PREPARED, REWRITES, ROWS, SPACES, STRATEGIES, Step, TRUNCATES};
use walden::postgres::wal::events::{Contribution, Event, EventKind, EventOptions, EventScanner, Tracker};
use walden::postgres::wal::{ReaderOptions, Record, RecordReader, TransactionEnd, TransactionOutcome};
use walden::postgres::{Lsn, PgTimestamp, TimelineId, WalSegmentName, WalSegmentSize};

use crate::support::{Cluster, ClusterOptions, live_test, user};

/// An event by what the server said of the tables just before it.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Known {
    step: String,
    kind: EventKind,
    /// Number of the file, and OID.
    tables: BTreeSet<(u32, u32)>,
    name: String,
    rows: u64,
}

/// A server on which the script runs.
struct Stage {
    cluster: Cluster,
    archive: std::path::PathBuf,
    _work: user::WorkDir,
    known: Vec<Known>,
    /// Files of relations that are no tables.
    no_tables: BTreeSet<u32>,
}

impl Stage {
    fn new(pg: &crate::support::Installation, settings: &[(&str, &str)]) -> Self {
        let work = user::WorkDir::new();
        let archive = work.create_dir("archive");
        let mut options = ClusterOptions::default()
            .wal_segment_size_mb(1)
            .setting("archive_mode", "on")
            .setting("archive_command", format!("cp %p {}/%f", archive.display()))
            .setting("max_prepared_transactions", 10)
            .setting("autovacuum", "off")
            .setting("allow_system_table_mods", "on");
        for (name, value) in settings {
            options = options.setting(name, value);
        }
        let cluster = Cluster::start_new(pg, &options);
        let space = work.create_dir("space");
        cluster.psql(&format!("create tablespace space location '{}'", space.display()));
        Self { cluster, archive, _work: work, known: Vec::new(), no_tables: BTreeSet::new() }
    }

    /// Does what the steps say and notes what they are expected to be.
    fn run(&mut self, steps: &[Step]) {
        for (preparation, statements, events) in steps {
            let first = self.known.len();
            self.cluster.psql(preparation);
            let rows = self
                .cluster
                .psql("select pg_relation_filenode(oid) from pg_class where relkind not in ('r', 'p')");
            self.no_tables.extend(rows.lines().filter_map(|row| row.parse::<u32>().ok()));
            for (kind, names, rows) in *events {
                self.expect(statements, *kind, names, *rows);
            }
            self.cluster.psql(statements);
            // Those of the preparation come first; they are named in the list for its tables only.
            assert!(self.known.len() >= first);
        }
    }

    fn expect(&mut self, step: &str, kind: EventKind, names: &str, rows: u64) {
        let mut known =
            Known { step: step.to_owned(), kind, tables: BTreeSet::new(), name: String::new(), rows };
        match kind {
            EventKind::RestorePoint => names.clone_into(&mut known.name),
            EventKind::DropDatabase => {
                known.name =
                    self.cluster.psql(&format!("select oid from pg_database where datname = '{names}'"));
            }
            _ => {
                for name in names.split(' ') {
                    let row = self.cluster.psql(&format!(
                        "select pg_relation_filenode('{name}'::regclass) || ' ' || '{name}'::regclass::oid"
                    ));
                    let (file, oid) = row.split_once(' ').unwrap();
                    known.tables.insert((file.parse().unwrap(), oid.parse().unwrap()));
                }
            }
        }
        self.known.push(known);
    }

    /// Ends the script; returns the archived segments of timeline 1, in order.
    fn segments(&self) -> Vec<(WalSegmentName, Vec<u8>)> {
        let last = self.cluster.switch_wal();
        self.cluster.wait_archived(&last);
        segments(&self.archive)
    }
}

fn segments(archive: &Path) -> Vec<(WalSegmentName, Vec<u8>)> {
    let mut names: Vec<WalSegmentName> = std::fs::read_dir(archive)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .collect();
    names.sort();
    names.into_iter().map(|name| (name, std::fs::read(archive.join(name.to_string())).unwrap())).collect()
}

fn size() -> WalSegmentSize {
    WalSegmentSize::new(1 << 20).unwrap()
}

/// Reads a segment by itself.
fn contribution(name: WalSegmentName, bytes: &[u8], options: &EventOptions) -> Contribution {
    let mut reader = RecordReader::new(ReaderOptions::default(), None);
    let mut scanner = EventScanner::new(options.clone());
    bytes.chunks(100_000).for_each(|chunk| reader.push(chunk, &mut scanner));
    let contribution = scanner.finish(name, size(), reader.finish().carry);
    let bytes = contribution.to_bytes();
    assert!(bytes.len() <= 256 << 10, "{name}: {} bytes", bytes.len());
    assert_eq!(Contribution::from_bytes(&bytes).unwrap(), contribution);
    contribution
}

/// Returns the events of segments that were each read by itself, the last one first.
fn each_by_itself(segments: &[(WalSegmentName, Vec<u8>)]) -> Vec<Event> {
    each_by_itself_with(segments, &EventOptions::default())
}

fn each_by_itself_with(segments: &[(WalSegmentName, Vec<u8>)], options: &EventOptions) -> Vec<Event> {
    let mut contributions: Vec<Contribution> =
        segments.iter().rev().map(|(name, bytes)| contribution(*name, bytes, options)).collect();
    contributions.reverse();
    let mut tracker = Tracker::new(TimelineId(1), segments[0].0.start(size()), options.clone());
    let mut events = Vec::new();
    for contribution in &contributions {
        events.extend(tracker.advance(contribution).unwrap());
        tracker = Tracker::from_bytes(&tracker.to_bytes(), options.clone()).unwrap();
    }
    assert_eq!(tracker.position(), segments.last().unwrap().0.end(size()));
    events
}

/// Returns the events of all segments as if they were one.
fn in_one_pass(segments: &[(WalSegmentName, Vec<u8>)]) -> Vec<Event> {
    let mut scanner = EventScanner::new(EventOptions::default());
    let mut carry = None;
    for (_, bytes) in segments {
        let mut reader = RecordReader::new(ReaderOptions::default(), carry);
        reader.push(bytes, &mut scanner);
        carry = reader.finish().carry;
    }
    let first = segments[0].0;
    let all = scanner.finish(first, size(), carry);
    Tracker::new(TimelineId(1), first.start(size()), EventOptions::default()).advance(&all).unwrap()
}

/// Commits: start and end of the record, and the time.
fn commits(segments: &[(WalSegmentName, Vec<u8>)]) -> BTreeMap<u32, (Lsn, Lsn, PgTimestamp)> {
    let mut commits = BTreeMap::new();
    let mut carry = None;
    for (_, bytes) in segments {
        let mut reader = RecordReader::new(ReaderOptions::default(), carry);
        let mut note = |record: &Record<'_>| {
            let end = TransactionEnd::decode(record);
            if let Some(end) = end.filter(|end| end.outcome == TransactionOutcome::Committed) {
                commits.insert(end.xid, (record.lsn, record.end_lsn, end.time));
            }
        };
        reader.push(bytes, &mut note);
        carry = reader.finish().carry;
    }
    commits
}

/// Checks that the events are those that the script knows of.
fn check(stage: &Stage) {
    let segments = stage.segments();
    let mut events = each_by_itself(&segments);
    let mut at_once = in_one_pass(&segments);
    let commits = commits(&segments);
    for event in events.iter().filter(|event| event.kind != EventKind::RestorePoint) {
        let (lsn, end_lsn, time) = commits[&event.xid];
        assert_eq!((event.end_lsn, event.time), (end_lsn, time), "{event:?}");
        // A dropped database is marked before.
        assert!(
            event.lsn == lsn || event.kind == EventKind::DropDatabase && event.lsn < lsn,
            "{event:?}, {lsn}"
        );
    }
    for events in [&mut events, &mut at_once] {
        for event in events.iter_mut() {
            event.is_uncertain = false;
            // Names would tell that these are no tables. What the log says to be a table has to be one.
            event.relations.retain(|relation| {
                let is_no_table = stage.no_tables.contains(&relation.file.relation);
                assert!(!is_no_table || relation.may_be_no_table, "{relation:?}");
                !is_no_table
            });
            event.rows = event.relations.iter().map(|relation| relation.rows).sum();
            event.relations.sort_by_key(|relation| relation.file);
        }
        events.retain(|event| {
            matches!(event.kind, EventKind::DropDatabase | EventKind::RestorePoint)
                || !event.relations.is_empty()
        });
    }
    assert_eq!(events, at_once, "each segment by itself, and all in one pass");

    let mut found = events.iter();
    for known in &stage.known {
        let mut same = |event: &&Event| {
            let files: BTreeSet<u32> =
                event.relations.iter().map(|relation| relation.file.relation).collect();
            let name = match event.kind {
                EventKind::RestorePoint => event.name.clone().unwrap_or_default(),
                EventKind::DropDatabase => event.database.to_string(),
                _ => String::new(),
            };
            event.kind == known.kind
                && files == known.tables.iter().map(|(file, _)| *file).collect()
                && (known.rows == 0 || event.rows == known.rows)
                && name == known.name
        };
        let event = found.next();
        assert!(event.as_ref().is_some_and(&mut same), "expected {known:#?}\nfound {event:#?}");
        for relation in &event.unwrap().relations {
            let oid = known.tables.iter().find(|(file, _)| *file == relation.file.relation).unwrap().1;
            assert!(relation.oid.is_none_or(|found| found == oid), "{relation:?} is {oid}");
        }
    }
    let rest: Vec<_> = found.filter(|event| event.name.as_deref() != Some("switch")).collect();
    assert!(rest.is_empty(), "too many: {rest:#?}");
}

fn run(pg: &crate::support::Installation, settings: &[(&str, &str)]) {
    let mut stage = Stage::new(pg, settings);
    for steps in [DROPS, REWRITES, SPACES, TRUNCATES, ROWS, PREPARED] {
        stage.run(steps);
    }
    if pg.major >= 15 {
        stage.run(STRATEGIES);
    }
    check(&stage);
}

live_test! {
    fn events_are_what_the_script_did(pg: Installation) {
        run(&pg, &[("wal_level", "replica")]);
    }
}

live_test! {
    fn events_are_what_the_script_did_at_level_logical(pg: Installation) {
        run(&pg, &[("wal_level", "logical"), ("wal_compression", "on")]);
    }
}
