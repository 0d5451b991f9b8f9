//! One object to several repositories at once, until enough of them have it.

use super::Repository;
use crate::kind::{Error, Result};
use crate::storage::{Deadline, Put};
use bytes::Bytes;
use std::sync::mpsc;
use std::time::Duration;

/// How much longer the other repositories get once enough have the object.
const GRACE: Duration = Duration::from_secs(2);

/// What became of one object in each repository that it was sent to.
#[derive(Debug, Default)]
pub struct Outcome {
    /// The positions (in the list given) of the repositories that hold it durably, and whether this call put it
    /// there.
    pub stored: Vec<(usize, Put)>,
    /// The positions of those that do not, and why.
    pub failed: Vec<(usize, Error)>,
}

/// Sends `body` to every repository in `to` under `key`. Returns when all have answered, or a little after
/// `enough` hold it; what is late then counts as failed.
pub fn ship(to: &[&Repository], key: &str, body: &Bytes, enough: usize) -> Outcome {
    let mut outcome = Outcome::default();
    let deadlines: Vec<Deadline> = to.iter().map(|repository| repository.deadline()).collect();
    if let [only] = to {
        record(&mut outcome, 0, put(only, key, body, &deadlines[0]));
        return outcome;
    }
    std::thread::scope(|scope| {
        let (sender, answers) = mpsc::channel();
        for (at, repository) in to.iter().enumerate() {
            let (sender, deadline) = (sender.clone(), &deadlines[at]);
            scope.spawn(move || {
                let _ = sender.send((at, put(repository, key, body, deadline)));
            });
        }
        drop(sender);
        while let Ok((at, answer)) = answers.recv() {
            record(&mut outcome, at, answer);
            if outcome.stored.len() >= enough {
                deadlines.iter().for_each(|deadline| deadline.cut_after(GRACE));
            }
        }
    });
    outcome
}

fn put(repository: &Repository, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
    repository.storage().put_new(key, body, deadline).map_err(|error| repository.error("put to", &error))
}

fn record(outcome: &mut Outcome, at: usize, answer: Result<Put>) {
    match answer {
        Ok(put) => outcome.stored.push((at, put)),
        Err(error) => outcome.failed.push((at, error)),
    }
}
