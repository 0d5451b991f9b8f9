//! One large object to several repositories while it is being made: compressed and encrypted once, in parts that are
//! dropped when every repository has them.
//!
//! The repositories go in step: each takes a part while the next one is made. One that fails is left behind, and so is
//! one that holds up enough others. Memory is a few parts, however many repositories there are.

use super::Repository;
use super::several::Outcome;
use crate::kind::{Error, Kind, Result};
use crate::storage::{self, Deadline, PART_SIZE, Put};
use bytes::Bytes;
use std::io::{self, Write};
use std::sync::mpsc::{self, Receiver, SyncSender, TrySendError};
use std::time::{Duration, Instant};

/// How long a repository may hold up the others with one part, and how much longer than enough others it may take to
/// complete the object.
const LAG: Duration = Duration::from_secs(10);
/// How often it is looked whether a repository takes the next part.
const POLL: Duration = Duration::from_millis(2);

/// How much memory [`ship_stream`] takes at most, in bytes: the part that is being made or offered, the one before it,
/// which the slowest repository is still sending, and buffers.
pub const STREAM_MEMORY: u64 = 3 * PART_SIZE as u64;

/// What a repository's thread is told.
#[derive(Clone)]
enum Step {
    Part(Bytes),
    /// The object is whole and right.
    Complete,
}

/// The way of the parts to one repository.
struct Lane {
    /// None once the repository was left behind.
    steps: Option<SyncSender<Step>>,
    deadline: Deadline,
}

/// Takes an object's bytes, cuts them into parts and hands these to the repositories.
pub struct Parts {
    lanes: Vec<Lane>,
    enough: usize,
    lag: Duration,
    buffer: Vec<u8>,
    /// How many bytes were taken.
    length: u64,
}

impl Parts {
    fn pass_on(&mut self) -> io::Result<()> {
        let part = Bytes::from(std::mem::take(&mut self.buffer));
        self.hand_out(&Step::Part(part))
    }

    /// Hands a step to every repository that is still in. Fails when none is left.
    fn hand_out(&mut self, step: &Step) -> io::Result<()> {
        let began = Instant::now();
        let mut waiting: Vec<usize> = (0..self.lanes.len()).collect();
        loop {
            waiting.retain(|at| self.lanes[*at].must_wait(step));
            let open = self.lanes.iter().filter(|lane| lane.steps.is_some()).count();
            if open == 0 {
                return Err(io::Error::other("no repository takes it"));
            }
            if began.elapsed() > self.lag && open - waiting.len() >= self.enough.max(1) {
                for at in waiting.drain(..) {
                    self.lanes[at].deadline.cut_after(Duration::ZERO);
                    self.lanes[at].steps = None;
                }
            }
            if waiting.is_empty() {
                return Ok(());
            }
            std::thread::sleep(POLL);
        }
    }

    /// Lets the repositories complete the object, and returns its length in bytes.
    fn complete(mut self) -> io::Result<u64> {
        if !self.buffer.is_empty() {
            self.pass_on()?;
        }
        self.hand_out(&Step::Complete)?;
        Ok(self.length)
    }
}

