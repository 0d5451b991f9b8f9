//! Random histories of an archive: whatever could be reached within the window before a run can be reached after it, as the
//! recovery planner sees it, and every backup that stays can be brought up.

use super::world::{SIZE, World};
use crate::index::IndexHandle;
use crate::postgres::Lsn;
use crate::upkeep::retention::Policy;
use jiff::{SignedDuration, Timestamp};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::time::Duration;

/// What happens next.
#[derive(Debug, Clone)]
enum Step {
    /// So many segments are archived, this many minutes apart.
    Archive { segments: u64, minutes: i64 },
    /// A backup is taken over this many segments.
    Backup { segments: u64 },
    /// A server goes on as a new timeline, from the end or from this many segments back; the old one may live on.
    Promote { back: u64, old_lives: bool },
    /// The segment so far back was never archived.
    Lose { back: u64 },
    /// A piece of a backup is gone.
    Spoil { which: usize },
    /// Nothing happens for hours.
    Rest { hours: i64 },
    /// Expiry runs, with a clock that is so many hours wrong.
    Expire { wrong_hours: i64 },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (1u64..6, 1i64..300).prop_map(|(segments, minutes)| Step::Archive { segments, minutes }),
        5 => (1u64..4).prop_map(|segments| Step::Backup { segments }),
        2 => (0u64..8, any::<bool>()).prop_map(|(back, old_lives)| Step::Promote { back, old_lives }),
        1 => (1u64..20).prop_map(|back| Step::Lose { back }),
        1 => (0usize..20).prop_map(|which| Step::Spoil { which }),
        1 => (1i64..100).prop_map(|hours| Step::Rest { hours }),
        3 => prop_oneof![4 => Just(0i64), 1 => -20_000i64..20_000]
            .prop_map(|wrong_hours| Step::Expire { wrong_hours }),
    ]
}

fn policy() -> impl Strategy<Value = Policy> {
    let count = || proptest::option::of(0u32..4);
    let window = proptest::option::of(1u64..120);
    (count(), count(), count(), window).prop_map(|(keep_last, keep_daily, keep_weekly, hours)| Policy {
        keep_last: keep_last.or(Some(1)),
        keep_daily,
        keep_weekly,
        window: hours.map(|hours| Duration::from_secs(hours * 3600)),
        ..Policy::default()
    })
}

/// A server that writes: its timeline and the number of its next segment.
#[derive(Debug, Clone, Copy)]
struct Server {
    timeline: u32,
    next: u64,
}

struct Past {
    world: World,
    now: Timestamp,
    servers: Vec<Server>,
    /// What each timeline's history says: ancestors and where they were left.
    ancestors: BTreeMap<u32, Vec<(u32, u64)>>,
    /// Moments: when, on which timeline, where.
    moments: Vec<(Timestamp, u32, u64)>,
    policy: Policy,
}

impl Past {
    fn new(policy: Policy) -> Self {
        Self {
            world: World::new(),
            now: Timestamp::from_second(1_790_000_000).unwrap(),
            servers: vec![Server { timeline: 1, next: 3 }],
            ancestors: BTreeMap::from([(1, vec![])]),
            moments: vec![],
            policy,
        }
    }

    fn pass(&mut self, minutes: i64) {
        self.now = self.now.checked_add(SignedDuration::from_mins(minutes)).unwrap();
    }

