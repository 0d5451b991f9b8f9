//! The backup label, which tells a restored server where its recovery begins (`build_backup_content` in
//! `xlogbackup.c`).

use super::{Lsn, ParseError, TimelineId, WalSegmentName};

/// What a `backup_label` file says. A backup history file begins with the same lines, so it can be read too.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BackupLabel {
    /// The position from which recovery must replay.
    pub start: Lsn,
    /// The segment that holds it.
    pub start_segment: WalSegmentName,
    /// The position of the backup's checkpoint.
    pub checkpoint: Lsn,
    /// Whether the backup was taken from a standby.
    pub from_standby: bool,
    /// When the backup began, in the server's time zone and words.
    pub start_time: String,
    /// The label that was given to the backup.
    pub label: String,
    /// The timeline on which the backup began.
    pub timeline: TimelineId,
}

impl BackupLabel {
    /// Returns what the file says. A label or time zone that is not UTF-8 is read as well as possible.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, ParseError> {
        let text = String::from_utf8_lossy(text.as_ref());
        let start = value(&text, "START WAL LOCATION: ")?;
        let (start, start_segment) = start
            .split_once(" (file ")
            .and_then(|(lsn, file)| Some((lsn, file.strip_suffix(')')?)))
            .ok_or_else(|| {
                ParseError::text("start WAL location", start, "a position and a file in parentheses")
            })?;
        let from = value(&text, "BACKUP FROM: ")?;
        let from_standby = match from {
            "primary" => false,
            "standby" => true,
            _ => return Err(ParseError::text("backup source", from, "primary or standby")),
        };
        Ok(Self {
            start: start.parse()?,
            start_segment: start_segment.parse()?,
            checkpoint: value(&text, "CHECKPOINT LOCATION: ")?.parse()?,
            from_standby,
            start_time: value(&text, "START TIME: ")?.to_owned(),
            label: value(&text, "LABEL: ")?.to_owned(),
            timeline: value(&text, "START TIMELINE: ")?.parse()?,
        })
    }
}

/// Returns the rest of the first line that begins so.
fn value<'a>(text: &'a str, line: &'static str) -> Result<&'a str, ParseError> {
    text.lines()
        .find_map(|found| found.strip_prefix(line))
        .ok_or(ParseError::MissingLine { what: "backup label", line })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const GOLDEN: &str = include_str!("../../tests/golden/backup_label-15");

    #[test]
    fn reads_a_real_label() {
        let label = BackupLabel::parse(GOLDEN).unwrap();
        assert_eq!(
            label,
            BackupLabel {
                start: Lsn(0x0800_0028),
                start_segment: "000000010000000000000008".parse().unwrap(),
                checkpoint: Lsn(0x0800_0060),
                from_standby: false,
                start_time: "2026-11-21 02:11:51 UTC".to_owned(),
                label: "nightly: the first".to_owned(),
                timeline: TimelineId(1),
            }
        );
    }

    #[test]
    fn a_missing_line_is_named() {
        let without = GOLDEN.replace("CHECKPOINT LOCATION", "CHECKPOINT");
        let error = BackupLabel::parse(without).unwrap_err();
        assert_eq!(error.to_string(), "backup label has no line \"CHECKPOINT LOCATION: \"");
        assert!(BackupLabel::parse("").is_err());
    }

    proptest! {
        #[test]
        fn never_panics(cut in 0..GOLDEN.len(), insert: Vec<u8>) {
            let text = [&GOLDEN.as_bytes()[..cut], &insert, &GOLDEN.as_bytes()[cut..]].concat();
            let _ = BackupLabel::parse(text);
        }
    }
}