impl Lane {
    /// Offers a step; returns whether the repository is not ready for it.
    fn must_wait(&mut self, step: &Step) -> bool {
        let Some(steps) = &self.steps else { return false };
        match steps.try_send(step.clone()) {
            Ok(()) => false,
            Err(TrySendError::Full(_)) => true,
            Err(TrySendError::Disconnected(_)) => {
                self.steps = None; // its thread says why
                false
            }
        }
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.buffer.capacity() == 0 {
            self.buffer.reserve_exact(PART_SIZE);
        }
        let taken = bytes.len().min(PART_SIZE - self.buffer.len());
        self.buffer.extend_from_slice(&bytes[..taken]);
        self.length += taken as u64;
        if self.buffer.len() == PART_SIZE {
            self.pass_on()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(()) // a part is passed on when it is full
    }
}

/// Sends what `make` writes to every repository in `to` under `key`, create-only, and returns with it the number of
/// bytes. The object is completed only after `make` has returned the [`Parts`] without an error: what it could not
/// vouch for at the end is nowhere to be seen. Returns when all have answered, or a little after `enough` hold it;
/// what is late, and who held up the others, counts as failed. Fails with the error of `make`.
pub fn ship_stream<'r>(
    to: &[&'r Repository],
    key: &str,
    enough: usize,
    make: impl FnOnce(Parts) -> Result<Parts>,
) -> Result<(Outcome<'r>, u64)> {
    ship_with_lag(to, key, enough, LAG, make)
}

fn ship_with_lag<'r>(
    to: &[&'r Repository],
    key: &str,
    enough: usize,
    lag: Duration,
    make: impl FnOnce(Parts) -> Result<Parts>,
) -> Result<(Outcome<'r>, u64)> {
    let deadlines: Vec<Deadline> = to.iter().map(|repository| repository.deadline()).collect();
    let mut answers: Vec<Option<storage::Result<Option<Put>>>> = to.iter().map(|_| None).collect();
    let length = std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        let mut lanes = Vec::new();
        for (at, repository) in to.iter().enumerate() {
            // Nothing waits in the channel: the part that is offered is the one that waits.
            let (steps, next) = mpsc::sync_channel(0);
            let (sender, deadline) = (sender.clone(), &deadlines[at]);
            lanes.push(Lane { steps: Some(steps), deadline: deadline.clone() });
            scope.spawn(move || {
                let _ = sender.send((at, receive(repository, key, deadline, &next)));
            });
        }
        drop(sender);
        let parts = Parts { lanes, enough, lag, buffer: Vec::new(), length: 0 };
        let length = make(parts).and_then(|parts| {
            parts.complete().map_err(|error| Error::new(Kind::Repository, format!("send parts: {error}")))
        });
        let mut stored = 0;
        while let Ok((at, answer)) = receiver.recv() {
            stored += usize::from(matches!(answer, Ok(Some(_))));
            answers[at] = Some(answer);
            if stored > 0 && stored >= enough {
                for deadline in &deadlines {
                    deadline.cut_after(lag); // more than `ship` gives: all its parts may be there already
                }
            }
        }
        length
    });
    // Where every repository has failed, their errors say more than that none was left.
    let length = match length {
        Ok(length) => length,
        Err(_) if answers.iter().all(|answer| matches!(answer, Some(Err(_)))) => 0,
        Err(error) => return Err(error),
    };
    let mut outcome = Outcome::default();
    for (repository, answer) in to.iter().zip(answers) {
        match answer {
            Some(Ok(Some(put))) => outcome.stored.push((repository, put)),
            Some(Err(error)) => outcome.failed.push((repository, repository.error("put to", &error))),
            Some(Ok(None)) | None => {
                let late = storage::Error::TimedOut("it held up the others".to_owned());
                outcome.failed.push((repository, repository.error("put to", &late)));
            }
        }
    }
    Ok((outcome, length))
}

