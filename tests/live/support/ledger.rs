//! A table of commits: what decides whether a recovery stopped at the right place.

use super::Cluster;

/// The table `ledger`. Each entry is one transaction that notes its own id and time.
#[derive(Debug)]
pub struct Ledger;

/// One commit, with what surrounds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub id: i64,
    pub xid: u64,
    /// The server's clock inside the transaction: not later than the commit. UTC, as `2026-11-20 13:30:00.123456+00`.
    pub at: String,
    /// The server's clock once the commit had returned: not earlier than the commit.
    pub after: String,
    /// The commit record's time, as recovery compares it with a target.
    pub committed: String,
    /// The WAL insert position once the commit had returned: the record ends there or before.
    pub lsn: String,
}

/// One row as the table holds it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Row {
    pub id: i64,
    pub xid: u64,
    pub at: String,
}

impl Ledger {
    /// Creates the table.
    #[track_caller]
    pub fn create(cluster: &Cluster) {
        cluster.psql(
            "create table ledger (id bigserial primary key, xid text not null, at timestamptz not null)",
        );
    }

    /// Commits one entry.
    #[track_caller]
    pub fn add(cluster: &Cluster) -> Entry {
        // The time is printed in UTC with its offset, whatever the server's time zone is.
        let output = cluster.psql(
            "set timezone = 'UTC';\n\
             insert into ledger (xid, at) values (pg_current_xact_id()::text, clock_timestamp()) returning id, xid, at;\n\
             select clock_timestamp(), pg_current_wal_insert_lsn();",
        );
        let mut lines = output.lines();
        let row = parse(lines.next().expect("the inserted row"));
        let (after, lsn) = lines.next().and_then(|line| line.split_once('|')).expect("time and position");
        let committed = cluster
            .try_psql(&format!("set timezone = 'UTC'; select pg_xact_commit_timestamp('{}'::xid)", row.xid))
            .unwrap_or_default();
        Entry {
            id: row.id,
            xid: row.xid,
            at: row.at,
            after: after.to_owned(),
            committed,
            lsn: lsn.to_owned(),
        }
    }

    /// Reads the table back.
    #[track_caller]
    pub fn rows(cluster: &Cluster) -> Vec<Row> {
        let output = cluster.psql("set timezone = 'UTC'; select id, xid, at from ledger order by id");
        output.lines().map(parse).collect()
    }

    /// Reads back only the ids, which is what most tests compare.
    #[track_caller]
    pub fn ids(cluster: &Cluster) -> Vec<i64> {
        Self::rows(cluster).into_iter().map(|row| row.id).collect()
    }
}

#[track_caller]
fn parse(line: &str) -> Row {
    let fields: Vec<_> = line.split('|').collect();
    let &[id, xid, at] = fields.as_slice() else { panic!("not a row of the ledger: {line:?}") };
    Row { id: id.parse().expect("id"), xid: xid.parse().expect("xid"), at: at.to_owned() }
}
