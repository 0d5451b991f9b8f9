//! The one error of the vocabulary.

/// Why bytes or text are not what they were taken for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ParseError {
    /// Text that does not have the form of `what`.
    #[error("invalid {what} \"{value}\": expected {expected}")]
    Text {
        /// What the text should have been ("log sequence number").
        what: &'static str,
        /// The text as it was given.
        value: String,
        /// The form that was expected.
        expected: &'static str,
    },

    /// Fewer bytes than the format has.
    #[error("{what} has {found} bytes, expected at least {expected}")]
    TooShort {
        /// What was read ("control file").
        what: &'static str,
        /// Bytes needed.
        expected: u64,
        /// Bytes there.
        found: u64,
    },

    /// Two values that must agree and do not.
    #[error("{what} is {found}, expected {expected}")]
    Mismatch {
        /// What was compared ("page address").
        what: &'static str,
        /// The value found.
        found: String,
        /// The value, or the range of values, that would have been right.
        expected: String,
    },

    /// A line that a text file must have is not there.
    #[error("{what} has no line \"{line}\"")]
    MissingLine {
        /// What was read ("backup label").
        what: &'static str,
        /// How the missing line begins.
        line: &'static str,
    },

    /// The bytes are a control file whose checksum does not match. Control files are read while the server writes
    /// them, so this may be a torn read: read again before believing it.
    #[error("checksum mismatch in control file: stored {stored:08X}, computed {computed:08X}")]
    ControlFileChecksum {
        /// The CRC-32C in the file.
        stored: u32,
        /// The CRC-32C of the file's bytes.
        computed: u32,
    },

    /// The bytes are not a control file of any supported version; reading again does not help.
    #[error(
        "not a control file: control version is {found}, expected 1300 (PostgreSQL 13 to 16), 1700 or 1800"
    )]
    NotControlFile {
        /// The number found where the control version stands.
        found: u32,
    },
}

impl ParseError {
    pub(super) fn text(what: &'static str, value: &str, expected: &'static str) -> Self {
        Self::Text { what, value: value.to_owned(), expected }
    }

    pub(super) fn too_short(what: &'static str, expected: usize, found: usize) -> Self {
        Self::TooShort { what, expected: expected as u64, found: found as u64 }
    }

    #[allow(clippy::needless_pass_by_value)] // so that callers write literals and `format!` as they are
    pub(super) fn mismatch(what: &'static str, found: impl ToString, expected: impl ToString) -> Self {
        Self::Mismatch { what, found: found.to_string(), expected: expected.to_string() }
    }
}