/// Writes the object in one repository. None: it was not told to complete it, and nothing of it is left there.
fn receive(
    repository: &Repository,
    key: &str,
    deadline: &Deadline,
    steps: &Receiver<Step>,
) -> storage::Result<Option<Put>> {
    let mut upload = repository.storage().upload_new(key, deadline)?;
    let mut index = 0;
    loop {
        match steps.recv() {
            Ok(Step::Part(part)) => upload.part(index, &part)?,
            Ok(Step::Complete) => return upload.complete().map(Some),
            Err(_) => return Ok(None),
        }
        index += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::FsStorage;
    use crate::storage::faulty::{Fault, Faulty, Moment};
    use std::io::Read;
    use std::sync::Arc;

    fn repository(name: &str) -> (tempfile::TempDir, Repository, crate::storage::faulty::Faults) {
        let dir = tempfile::tempdir().unwrap();
        let store = Faulty::new(FsStorage::new(dir.path().to_owned()));
        let faults = store.faults();
        (dir, Repository::new(name, Arc::new(store), Duration::from_secs(10)), faults)
    }

    fn content() -> Vec<u8> {
        (0..3 * PART_SIZE + 1000).map(|i| (i >> 5) as u8 ^ i as u8).collect()
    }

    fn make(mut parts: Parts) -> Result<Parts> {
        parts.write_all(&content()).map_err(|error| Error::other(error.to_string()))?;
        Ok(parts)
    }

    fn read(repository: &Repository) -> Option<Vec<u8>> {
        let mut content = Vec::new();
        repository
            .storage()
            .get("a/key", None, &repository.deadline())
            .ok()?
            .read_to_end(&mut content)
            .unwrap();
        Some(content)
    }

    #[test]
    fn every_repository_gets_the_whole() {
        let (_a, a, _) = repository("a");
        let (_b, b, _) = repository("b");
        let (outcome, length) = ship_stream(&[&a, &b], "a/key", 2, make).unwrap();
        assert_eq!((outcome.stored.len(), length), (2, content().len() as u64));
        assert!(read(&a) == Some(content()) && read(&b) == Some(content()));
        let (outcome, _) = ship_stream(&[&a], "a/key", 1, make).unwrap();
        assert_eq!(outcome.stored[0].1, Put::Existed);
    }

    #[test]
    fn one_that_fails_at_any_call_leaves_the_other_alone() {
        // Begin, four parts, complete.
        for call in 1..=6 {
            let (_a, a, faults) = repository("a");
            let (_b, b, _) = repository("b");
            faults.fail_at(call, Fault::Error(Moment::Before));
            let (outcome, _) = ship_stream(&[&a, &b], "a/key", 1, make).unwrap();
            assert_eq!((outcome.stored.len(), outcome.failed.len()), (1, 1), "call {call}");
            assert!(read(&a).is_none() && read(&b) == Some(content()));
        }
    }

    #[test]
    fn where_all_fail_each_says_why() {
        let (_a, a, a_faults) = repository("a");
        let (_b, b, b_faults) = repository("b");
        a_faults.fail_at(2, Fault::Refusal);
        b_faults.fail_at(3, Fault::Error(Moment::Before));
        let (outcome, _) = ship_stream(&[&a, &b], "a/key", 1, make).unwrap();
        assert!(outcome.stored.is_empty());
        let errors: Vec<String> = outcome.failed.iter().map(|(_, error)| error.to_string()).collect();
        assert!(errors.iter().all(|error| error.contains("fault on demand")), "{errors:?}");
    }

    #[test]
    fn what_its_maker_does_not_vouch_for_is_nowhere() {
        let (dir, a, _) = repository("a");
        let made = |parts| make(parts).and_then(|_| Err(Error::other("the file changed")));
        let error = ship_stream(&[&a], "a/key", 1, made).unwrap_err();
        assert_eq!(error.message(), "the file changed");
        assert!(read(&a).is_none());
        let left: Vec<_> = std::fs::read_dir(dir.path().join("a")).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }

    #[test]
    fn one_that_holds_up_enough_others_is_left_behind() {
        let (_a, a, faults) = repository("a");
        let (_b, b, _) = repository("b");
        faults.fail_at(2, Fault::Slow(Duration::from_millis(700)));
        let lag = Duration::from_millis(100);
        let (outcome, _) = ship_with_lag(&[&a, &b], "a/key", 1, lag, make).unwrap();
        assert_eq!(outcome.stored.len(), 1);
        assert!(read(&a).is_none() && read(&b) == Some(content()));
        // Not so if it is needed.
        let (_c, c, _) = repository("c");
        faults.reset();
        faults.fail_at(2, Fault::Slow(Duration::from_millis(700)));
        let (outcome, _) = ship_with_lag(&[&a, &c], "a/key", 2, lag, make).unwrap();
        assert_eq!(outcome.stored.len(), 2);
    }
}
