//! Whether the WAL on the way reaches the target, where replay will stop there, and which commits are on both sides of it.

use super::catalog::Catalog;
use super::path::WalPath;
use super::plan::{NOT_ARCHIVED_YET, Request, unreachable_target};
use super::scan::{self, Around, LastCommit};
use super::target::{Target, utc};
use crate::codec::Opener;
use crate::kind::Result;
use crate::postgres::{Lsn, TimelineHistory, WalSegmentName};
use crate::repository::backup::BackupSummary;
use jiff::Timestamp;

/// How much WAL a plan searches for a transaction, in bytes of content.
const SEARCHED: u64 = 16 << 30;

/// How far the archive reaches.
#[derive(Default)]
pub struct Reach {
    /// The last commit that is archived.
    pub last_commit: Option<LastCommit>,
    /// The commits on both sides of the target.
    pub around: Around,
    /// Where replay stops.
    pub stop: Option<Lsn>,
}

/// A backup and the WAL from it on, on the way to a target.
pub struct OnTheWay<'a, 'r> {
    /// What was asked for.
    pub request: &'a Request,
    /// What is archived.
    pub catalog: &'a Catalog<'r>,
    /// The branch that is followed.
    pub history: &'a TimelineHistory,
    /// The backup.
    pub backup: &'a BackupSummary,
    /// The WAL from it on.
    pub path: &'a WalPath<'r>,
    /// Decrypts and decompresses.
    pub opener: &'a Opener,
}

impl OnTheWay<'_, '_> {
    /// Checks that the target lies within what is archived, and pins one in the idle tail, where the server would die of
    /// it ("recovery ended before configured recovery target was reached"). `point` is where a restore point was found.
    pub fn reach(&self, point: Option<Lsn>, target: &mut Target, notes: &mut Vec<String>) -> Result<Reach> {
        let size = self.catalog.segment_size;
        let Some(last) = self.path.last() else {
            return Err(unreachable_target(self.request, "no WAL is archived"));
        };
        if let Some(gap) = self.path.gap {
            notes.push(format!(
                "WAL segment {gap} is missing: nothing after {} can be reached",
                last.end(size)
            ));
        }
        match self.request.target {
            Target::Lsn(lsn) => self.position(lsn, last),
            Target::Xid(xid) => self.transaction(xid, notes),
            Target::Time(time) => self.time(time, target, notes),
            Target::Name(_) => match point {
                Some(lsn) => self.stop_after(Lsn(lsn.0 + 1), Some(lsn)),
                None => Ok(Reach::default()),
            },
            Target::Latest => self.latest(last),
            Target::Immediate => Ok(Reach { stop: Some(self.backup.stop_lsn), ..Reach::default() }),
        }
    }

    fn stop_after(&self, boundary: Lsn, stop: Option<Lsn>) -> Result<Reach> {
        let around = scan::around_lsn(self.catalog, self.path, boundary, self.opener)?;
        Ok(Reach { around, stop, ..Reach::default() })
    }

    fn position(&self, lsn: Lsn, last: WalSegmentName) -> Result<Reach> {
        let end = last.end(self.catalog.segment_size);
        if lsn >= end {
            let mut near = Vec::new();
            if let Some(commit) = scan::last_commit(self.catalog, self.path, self.opener)? {
                near.push(format!("lsn:{}, the last archived commit", commit.lsn));
            }
            let later =
                self.later_backups().filter(|summary| summary.stop_lsn > lsn).min_by_key(|s| s.stop_lsn);
            near.extend(
                later.map(|summary| format!("lsn:{}, the end of backup {}", summary.stop_lsn, summary.id)),
            );
            return Err(unreachable_target(self.request, &format!("the archived WAL ends before {end}"))
                .with_hint(format!(
                    "{NOT_ARCHIVED_YET}; {}--until latest recovers everything that is archived",
                    nearest(&near)
                )));
        }
        // The server stops with the first record that begins there or later.
        let first = scan::first_record(self.catalog, self.path, lsn, self.opener)?;
        let boundary =
            first.map_or(lsn, |first| if self.request.exclusive { first } else { Lsn(first.0 + 1) });
        self.stop_after(boundary, Some(first.unwrap_or(lsn)))
    }

