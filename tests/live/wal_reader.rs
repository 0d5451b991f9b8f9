//! The WAL reader against the WAL of real servers. The judges are `pg_waldump` (but for 14) and the server's own
//! record of when which transaction was committed.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Command;

use walden::postgres::wal::{
    Carry, ReaderOptions, Record, RecordReader, SegmentSummary, TransactionEnd, TransactionOutcome, summarize,
};
use walden::postgres::{PgTimestamp, TimelineId, WalSegmentName};

use crate::support::{Cluster, ClusterOptions, Stop, live_test, run, tools, user};

/// Every kind of transaction, and records of every size: full of edges in segments of 1 MiB.
const LOAD: &str = "
create table t (i int primary key, v text);
insert into t select g, repeat('x', 200) from generate_series(1, 20000) g;
begin; savepoint a; insert into t values (100001); savepoint b; insert into t values (100002); rollback to b;
insert into t values (100003); release a; commit;
begin; insert into t values (200001); savepoint a; insert into t values (200002); prepare transaction 'kept';
begin; insert into t values (200003); prepare transaction 'given up';
begin; create table made_by_prepared (i int); prepare transaction 'with a table';
commit prepared 'kept'; rollback prepared 'given up'; commit prepared 'with a table';
begin; insert into t values (300001); rollback;
do $$ begin for i in 1..3000 loop begin insert into t values (400000 + i); exception when others then null; end;
end loop; end $$;
begin; truncate t; rollback;
begin; drop table t; rollback;
create temporary table aside as select * from t limit 100; drop table aside;
create table copied as select * from t; create index on copied (v); vacuum full copied; reindex table copied;
truncate copied; drop table copied, made_by_prepared;
create table whole (i int) partition by range (i);
create table part_1 partition of whole for values from (0) to (100);
create table part_2 partition of whole for values from (100) to (200);
insert into whole select generate_series(0, 199); drop table part_1; truncate whole cascade;
create materialized view m as select count(*) from t; refresh materialized view m;
select pg_create_restore_point('before migration') is null;
select pg_create_restore_point('zweiter Punkt: äöü') is null;
select pg_logical_emit_message(true, 'walden', repeat('w', 5000000)) is null;
create database other; drop database other;
checkpoint;
";

/// A record as both readers know it: position, transaction, length; and for the end of one its time.
type Line = (String, u32, u32, Option<String>);

struct Read {
    lines: Vec<Line>,
    /// Committed transactions and subtransactions, with their times.
    commits: BTreeMap<u32, PgTimestamp>,
    summaries: Vec<(WalSegmentName, SegmentSummary)>,
}

/// Reads the archived segments of a timeline, each with what the one before left.
fn read(archive: &Path, timeline: u32) -> Read {
    let mut names: Vec<WalSegmentName> = std::fs::read_dir(archive)
        .unwrap()
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|name: &WalSegmentName| name.timeline == TimelineId(timeline))
        .collect();
    names.sort();
    let mut read = Read { lines: vec![], commits: BTreeMap::new(), summaries: vec![] };
    let mut carry: Option<Carry> = None;
    for name in names {
        let bytes = std::fs::read(archive.join(name.to_string())).unwrap();
        read.summaries.push((name, summarize(&bytes, carry.clone()).0));
        let mut reader = RecordReader::new(ReaderOptions::default(), carry);
        // Odd chunks: pages and records are cut anywhere.
        for chunk in bytes.chunks(77_777) {
            reader.push(chunk, &mut |record: &Record<'_>| note(record, &mut read.lines, &mut read.commits));
        }
        let outcome = reader.finish();
        assert_eq!(outcome.broken_carry, None, "{name}");
        assert!(outcome.carry.is_some(), "{name}: {:?}", outcome.end);
        carry = outcome.carry;
    }
    read
}

fn note(record: &Record<'_>, lines: &mut Vec<Line>, commits: &mut BTreeMap<u32, PgTimestamp>) {
    let mut blocks = record.block_references();
    blocks.by_ref().for_each(drop);
    assert!(!blocks.is_broken(), "{record:?}");
    let end = TransactionEnd::decode(record);
    if let Some(end) = end {
        assert!(end.is_complete, "{record:?}");
        if end.outcome == TransactionOutcome::Committed {
            commits.extend(std::iter::once(end.xid).chain(end.subxids()).map(|xid| (xid, end.time)));
        }
    }
    let time = end.map(|end| end.time.to_string().replace("+00", ""));
    lines.push((position(&record.lsn.to_string()), record.xid, record.total_len, time));
}

/// Brings a position into one form; the server's programs pad the second half with zeros.
fn position(lsn: &str) -> String {
    let (high, low) = lsn.split_once('/').unwrap();
    format!("{high}/{low:0>8}")
}

/// Returns what `pg_waldump` lists of the archived segments.
fn waldump(program: &Path, archive: &Path, first: WalSegmentName, last: WalSegmentName) -> Vec<Line> {
    let mut command = Command::new(program);
    command.env("TZ", "UTC").arg("-p").arg(archive).args([first.to_string(), last.to_string()]);
    let finished = run(&mut command);
    let lines = finished.stdout.lines().filter(|line| line.starts_with("rmgr: ")).map(waldump_line).collect();
    assert!(finished.code == 0, "{}: {}", finished.command, finished.stderr);
    lines
}

