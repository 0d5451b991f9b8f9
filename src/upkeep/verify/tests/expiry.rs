//! Verification while objects expire: what goes meanwhile is no damage.

use super::request;
use crate::index::IndexHandle;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::storage::faulty::{Fault, Faults, Faulty, Moment};
use crate::storage::{Deadline, Object, Put, Result, Storage, Upload};
use crate::upkeep::expire::tests::world::{SIZE, World, expire, repository};
use crate::upkeep::retention::Policy;
use crate::upkeep::verify::{Report, verify};
use bytes::Bytes;
use jiff::Timestamp;
use std::fmt;
use std::io::Read;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

const POLICY: Policy = Policy {
    keep_last: Some(1),
    keep_daily: None,
    keep_weekly: None,
    keep_monthly: None,
    keep_yearly: None,
    window: None,
};

fn time(hours: i64) -> Timestamp {
    Timestamp::from_second(1_790_000_000 + hours * 3600).unwrap()
}

/// Three backups on two timelines, of which the policy keeps the last; the remains of a fourth; nothing is missing.
fn world() -> World {
    let world = World::new();
    world.store.set_now(time(0));
    world.store.put(&world.keys.recovery_text(), "text");
    let leftover = format!("{}data/0000000.lz4", world.keys.backup("20200101T000000Z-00000001-00000000"));
    world.store.put(&leftover, "piece");
    for number in 0..14_u64 {
        let timeline = if number < 6 { 1 } else { 2 };
        let hours = number.cast_signed();
        world.segment(timeline, number, time(hours));
        if number == 6 {
            let fork = crate::postgres::Lsn(6 * SIZE.bytes());
            world.history(2, &format!("1\t{fork}\tpromoted\n"), time(hours));
        }
        if number % 4 == 2 {
            world.backup(timeline, number - 1, number, time(hours));
        }
    }
    world
}

/// A store that does something else first when it is called for the time of that number.
struct Meanwhile<S, D> {
    inner: S,
    calls: Arc<AtomicU64>,
    at: u64,
    deed: Mutex<Option<D>>,
}

impl<S, D> fmt::Debug for Meanwhile<S, D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Meanwhile at {}", self.at)
    }
}

impl<S: Storage, D: FnOnce() + Send> Meanwhile<S, D> {
    fn then(&self) -> &S {
        if self.calls.fetch_add(1, Ordering::SeqCst) + 1 == self.at
            && let Some(deed) = self.deed.lock().unwrap().take()
        {
            deed();
        }
        &self.inner
    }
}

impl<S: Storage, D: FnOnce() + Send> Storage for Meanwhile<S, D> {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn put_new(&self, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
        self.then().put_new(key, body, deadline)
    }

    fn upload_new<'a>(&'a self, key: &str, deadline: &Deadline) -> Result<Box<dyn Upload + 'a>> {
        self.then().upload_new(key, deadline)
    }

    fn get(&self, key: &str, range: Option<Range<u64>>, deadline: &Deadline) -> Result<Box<dyn Read + Send>> {
        self.then().get(key, range, deadline)
    }

    fn head(&self, key: &str, deadline: &Deadline) -> Result<Object> {
        self.then().head(key, deadline)
    }

    fn list(
        &self,
        prefix: &str,
        start_after: &str,
        limit: usize,
        deadline: &Deadline,
    ) -> Result<Vec<Object>> {
        self.then().list(prefix, start_after, limit, deadline)
    }

    fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>> {
        self.then().list_folders(prefix, deadline)
    }

    fn delete(&self, key: &str, deadline: &Deadline) -> Result<()> {
        self.then().delete(key, deadline)
    }

    fn probe(&self, deadline: &Deadline) -> Result<()> {
        self.then().probe(deadline)
    }
}

fn run(repository: &Repository) -> Report {
    let mut request = request(&[]);
    request.repositories = vec![(repository, Some(POLICY))];
    verify(&request, &IndexHandle::absent(), &Progress::new())
}

/// Expires, and breaks off before the call of that number.
fn expire_until(world: &World, call: u64) -> u64 {
    let faults = Faults::default();
    faults.fail_from(call, Fault::Error(Moment::Before));
    let faulty = Faulty::with(Arc::clone(&world.store), faults.clone());
    expire(&repository("primary", Arc::new(faulty)), POLICY, time(24));
    faults.calls()
}

/// Verifies, and expires before the call of one number up to that of another. Returns how often verify called.
fn verify_and_expire(at: u64, until: u64) -> u64 {
    let world = Arc::new(world());
    let deed = {
        let world = Arc::clone(&world);
        move || {
            expire_until(&world, until);
        }
    };
    let calls = Arc::new(AtomicU64::new(0));
    let store = Meanwhile {
        inner: Arc::clone(&world.store),
        calls: Arc::clone(&calls),
        at,
        deed: Mutex::new(Some(deed)),
    };
    let made = run(&repository("primary", Arc::new(store)));
    let what = format!("expired before call {at} until {until}");
    assert_eq!(made.problems(), 0, "{what}: {made:#?}");
    assert_eq!(made.failure(), None, "{what}: {made:#?}");
    let again = run(&world.repository());
    assert!(again.problems() == 0 && again.failure().is_none(), "{what}, and then again: {again:#?}");
    calls.load(Ordering::SeqCst)
}

#[test]
fn what_expires_at_any_call_is_no_damage() {
    let unbroken = expire_until(&world(), u64::MAX);
    assert!(unbroken > 20, "{unbroken}");
    let calls = verify_and_expire(u64::MAX, u64::MAX);
    assert!(calls > 20, "{calls}");
    for at in 1..=calls {
        // All of it, and what an expiry left that was broken off or has not got further yet.
        for until in (2..unbroken + 2).step_by(5).chain([u64::MAX]) {
            verify_and_expire(at, until);
        }
    }
}

#[test]
fn what_nothing_lets_expire_is_missed_all_the_same() {
    let world = world();
    world.store.remove(&world.segment_key(2, 12));
    assert_eq!(run(&world.repository()).problems(), 1);
}