    fn transaction(&self, xid: u32, notes: &mut Vec<String>) -> Result<Reach> {
        let size = self.catalog.segment_size;
        // One whose id was not given out when the backup had ended began after it.
        let from = if self.backup.next_xid.is_some() { self.backup.stop_lsn } else { self.backup.start_lsn };
        let from = self.path.segments.iter().position(|(name, _)| from < name.end(size)).unwrap_or(0);
        let segments = self.path.segments.len() - from;
        if segments as u64 > SEARCHED / size.bytes() {
            notes.push(format!(
                "transaction {xid} was not looked for, since that would mean to read {segments} segments: that it is not \
                 there would show only at the end of replay"
            ));
            return Ok(Reach::default());
        }
        let found = scan::transaction_end(self.catalog, self.path, from, xid, self.opener)?;
        let Some((end, committed)) = found else {
            return Err(unreachable_target(
                self.request,
                &format!(
                    "no such transaction ended in the {segments} archived segments after backup {}",
                    self.backup.id
                ),
            )
            .with_hint(format!("look at the number and at --timeline; {NOT_ARCHIVED_YET}")));
        };
        if !committed {
            notes.push(format!("transaction {xid} did not commit: it was rolled back at {}", utc(end.time)));
        }
        let boundary = if self.request.exclusive { end.lsn } else { Lsn(end.lsn.0 + 1) };
        self.stop_after(boundary, Some(end.lsn))
    }

    fn latest(&self, last: WalSegmentName) -> Result<Reach> {
        let Some(gap) = self.path.gap.filter(|_| self.request.through.is_empty()) else {
            return Ok(Reach::default());
        };
        let why = format!("WAL segment {gap} is missing and later ones exist");
        Err(unreachable_target(self.request, &why).with_hint(format!(
            "to accept the loss of everything after it: --through {last}; if a server's pg_wal still has {gap}, archive it \
             first"
        )))
    }

    fn time(&self, time: Timestamp, target: &mut Target, notes: &mut Vec<String>) -> Result<Reach> {
        let archived = self.path.segments.last().and_then(|(_, copies)| copies[0].1.object.modified);
        let is_idle = self.path.gap.is_none() && archived.is_some_and(|archived| time <= archived);
        let Some(commit) = scan::last_commit(self.catalog, self.path, self.opener)? else {
            if is_idle {
                *target = Target::Immediate;
                notes.push(
                    "nothing was committed between the end of the backup and the target: recovery stops where the backup \
                     ends"
                        .to_owned(),
                );
                return Ok(Reach { stop: Some(self.backup.stop_lsn), ..Reach::default() });
            }
            return Err(unreachable_target(self.request, "no commit is archived after the backup")
                .with_hint(format!(
                    "{NOT_ARCHIVED_YET}; {}--until immediate or --until latest brings the backup up",
                    nearest(&self.after(time))
                )));
        };
        let exclusive = self.request.exclusive;
        if commit.latest > time || (exclusive && commit.latest == time) {
            let around = scan::around(self.catalog, self.path, time, exclusive, self.opener)?;
            let stop = around.lost.map(|lost| lost.lsn);
            return Ok(Reach { last_commit: Some(commit), around, stop });
        }
        if commit.latest == time || is_idle {
            // Nothing was committed between the last commit and the target.
            *target = Target::Lsn(commit.lsn);
            notes.push(format!(
                "nothing is archived between the last commit ({}) and the target: recovery stops after that commit, at \
                 lsn:{}",
                utc(commit.time),
                commit.lsn
            ));
            let mut reach = self.stop_after(Lsn(commit.lsn.0 + 1), Some(commit.lsn))?;
            reach.last_commit = Some(commit);
            return Ok(reach);
        }
        let mut near = vec![format!("'{}', the last archived commit", utc(commit.latest))];
        near.extend(self.after(time));
        let why = format!("the last archived commit is of {}", utc(commit.latest));
        Err(unreachable_target(self.request, &why).with_hint(format!(
            "{NOT_ARCHIVED_YET}; {}--until latest recovers everything that is archived",
            nearest(&near)
        )))
    }

    /// Returns the backups of the branch that are beyond the WAL of this one.
    fn later_backups(&self) -> impl Iterator<Item = &BackupSummary> {
        let backups = self.catalog.backups.iter().map(|backup| &backup.summary);
        backups.filter(|summary| self.history.contains(summary.timeline, summary.start_lsn))
    }

    /// Returns the first moment after `time` that can be reached, by a backup that ended later.
    fn after(&self, time: Timestamp) -> Vec<String> {
        let later =
            self.later_backups().filter(|summary| summary.stop_time > time).min_by_key(|s| s.stop_time);
        later
            .map(|summary| format!("'{}', the end of backup {}", utc(summary.stop_time), summary.id))
            .into_iter()
            .collect()
    }
}

/// Names the moments that can be reached, before the rest of a hint.
fn nearest(moments: &[String]) -> String {
    match moments {
        [] => String::new(),
        [only] => format!("the nearest moment that can be reached is --until {only}; "),
        [before, after, ..] => {
            format!("the nearest moments that can be reached are --until {before}, and --until {after}; ")
        }
    }
}
