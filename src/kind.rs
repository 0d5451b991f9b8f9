//! Kinds of failure, and the error that carries one.
//!
//! Every layer above the mechanisms reports failures as [`Error`]: a [`Kind`], one line of text, and perhaps a
//! hint. What a kind means to the caller of the program (its exit code) is decided in one place, the shell's
//! `error.rs`; nothing here knows about exit codes.

use std::fmt;

/// What sort of failure it is, as far as the caller must tell them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A failure of no other kind: a full disk, a lost process, a bug.
    Other,
    /// The command line is wrong.
    Usage,
    /// The configuration or a key is missing or wrong.
    Config,
    /// A repository could not be reached or refused us, after retries.
    Repository,
    /// The same name is archived with different content.
    Conflict,
    /// Data is corrupt or belongs to another cluster.
    Corrupt,
    /// PostgreSQL is not in the state that the command needs.
    Server,
    /// The recovery target cannot be reached.
    Target,
    /// The file is proven absent from every repository.
    Absent,
    /// Whether the file exists cannot be said; recovery must stop rather than end early.
    Doubt,
    /// As [`Kind::Doubt`], and not even a standby may go on asking, for it would replay an abandoned timeline.
    MustStop,
}

impl Kind {
    /// All kinds.
    pub const ALL: [Self; 11] = [
        Self::Other,
        Self::Usage,
        Self::Config,
        Self::Repository,
        Self::Conflict,
        Self::Corrupt,
        Self::Server,
        Self::Target,
        Self::Absent,
        Self::Doubt,
        Self::MustStop,
    ];
}

/// A failure with its kind, one line of text and perhaps a hint.
#[derive(Debug, Clone)]
pub struct Error {
    kind: Kind,
    message: String,
    hint: Option<String>,
}

/// The result of everything above the mechanisms.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// Returns an error of `kind` that says `message` (lower case, no full stop).
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: one_line(&message.into()), hint: None }
    }

    /// Returns an error of [`Kind::Other`].
    pub fn other(message: impl Into<String>) -> Self {
        Self::new(Kind::Other, message)
    }

    /// Returns an error of [`Kind::Config`].
    pub fn config(message: impl Into<String>) -> Self {
        Self::new(Kind::Config, message)
    }

    /// Returns an error of [`Kind::Usage`].
    pub fn usage(message: impl Into<String>) -> Self {
        Self::new(Kind::Usage, message)
    }

    /// Returns an error of [`Kind::Corrupt`].
    pub fn corrupt(message: impl Into<String>) -> Self {
        Self::new(Kind::Corrupt, message)
    }

    /// Returns the error with `hint` added (after one that it has already).
    #[must_use]
    pub fn with_hint(mut self, hint: impl Into<String>) -> Self {
        let hint = one_line(&hint.into());
        self.hint = Some(match self.hint.take() {
            Some(old) => format!("{old}; {hint}"),
            None => hint,
        });
        self
    }

    /// Returns the error with another kind.
    #[must_use]
    pub fn with_kind(mut self, kind: Kind) -> Self {
        self.kind = kind;
        self
    }

    /// Returns the error with `what` put before its text: `what: text`.
    #[must_use]
    pub fn context(mut self, what: impl fmt::Display) -> Self {
        self.message = one_line(&format!("{what}: {}", self.message));
        self
    }

    /// Returns the kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Returns the text without the hint.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Returns the hint.
    pub fn hint(&self) -> Option<&str> {
        self.hint.as_deref()
    }
}

/// The server's log takes messages as they are: a line feed inside one would look like another message.
fn one_line(text: &str) -> String {
    if text.contains(['\n', '\r']) {
        text.split(['\n', '\r']).map(str::trim).filter(|l| !l.is_empty()).collect::<Vec<_>>().join(" ")
    } else {
        text.to_owned()
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        if let Some(hint) = &self.hint {
            write!(f, "; hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Adds a kind and a context to any error on its way up.
pub trait Context<T> {
    /// Turns the error into an [`Error`] of `kind` that says `what: error`.
    fn kind(self, kind: Kind, what: impl fmt::Display) -> Result<T>;
    /// Turns the error into an [`Error`] of [`Kind::Other`] that says `what: error`.
    fn context(self, what: impl fmt::Display) -> Result<T>;
}

impl<T, E: fmt::Display> Context<T> for std::result::Result<T, E> {
    fn kind(self, kind: Kind, what: impl fmt::Display) -> Result<T> {
        self.map_err(|error| Error::new(kind, format!("{what}: {error}")))
    }
    fn context(self, what: impl fmt::Display) -> Result<T> {
        self.kind(Kind::Other, what)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_is_one_line_with_its_hint_last() {
        let error =
            Error::corrupt("checksum\nmismatch").context("read object").with_hint("look").with_hint("again");
        assert_eq!(error.to_string(), "read object: checksum mismatch; hint: look; again");
        assert_eq!(error.kind(), Kind::Corrupt);
    }
}
