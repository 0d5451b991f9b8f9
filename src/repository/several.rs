//! The same question or the same object to several repositories at once, without waiting long for a slow one.

use super::Repository;
use crate::kind::Error;
use crate::storage::{Deadline, Put};
use bytes::Bytes;
use std::sync::mpsc;
use std::time::Duration;

/// How much longer the other repositories get once enough have answered.
const GRACE: Duration = Duration::from_secs(2);

/// Runs `work` on every repository at once, with a deadline for each, and returns the answers in the same order.
/// Once `enough` answers satisfied `counts`, the others get a little longer; late ones fail with
/// [`storage::Error::TimedOut`].
pub fn ask_all<'r, T: Send>(
    repositories: &[&'r Repository],
    enough: usize,
    work: impl Fn(&'r Repository, &Deadline) -> T + Sync,
    counts: impl Fn(&T) -> bool,
) -> Vec<T> {
    let deadlines: Vec<Deadline> = repositories.iter().map(|repository| repository.deadline()).collect();
    if let [only] = repositories {
        return vec![work(only, &deadlines[0])];
    }
    let mut answers: Vec<Option<T>> = repositories.iter().map(|_| None).collect();
    std::thread::scope(|scope| {
        let (sender, receiver) = mpsc::channel();
        for (at, repository) in repositories.iter().enumerate() {
            let (sender, deadline, work) = (sender.clone(), &deadlines[at], &work);
            scope.spawn(move || {
                let _ = sender.send((at, work(repository, deadline)));
            });
        }
        drop(sender);
        let mut satisfied = 0;
        while let Ok((at, answer)) = receiver.recv() {
            satisfied += usize::from(counts(&answer));
            answers[at] = Some(answer);
            if satisfied >= enough {
                for deadline in &deadlines {
                    deadline.cut_after(GRACE);
                }
            }
        }
    });
    answers.into_iter().flatten().collect()
}

/// What became of one object in each repository that it was sent to, by the repository's name.
#[derive(Debug, Default)]
pub struct Outcome<'r> {
    /// The repositories that hold it durably, and whether this call put it there.
    pub stored: Vec<(&'r Repository, Put)>,
    /// Those that do not, and why.
    pub failed: Vec<(&'r Repository, Error)>,
}

/// Sends `body` to every repository in `to` under `key`. Returns when all have answered, or a little after
/// `enough` hold it; what is late then counts as failed.
pub fn ship<'r>(to: &[&'r Repository], key: &str, body: &Bytes, enough: usize) -> Outcome<'r> {
    let put = |repository: &'r Repository, deadline: &Deadline| {
        (repository, repository.storage().put_new(key, body, deadline))
    };
    let answers = ask_all(to, enough, put, |(_, answer)| answer.is_ok());
    let mut outcome = Outcome::default();
    for (repository, answer) in answers {
        match answer {
            Ok(put) => outcome.stored.push((repository, put)),
            Err(error) => outcome.failed.push((repository, repository.error("put to", &error))),
        }
    }
    outcome
}
