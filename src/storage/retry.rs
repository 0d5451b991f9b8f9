//! Trying again: what a store could not do now it may do a little later.

use super::{Deadline, Error, Object, Put, Result, Storage, Upload};
use bytes::Bytes;
use std::io::Read;
use std::ops::Range;
use std::time::{Duration, Instant};

/// The longest wait before the second attempt; it doubles with each further one.
const BASE: Duration = Duration::from_millis(200);

/// The longest wait before any attempt.
const CAP: Duration = Duration::from_secs(5);

/// How soon a wait notices that the deadline was cut.
const TICK: Duration = Duration::from_millis(50);

/// A store whose calls are repeated while trying again may help ([`Error::is_retryable`]), with exponentially
/// longer, random waits, so that many hosts do not come back at the same moment to a store that throttles them.
///
/// `get` repeats the opening only: a failure in mid-stream is the reader's, who gets the object again. `put_new`
/// may find the object of its own lost attempt, and then returns [`Put::Existed`].
#[derive(Debug)]
pub struct Retry<S> {
    inner: S,
    attempts: u32,
}

impl<S: Storage> Retry<S> {
    /// How often a call is tried where the configuration does not say.
    pub const DEFAULT_ATTEMPTS: u32 = 4;

    /// Returns the store with each call tried up to `attempts` times (at least once).
    pub fn new(inner: S, attempts: u32) -> Self {
        Self { inner, attempts: attempts.max(1) }
    }

    fn attempt<T>(&self, deadline: &Deadline, call: impl FnMut() -> Result<T>) -> Result<T> {
        attempt(self.inner.url(), self.attempts, deadline, call)
    }
}

fn attempt<T>(
    url: &str,
    attempts: u32,
    deadline: &Deadline,
    mut call: impl FnMut() -> Result<T>,
) -> Result<T> {
    let mut tried = 0;
    loop {
        let error = match call() {
            Ok(value) => return Ok(value),
            Err(error) => error,
        };
        tried += 1;
        let again = error.is_retryable() && tried < attempts && !deadline.is_over();
        if !again || !wait(jittered(tried), deadline) {
            return Err(after(error, tried));
        }
        tracing::debug!(store = url, tried, %error, "trying again");
    }
}

/// An upload whose beginning, parts and end are each tried again by themselves.
struct RetryUpload<'a> {
    inner: Box<dyn Upload + 'a>,
    url: &'a str,
    attempts: u32,
    deadline: Deadline,
}

impl Upload for RetryUpload<'_> {
    fn part(&mut self, index: u32, bytes: &Bytes) -> Result<()> {
        let Self { inner, url, attempts, deadline } = self;
        attempt(url, *attempts, deadline, || inner.part(index, bytes))
    }

    fn complete(&mut self) -> Result<Put> {
        let Self { inner, url, attempts, deadline } = self;
        attempt(url, *attempts, deadline, || inner.complete())
    }
}

/// Returns a random wait before the attempt that follows `tried` failed ones.
fn jittered(tried: u32) -> Duration {
    let longest = BASE.saturating_mul(1 << (tried - 1).min(16)).min(CAP);
    longest.mul_f64(fastrand::f64())
}

/// Sleeps; returns false at once when the deadline is cut, or would be before the end.
fn wait(rest: Duration, deadline: &Deadline) -> bool {
    let end = Instant::now() + rest;
    loop {
        let rest = end.saturating_duration_since(Instant::now());
        if deadline.remaining().is_some_and(|remaining| remaining <= rest) {
            return false;
        }
        if rest.is_zero() {
            return true;
        }
        std::thread::sleep(rest.min(TICK));
    }
}

/// Adds the number of attempts to the message of the last failure.
fn after(error: Error, attempts: u32) -> Error {
    let text = |text: String| format!("{text}, after {attempts} attempts");
    match error {
        Error::Unreachable(message) if attempts > 1 => Error::Unreachable(text(message)),
        Error::TimedOut(message) if attempts > 1 => Error::TimedOut(text(message)),
        // What follows a failed attempt with a certain answer is that answer.
        other => other,
    }
}

impl<S: Storage> Storage for Retry<S> {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn put_new(&self, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
        self.attempt(deadline, || self.inner.put_new(key, body, deadline))
    }

