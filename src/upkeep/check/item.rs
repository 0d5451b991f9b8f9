//! What was found out about one thing.

use crate::kind::{Error, Kind};
use serde::Serialize;

/// What an item is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// As it should be.
    Ok,
    /// It works, and something would be better otherwise.
    Warning,
    /// It works, and what is archived is less safe than it could be.
    Risk,
    /// Left out; why is in the text.
    Skipped,
    /// Archiving, backups or recovery do not work, or will not.
    Failed,
}

/// One thing that was checked.
#[derive(Debug, Clone, Serialize)]
pub struct Item {
    /// What was checked.
    pub name: String,
    /// The repository that it is about.
    pub repository: Option<String>,
    /// What it is.
    pub state: State,
    /// What was found, in a line.
    pub found: String,
    /// What to do about it; a policy for S3 has several lines.
    pub hint: Option<String>,
    /// What sort of failure it is.
    #[serde(skip)]
    pub kind: Option<Kind>,
}

impl Item {
    fn new(name: &str, state: State, found: String, hint: Option<String>) -> Self {
        Self { name: name.to_owned(), repository: None, state, found, hint, kind: None }
    }

    /// Returns an item that is as it should be.
    pub(super) fn ok(name: &str, found: impl Into<String>) -> Self {
        Self::new(name, State::Ok, found.into(), None)
    }

    /// Returns an item that would be better otherwise.
    pub(super) fn warning(name: &str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(name, State::Warning, found.into(), Some(hint.into()))
    }

    /// Returns an item that makes what is archived less safe.
    pub(super) fn risk(name: &str, found: impl Into<String>, hint: impl Into<String>) -> Self {
        Self::new(name, State::Risk, found.into(), Some(hint.into()))
    }

    /// Returns an item that was left out.
    pub(super) fn skipped(name: &str, why: impl Into<String>) -> Self {
        Self::new(name, State::Skipped, why.into(), None)
    }

    /// Returns an item that failed.
    pub fn failed(name: &str, error: &Error) -> Self {
        let hint = error.hint().map(str::to_owned);
        let item = Self::new(name, State::Failed, error.message().to_owned(), hint);
        Self { kind: Some(error.kind()), ..item }
    }

    /// Returns the item, about a repository.
    #[must_use]
    pub(super) fn of(self, repository: &str) -> Self {
        Self { repository: Some(repository.to_owned()), ..self }
    }
}

/// Returns a number with commas between thousands.
pub(super) fn grouped(n: usize) -> String {
    let digits = n.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thousands_are_grouped() {
        let texts = [0, 999, 1000, 1_234_567].map(grouped);
        assert_eq!(texts, ["0", "999", "1,000", "1,234,567"]);
    }
}
