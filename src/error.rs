//! The one place that maps kinds of failure to exit codes (design: "Exit codes").

use crate::kind::Kind;

/// What archive-get says when it cannot answer: above 125, so that recovery stops instead of ending early.
pub const CANNOT_ANSWER: u8 = 200;

/// Returns the exit code for a failure of `kind`.
pub fn exit_code(kind: Kind) -> u8 {
    match kind {
        Kind::Other | Kind::Absent => 1,
        Kind::Usage => 2,
        Kind::Config => 3,
        Kind::Repository | Kind::Doubt | Kind::MustStop => 4,
        Kind::Conflict => 5,
        Kind::Corrupt => 6,
        Kind::Server => 7,
        Kind::Target => 8,
    }
}

/// Returns archive-get's exit code: 1 only for proven absence; every other failure stops recovery, unless a standby
/// is to go on trying.
pub fn archive_get_code(kind: Kind, retry: bool) -> u8 {
    match kind {
        Kind::Absent => 1,
        Kind::MustStop => CANNOT_ANSWER,
        // "Not found" is what 1 means to the server; a standby may retry after anything, and takes 1-125 alike.
        Kind::Other if retry => 4,
        kind if retry => exit_code(kind),
        _ => CANNOT_ANSWER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_proven_absence_is_1_for_archive_get() {
        let always = [Kind::Absent, Kind::MustStop];
        for kind in Kind::ALL.into_iter().filter(|kind| !always.contains(kind)) {
            assert_eq!(archive_get_code(kind, false), CANNOT_ANSWER);
            assert!((2..=125).contains(&archive_get_code(kind, true)));
            assert!((1..=125).contains(&exit_code(kind)));
        }
        assert_eq!(archive_get_code(Kind::Absent, false), 1);
        assert_eq!(archive_get_code(Kind::Absent, true), 1);
        assert_eq!(archive_get_code(Kind::MustStop, false), CANNOT_ANSWER);
        assert_eq!(archive_get_code(Kind::MustStop, true), CANNOT_ANSWER);
    }
}
