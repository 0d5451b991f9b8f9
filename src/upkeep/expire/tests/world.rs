//! A made-up archive: backups, segments and histories as a repository has them, with the times that a test gives them.

use super::memory::Memory;
use crate::codec::{LZ4, Opener, Sealer};
use crate::index::IndexHandle;
use crate::postgres::{Lsn, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use crate::progress::Progress;
use crate::recovery::catalog::{Catalog, system_identifiers};
use crate::recovery::path::walk;
use crate::recovery::plan::{Request as RecoveryRequest, plan as recovery_plan};
use crate::recovery::target::{Target, TimelineChoice};
use crate::repository::backup::{BACKUP_FORMAT, BackupSummary, StoredObject, manifest_name, piece_name};
use crate::repository::{ClusterFile, ClusterKeys, Repository};
use crate::storage::Storage;
use crate::upkeep::expire::{Outcome, Request, carry_out, plan};
use crate::upkeep::holdings::{Holdings, catalog, look};
use crate::upkeep::retention::Policy;
use crate::upkeep::windows::Reach;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

pub(in crate::upkeep) const SYSID: SystemIdentifier = SystemIdentifier(7);
pub(in crate::upkeep) const SIZE: WalSegmentSize = WalSegmentSize::DEFAULT;

pub(in crate::upkeep) struct World {
    pub(in crate::upkeep) store: Arc<Memory>,
    pub(in crate::upkeep) keys: ClusterKeys,
    /// The index of the host on which expiry runs.
    pub(in crate::upkeep) index: IndexHandle,
}

impl World {
    pub(in crate::upkeep) fn new() -> Self {
        let world = Self::at(Arc::new(Memory::default()), ClusterKeys::new("main", SYSID));
        world.init(SYSID);
        world
    }

    fn at(store: Arc<Memory>, keys: ClusterKeys) -> Self {
        Self { store, keys, index: IndexHandle::absent() }
    }

    fn init(&self, sysid: SystemIdentifier) {
        let file = ClusterFile::new("main", sysid, SIZE, 17);
        let keys = ClusterKeys::new("main", sysid);
        self.store.put(&keys.cluster_file(), serde_json::to_vec(&file).unwrap());
    }

    /// Returns the same archive under another system identifier, as pg_upgrade makes one.
    pub(in crate::upkeep) fn upgraded(&self, sysid: SystemIdentifier) -> Self {
        self.init(sysid);
        Self::at(Arc::clone(&self.store), ClusterKeys::new("main", sysid))
    }

    pub(in crate::upkeep) fn copy(&self) -> Self {
        Self::at(Arc::new(self.store.copy()), self.keys.clone())
    }

    pub(in crate::upkeep) fn segment_key(&self, timeline: u32, number: u64) -> String {
        let name = WalSegmentName::from_number(TimelineId(timeline), number, SIZE);
        self.keys.wal_object(crate::postgres::ArchiveFileName::Segment(name), number as u32, LZ4)
    }

    pub(in crate::upkeep) fn segment(&self, timeline: u32, number: u64, stored: Timestamp) {
        self.store.set_now(stored);
        self.store.put(&self.segment_key(timeline, number), "x");
    }

    pub(in crate::upkeep) fn has_segment(&self, timeline: u32, number: u64) -> bool {
        self.store.has(&self.segment_key(timeline, number))
    }

    pub(in crate::upkeep) fn history(&self, timeline: u32, text: &str, stored: Timestamp) {
        self.store.set_now(stored);
        let crc = crc32fast::hash(text.as_bytes());
        let name = crate::postgres::ArchiveFileName::History(TimelineId(timeline));
        let body = Sealer::unencrypted().seal(text.as_bytes()).unwrap();
        self.store.put(&self.keys.wal_object(name, crc, LZ4), body);
    }

    /// Stores a backup that needs the segments `first` to `last`; they are not stored by this. Returns its id.
    pub(in crate::upkeep) fn backup(&self, timeline: u32, first: u64, last: u64, stop: Timestamp) -> String {
        self.store.set_now(stop);
        let id = format!("{}-{:08X}-{first:08x}", stop.strftime("%Y%m%dT%H%M%SZ"), timeline);
        let folder = self.keys.backup(&id);
        let put = |name: String, body: &'static [u8]| {
            self.store.put(&format!("{folder}{name}"), body);
            StoredObject::of(name, body)
        };
        let pieces = (0..3).map(|number| put(piece_name(number, LZ4), b"piece")).collect();
        let manifest = put(manifest_name(LZ4), b"manifest");
        let summary = BackupSummary {
            format: BACKUP_FORMAT,
            id: id.clone(),
            cluster: "main".into(),
            system_identifier: self.keys.root().split('/').nth(1).unwrap().parse().unwrap(),
            major_version: 17,
            server_version: "17.0".into(),
            walden_version: "0".into(),
            label: "l".into(),
            note: None,
            from_standby: false,
            timeline: TimelineId(timeline),
            start_lsn: Lsn(first * SIZE.bytes() + 40),
            stop_lsn: Lsn(last * SIZE.bytes() + 80),
            checkpoint_lsn: Lsn(first * SIZE.bytes() + 50),
            start_time: stop,
            stop_time: stop,
            next_xid: Some(7),
            wal_segment_size: SIZE,
            data_checksums: true,
            encrypted: false,
            ending: LZ4.into(),
            data_dir: "/d".into(),
            tablespaces: vec![],
            external_config: None,
            size: 1,
            stored_size: 1,
            files: 1,
            bad_pages: 0,
            manifest,
            config: None,
            pieces,
        };
        self.store.put(&format!("{folder}backup.json"), serde_json::to_vec(&summary).unwrap());
        id
    }

    pub(in crate::upkeep) fn backups(&self) -> BTreeSet<String> {
        let folder = self.keys.backups();
        let keys = self.store.keys();
        let ids = keys.iter().filter_map(|key| key.strip_prefix(&folder)?.strip_suffix("/backup.json"));
        ids.map(str::to_owned).collect()
    }

    pub(in crate::upkeep) fn repository(&self) -> Repository {
        repository("primary", Arc::clone(&self.store) as _)
    }

    pub(in crate::upkeep) fn expire(&self, policy: Policy, now: Timestamp) -> Outcome {
        expire_with(&self.repository(), policy, now, &self.index)
    }

    /// Returns whether `lsn` on `timeline` can be reached: the way that the recovery planner looks for before it reads any
    /// segment.
    pub(in crate::upkeep) fn reaches(&self, timeline: u32, lsn: u64) -> bool {
        let repository = self.repository();
        let catalog = Catalog::read(&[&repository], "main", SYSID).unwrap();
        let history = catalog.history(TimelineId(timeline), &Opener::without_identity()).unwrap();
        catalog.backups.iter().map(|backup| &backup.summary).any(|backup| {
            let (start, stop) = (backup.start_lsn, backup.stop_lsn);
            let is_on_branch = history.contains(backup.timeline, start)
                && history.contains(backup.timeline, Lsn(stop.0 - 1));
            let end =
                || walk(&catalog, &history, start).unwrap().last().map_or(Lsn(0), |last| last.end(SIZE));
            is_on_branch && stop.0 <= lsn && end() >= stop && end().0 > lsn
        })
    }

    /// Returns what a look that trusts the index finds, after it was compared with what is there.
    pub(in crate::upkeep) fn look(&self) -> Holdings {
        let repository = self.repository();
        let remembered = look(&repository, "main", SYSID, &self.index, &repository.deadline()).unwrap();
        let there = look(&repository, "main", SYSID, &IndexHandle::absent(), &repository.deadline()).unwrap();
        assert_eq!(remembered.segments, there.segments);
        assert_eq!(remembered.stored_bytes(), there.stored_bytes());
        assert_eq!(remembered.backups, there.backups);
        let all = |held| {
            let catalog = catalog(&[(&repository, held)], "main", SYSID, &self.index);
            catalog.backups.iter().map(|backup| backup.summary.clone()).collect::<Vec<_>>()
        };
        assert_eq!(all(&remembered).len(), there.backups.len());
        remembered
    }

    /// Asserts that from each backup along each timeline the WAL reaches as far by the set of segments as by listings.
    pub(in crate::upkeep) fn reaches_as_far_as_it_walks(&self, held: &Holdings) {
        let repository = self.repository();
        let catalog = Catalog::read(&[&repository], "main", SYSID).unwrap();
        for timeline in catalog.timelines() {
            let history = catalog.history(timeline, &Opener::without_identity()).unwrap();
            for backup in &catalog.backups {
                let start = backup.summary.start_lsn;
                let walked = walk(&catalog, &history, start).unwrap();
                let reach = Reach::of(&held.segments, SIZE, &history, start);
                let names = |(timeline, first, last): &(TimelineId, u64, u64)| {
                    let timeline = *timeline;
                    (*first..=*last).map(move |number| WalSegmentName::from_number(timeline, number, SIZE))
                };
                let reached: Vec<_> = reach.runs.iter().flat_map(names).collect();
                let walked_over: Vec<_> = walked.segments.iter().map(|(name, _)| *name).collect();
                assert_eq!((reached, reach.gap), (walked_over, walked.gap), "{history:?} from {start}");
            }
        }
    }

    /// Returns whether the planner finds a way to bring the backup up by itself.
    pub(in crate::upkeep) fn restores(&self, id: &str) -> bool {
        let request = RecoveryRequest {
            cluster: "main".into(),
            target: Target::Immediate,
            exclusive: false,
            timeline: TimelineChoice::Current,
            backup: Some(id.to_owned()),
            through: vec![],
        };
        let (repository, opener) = (self.repository(), Opener::without_identity());
        let repositories = [&repository];
        system_identifiers(&repositories, "main").is_ok_and(|known| {
            recovery_plan(&request, &repositories, &known, &opener, &IndexHandle::absent()).is_ok()
        })
    }
}

pub(in crate::upkeep) fn repository(name: &str, store: Arc<dyn Storage>) -> Repository {
    Repository::new(name, store, Duration::from_secs(10))
}

pub(in crate::upkeep) fn expire(repository: &Repository, policy: Policy, now: Timestamp) -> Outcome {
    expire_with(repository, policy, now, &IndexHandle::absent())
}

fn expire_with(repository: &Repository, policy: Policy, now: Timestamp, index: &IndexHandle) -> Outcome {
    let request = Request {
        cluster: "main",
        repositories: vec![(repository, Some(policy))],
        only: None,
        now,
        busy: BTreeSet::new(),
    };
    let mut plan = plan(&request);
    match plan.repositories.pop() {
        Some(made) => carry_out(&made, index, &Progress::new()),
        None => Outcome { failed: plan.skipped.pop().map(|skipped| skipped.error), ..Outcome::default() },
    }
}
