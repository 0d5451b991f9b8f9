//! What `verify --deep` tells the index: it reads all WAL anyway.

use super::*;
use crate::support::Ledger;

/// What the index knows of the WAL.
#[derive(Debug, PartialEq)]
struct Facts {
    /// Kind, transaction, position, time, rows and certainty of each event. Names of tables are no part of the WAL.
    events: Vec<[Value; 6]>,
    /// What `list wal` says.
    ranges: Value,
    /// Name and CRC of each segment with its commits: how many, the first, the last and where that is.
    commits: Vec<[Option<String>; 6]>,
}

impl Facts {
    fn read(site: &Site) -> Self {
        let json = |arguments: &[&str]| -> Value {
            let finished = site.walden.run(&[arguments, &["--output", "json"]].concat()).ok();
            serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
        };
        let events = json(&["events"]);
        let parts = ["kind", "xid", "lsn", "time", "rows", "uncertain"];
        let event = |event: &Value| parts.map(|part| event[part].clone());
        let index = rusqlite::Connection::open(site.work.join("state/main/index.sqlite")).expect("the index");
        let sql = "select name, crc, commits, first_commit, last_commit, last_commit_lsn from wal
                   where length(name) = 24 order by name";
        let mut rows = index.prepare(sql).expect("prepare");
        let text = |row: &rusqlite::Row<'_>, at: usize| {
            let value: Option<rusqlite::types::Value> = row.get(at).expect("a column");
            value.map(|value| format!("{value:?}"))
        };
        let rows = rows.query_map([], |row| Ok(std::array::from_fn(|at| text(row, at)))).expect("query");
        Self {
            events: events.as_array().expect("events").iter().map(event).collect(),
            ranges: json(&["list", "wal"]),
            commits: rows.map(|row| row.expect("a row")).collect(),
        }
    }
}

live_test!(
    [15]
    fn a_deep_verification_tells_a_bare_index_all_that_the_wal_knows(pg: Installation) {
        let site = Site::new(&pg);
        let psql = |sql: &str| site.cluster.psql(sql);
        Ledger::create(&site.cluster);
        psql("create table first as select 1 a; create table second as select generate_series(1, 3000) id");
        site.walden.run(&["base-backup", "--fast"]).ok();
        psql("drop table first");
        site.fill(1);
        // One transaction in several segments.
        psql("begin; delete from second where id <= 1200; select pg_switch_wal(); delete from second where id <= 2500; commit");
        site.fill(1);
        psql("truncate second; select pg_create_restore_point('the end')");
        site.fill(2);
        let before = Facts::read(&site);
        let has = |facts: &Facts, kind: &str| facts.events.iter().any(|event| event[0] == kind);
        assert!(["drop", "delete", "truncate", "restore-point"].iter().all(|kind| has(&before, kind)), "{before:#?}");

        // An index of listings alone: whatever was found out is gone, and so are the digests that tell of it.
        for ending in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(site.work.join(format!("state/main/index.sqlite{ending}")));
        }
        for repository in ["primary", "replica"] {
            let mut files = Vec::new();
            walk(&site.repository(repository), &mut files);
            let digests = files.iter().filter(|path| path.to_string_lossy().contains("/index/"));
            assert!(digests.map(|digest| fs::remove_file(digest).expect("remove")).count() > 0);
        }
        site.walden.run(&["index", "rebuild"]).ok();
        site.walden.run(&["verify"]).ok();
        let bare = Facts::read(&site);
        assert!(bare.events.is_empty() && bare.commits.iter().all(|row| row[2].is_none()), "{bare:#?}");
        assert_eq!(bare.commits.len(), before.commits.len());

        site.walden.run(&["verify", "--deep"]).ok();
        assert_eq!(Facts::read(&site), before);
        // What is known already is not told twice.
        site.walden.run(&["verify", "--deep", "--all"]).ok();
        assert_eq!(Facts::read(&site), before);
    }
);