/// Reads a line such as `rmgr: Transaction len (rec/tot): 34/ 34, tx: 740, lsn: 0/0301A0B8, prev …, desc: COMMIT
/// 2026-11-21 02:16:20.123456 UTC`.
fn waldump_line(line: &str) -> Line {
    let after =
        |mark: &str| line.split_once(mark).unwrap_or_else(|| panic!("{mark} in {line}")).1.trim_start();
    let until_comma = |text: &str| text.split(',').next().unwrap().trim().to_owned();
    let total_len = until_comma(after("tot):").split_once('/').unwrap().1).parse().unwrap();
    let description = after("desc: ");
    let ends = ["COMMIT", "ABORT"].iter().any(|word| description.starts_with(word));
    let time = (line.starts_with("rmgr: Transaction") && ends).then(|| time_in(description));
    (position(&until_comma(after("lsn: "))), until_comma(after("tx: ")).parse().unwrap(), total_len, time)
}

/// Returns the first `YYYY-MM-DD HH:MM:SS.ssssss` of a text.
fn time_in(text: &str) -> String {
    let starts = text.char_indices().map(|(at, _)| at);
    let windows = starts.filter_map(|at| text.get(at..at + 26));
    let is_time = |window: &&str| {
        let shape: String = window.chars().map(|c| if c.is_ascii_digit() { '9' } else { c }).collect();
        shape == "9999-99-99 99:99:99.999999"
    };
    windows.into_iter().find(is_time).unwrap_or_else(|| panic!("no time in {text}")).to_owned()
}

/// Returns the transactions that the server knows as committed, from `first` on, with their times.
fn committed(cluster: &Cluster, first: u32) -> BTreeMap<u32, PgTimestamp> {
    let sql = format!(
        "set timezone = 'UTC'; with x as (select xid, pg_xact_commit_timestamp(xid::text::xid) as at \
         from generate_series({first}, txid_snapshot_xmax(txid_current_snapshot()) - 1) xid) \
         select xid || '|' || to_char(at, 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"') from x where at is not null"
    );
    let rows = cluster.psql(&sql);
    rows.lines()
        .map(|row| row.split_once('|').unwrap())
        .map(|(xid, time)| (xid.parse().unwrap(), time.parse().unwrap()))
        .collect()
}

live_test! {
    fn every_record_and_every_commit_is_read(pg: Installation) {
        let work = user::WorkDir::new();
        let archive = work.create_dir("archive");
        let options = ClusterOptions::default()
            .wal_segment_size_mb(1)
            .setting("archive_mode", "on")
            .setting("archive_command", format!("cp %p {}/%f", archive.display()))
            .setting("wal_level", "logical")
            .setting("wal_compression", "on")
            .setting("max_prepared_transactions", 10);
        let mut cluster = Cluster::start_new(&pg, &options);
        let first = cluster.psql("select txid_current()").parse().unwrap();
        cluster.pgbench(&["-i", "-s", "1", "-q"]);
        cluster.psql(LOAD);
        cluster.pgbench(&["-c", "4", "-t", "250"]);
        let last = cluster.switch_wal();
        cluster.wait_archived(&last);

        let read = read(&archive, 1);
        let known = committed(&cluster, first);
        let seen: BTreeMap<_, _> = read.commits.range(first..).map(|(xid, time)| (*xid, *time)).collect();
        assert!(known.len() > 4000, "{}", known.len());
        assert_eq!(seen, known, "commits and subtransactions, against pg_xact_commit_timestamp");

        if let Some(program) = tools::pg_waldump(pg.major) {
            let (first, last) = (read.summaries[0].0, read.summaries.last().unwrap().0);
            let expected = waldump(&program, &archive, first, last);
            assert_eq!(read.lines.len(), expected.len(), "number of records, against pg_waldump");
            for (ours, theirs) in read.lines.iter().zip(&expected) {
                assert_eq!(ours, theirs);
            }
        }
        check_summaries(&read);

        cluster.stop(Stop::Fast);
        let signal = cluster.data_dir().join("standby.signal");
        std::fs::write(&signal, "").unwrap();
        user::give(&signal);
        cluster.start();
        cluster.psql("select pg_promote()");
        let last = cluster.switch_wal();
        cluster.wait_archived(&last);
        check_promotion(&archive);
    }
}

fn check_summaries(read: &Read) {
    let sum =
        |of: fn(&SegmentSummary) -> u64| read.summaries.iter().map(|(_, summary)| of(summary)).sum::<u64>();
    let ends = read.lines.iter().filter(|line| line.3.is_some()).count() as u64;
    assert_eq!(sum(|summary| summary.records), read.lines.len() as u64);
    assert_eq!(sum(|summary| summary.commits) + sum(|summary| summary.aborts), ends);
    assert!(sum(|summary| summary.checkpoints) > 0);
    assert!(read.summaries.iter().all(|(_, summary)| summary.bad_record.is_none()));
    let points: Vec<_> = read.summaries.iter().flat_map(|(_, summary)| &summary.restore_points).collect();
    let names: Vec<_> = points.iter().map(|point| point.name.as_str()).collect();
    assert_eq!(names, ["before migration", "zweiter Punkt: äöü", "switch"]);
    assert!(read.summaries.last().unwrap().1.switched);
    for (_, summary) in &read.summaries {
        let [first, last] =
            [summary.first_commit, summary.last_commit].map(|point| point.map(|point| point.lsn));
        assert!(first <= last);
        let [min, max] = [summary.min_commit_time, summary.max_commit_time];
        assert!(min <= summary.first_commit.map(|point| point.time) && max <= summary.max_end_time);
    }
}

/// A promotion begins a timeline, and the reader says so.
fn check_promotion(archive: &Path) {
    let read = read(archive, 2);
    let switches: Vec<_> =
        read.summaries.iter().flat_map(|(_, summary)| &summary.timeline_switches).collect();
    let timelines: Vec<_> = switches.iter().map(|switch| (switch.previous, switch.timeline)).collect();
    assert_eq!(timelines, [(TimelineId(1), TimelineId(2))]);
}