    fn upload_new<'a>(&'a self, key: &str, deadline: &Deadline) -> Result<Box<dyn Upload + 'a>> {
        let inner = self.attempt(deadline, || self.inner.upload_new(key, deadline))?;
        let (url, attempts, deadline) = (self.inner.url(), self.attempts, deadline.clone());
        Ok(Box::new(RetryUpload { inner, url, attempts, deadline }))
    }

    fn get(&self, key: &str, range: Option<Range<u64>>, deadline: &Deadline) -> Result<Box<dyn Read + Send>> {
        self.attempt(deadline, || self.inner.get(key, range.clone(), deadline))
    }

    fn head(&self, key: &str, deadline: &Deadline) -> Result<Object> {
        self.attempt(deadline, || self.inner.head(key, deadline))
    }

    fn list(
        &self,
        prefix: &str,
        start_after: &str,
        limit: usize,
        deadline: &Deadline,
    ) -> Result<Vec<Object>> {
        self.attempt(deadline, || self.inner.list(prefix, start_after, limit, deadline))
    }

    fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>> {
        self.attempt(deadline, || self.inner.list_folders(prefix, deadline))
    }

    fn delete(&self, key: &str, deadline: &Deadline) -> Result<()> {
        self.attempt(deadline, || self.inner.delete(key, deadline))
    }

    fn confirm(&self, key: &str, deadline: &Deadline) -> Result<()> {
        self.attempt(deadline, || self.inner.confirm(key, deadline))
    }

    fn tidy(&self, prefix: &str, deadline: &Deadline) -> Result<()> {
        self.attempt(deadline, || self.inner.tidy(prefix, deadline))
    }

    fn writes_conditionally(&self) -> bool {
        self.inner.writes_conditionally()
    }

    fn free_space(&self) -> Option<u64> {
        self.inner.free_space()
    }

    fn probe(&self, deadline: &Deadline) -> Result<()> {
        self.attempt(deadline, || self.inner.probe(deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::faulty::{Fault, Faulty, Moment};
    use crate::storage::{FsStorage, PART_SIZE, conformance};

    fn store() -> (tempfile::TempDir, Faulty<FsStorage>) {
        let dir = tempfile::tempdir().unwrap();
        let faulty = Faulty::new(FsStorage::new(dir.path().to_owned()));
        (dir, faulty)
    }

    fn deadline() -> Deadline {
        Deadline::stall(Duration::from_secs(10))
    }

    #[test]
    fn conforms() {
        let (_dir, store) = store();
        conformance::run(&Retry::new(store, 4));
    }

    #[test]
    fn conforms_although_single_calls_fail() {
        let (_dir, store) = store();
        let faults = store.faults();
        for call in (3..400).step_by(7) {
            faults.fail_at(call, Fault::Error(Moment::Before));
        }
        conformance::run(&Retry::new(store, 4));
        assert!(faults.fired() > 20);
    }

    #[test]
    fn gives_up_after_so_many_attempts_and_says_so() {
        let (_dir, store) = store();
        let faults = store.faults();
        faults.fail_from(1, Fault::Error(Moment::Before));
        let error = Retry::new(store, 3).probe(&deadline()).unwrap_err();
        assert_eq!(faults.calls(), 3);
        assert!(error.is_retryable());
        assert!(error.to_string().ends_with(", after 3 attempts"), "{error}");
    }

    #[test]
    fn a_lost_answer_to_a_put_finds_its_own_object() {
        let (_dir, store) = store();
        let faults = store.faults();
        faults.fail_at(1, Fault::Timeout(Moment::After));
        let retry = Retry::new(store, 3);
        assert_eq!(retry.put_new("a", &Bytes::from_static(b"x"), &deadline()).unwrap(), Put::Existed);
    }

    #[test]
    fn a_part_is_sent_again_by_itself_and_so_is_the_end() {
        let (_dir, store) = store();
        let faults = store.faults();
        for (call, moment) in
            [(1, Moment::Before), (3, Moment::Before), (5, Moment::After), (7, Moment::After)]
        {
            faults.fail_at(call, Fault::Error(moment));
        }
        let retry = Retry::new(store, 3);
        let mut upload = retry.upload_new("a", &deadline()).unwrap();
        upload.part(0, &Bytes::from(vec![1; PART_SIZE])).unwrap();
        upload.part(1, &Bytes::from(vec![2; 50])).unwrap();
        // Its own lost attempt made the object.
        assert_eq!(upload.complete().unwrap(), Put::Existed);
        assert_eq!((faults.fired(), faults.calls()), (4, 8));
        let mut content = Vec::new();
        retry.get("a", None, &deadline()).unwrap().read_to_end(&mut content).unwrap();
        assert!(content == [vec![1; PART_SIZE], vec![2; 50]].concat());
    }

    #[test]
    fn certain_answers_are_not_questioned() {
        let (_dir, store) = store();
        let faults = store.faults();
        let retry = Retry::new(store, 3);
        assert!(retry.head("missing", &deadline()).unwrap_err().is_not_found());
        assert_eq!(faults.calls(), 1);
        faults.fail_at(2, Fault::Refusal);
        assert!(!retry.probe(&deadline()).unwrap_err().is_retryable());
        assert_eq!(faults.calls(), 2);
    }

    #[test]
    fn a_cut_deadline_ends_the_waiting() {
        let (_dir, store) = store();
        store.faults().fail_from(1, Fault::Error(Moment::Before));
        let deadline = deadline();
        let started = Instant::now();
        let error = std::thread::scope(|scope| {
            let call = scope.spawn(|| Retry::new(store, 1000).probe(&deadline));
            std::thread::sleep(Duration::from_millis(300));
            deadline.cut_after(Duration::ZERO);
            call.join().unwrap().unwrap_err()
        });
        assert!(error.is_retryable());
        assert!(started.elapsed() < Duration::from_secs(2));
    }
}