    /// Each server archives a segment.
    fn archive(&mut self) {
        for server in &mut self.servers {
            self.world.segment(server.timeline, server.next, self.now);
            self.moments.push((self.now, server.timeline, server.next * SIZE.bytes() + 99));
            server.next += 1;
        }
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Archive { segments, minutes } => {
                for _ in 0..segments {
                    self.pass(minutes);
                    self.archive();
                }
            }
            Step::Backup { segments } => {
                let first = self.servers[0].next;
                for _ in 0..segments {
                    self.pass(7);
                    self.archive();
                }
                self.world.backup(self.servers[0].timeline, first, first + segments - 1, self.now);
            }
            Step::Promote { back, old_lives } => self.promote(back, old_lives),
            Step::Lose { back } => {
                let server = self.servers[0];
                let number = server.next.saturating_sub(back);
                if self.world.has_segment(server.timeline, number) {
                    self.world.store.remove(&self.world.segment_key(server.timeline, number));
                }
            }
            Step::Spoil { which } => {
                let backups: Vec<String> = self.world.backups().into_iter().collect();
                if let Some(id) = backups.get(which) {
                    let key = format!("{}data/0000000.lz4", self.world.keys.backup(id));
                    if self.world.store.has(&key) {
                        self.world.store.remove(&key);
                    }
                }
            }
            Step::Rest { hours } => self.pass(hours * 60),
            Step::Expire { wrong_hours } => self.expire(wrong_hours),
        }
    }

    fn promote(&mut self, back: u64, old_lives: bool) {
        let old = self.servers[0];
        let timeline = self.ancestors.keys().last().unwrap() + 1;
        let fork = old.next.saturating_sub(back).max(4) * SIZE.bytes() + 4096;
        let mut ancestors = self.ancestors[&old.timeline].clone();
        ancestors.push((old.timeline, fork));
        let mut text = String::new();
        for (parent, lsn) in &ancestors {
            text += &format!("{parent}\t{}\tx\n", Lsn(*lsn));
        }
        self.world.history(timeline, &text, self.now);
        self.ancestors.insert(timeline, ancestors);
        let new = Server { timeline, next: fork / SIZE.bytes() };
        if old_lives && self.servers.len() < 3 {
            self.servers.insert(0, new);
        } else {
            self.servers[0] = new;
        }
        self.pass(1);
        self.archive();
    }

    fn expire(&self, wrong_hours: i64) {
        let start = self.policy.window.map(|window| self.now.checked_sub(window).unwrap());
        let within: Vec<_> =
            self.moments.iter().filter(|(at, _, _)| start.is_some_and(|start| *at >= start)).collect();
        let every = within.len() / 12 + 1;
        let sample: Vec<_> = within.into_iter().rev().step_by(every).collect();
        let reachable: Vec<_> =
            sample.into_iter().filter(|(_, timeline, lsn)| self.world.reaches(*timeline, *lsn)).collect();
        let good: Vec<String> = self
            .world
            .backups()
            .into_iter()
            .filter(|id| self.is_whole(id) && self.world.restores(id))
            .collect();

        let clock = self.now.checked_add(SignedDuration::from_hours(wrong_hours)).unwrap();
        let outcome = self.world.expire(self.policy, clock);
        assert!(outcome.failed.is_none() && outcome.refused == 0, "{outcome:?}");

        for (at, timeline, lsn) in reachable {
            assert!(self.world.reaches(*timeline, *lsn), "{at}: timeline {timeline}, {}", Lsn(*lsn));
        }
        let left = self.world.backups();
        for id in good.iter().filter(|id| left.contains(*id)) {
            assert!(self.is_whole(id) && self.world.restores(id), "{id}");
        }
        assert!(good.is_empty() || good.iter().any(|id| left.contains(id)), "no good backup is left");
        let again = self.world.expire(self.policy, clock);
        assert_eq!(again.objects, 0, "a second run finds nothing: {again:?}");
    }

    fn is_whole(&self, id: &str) -> bool {
        self.world.store.has(&format!("{}data/0000000.lz4", self.world.keys.backup(id)))
    }
}

/// Returns how many histories are tried; many with `WALDEN_SOAK=1`.
fn cases() -> u32 {
    if std::env::var_os("WALDEN_SOAK").is_some_and(|value| value == "1") { 800 } else { 150 }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_planner_still_finds_every_way_after_expiry(
        policy in policy(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut past = Past::new(policy);
        for step in &steps {
            past.step(step);
        }
        past.expire(0);
    }
}

proptest! {
    // Each lists a thousand objects after each step.
    #![proptest_config(ProptestConfig { cases: cases() / 6, ..ProptestConfig::default() })]

    /// What `status` goes by: the index, which is told of what expires on this host, and the newest listings.
    #[test]
    fn what_the_index_remembers_is_what_is_there(
        policy in policy(),
        steps in proptest::collection::vec(step(), 1..40),
    ) {
        let mut past = Past::new(policy);
        past.world.index = IndexHandle::in_memory();
        // More than is listed again each time.
        past.step(&Step::Backup { segments: 2 });
        past.step(&Step::Archive { segments: 700, minutes: 1 });
        past.world.look();
        for step in &steps {
            past.step(step);
            past.world.reaches_as_far_as_it_walks(&past.world.look());
        }
    }
}
