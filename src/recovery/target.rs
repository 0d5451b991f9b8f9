//! Recovery targets as an operator types them.

use crate::kind::{Error, Result};
use crate::postgres::{Lsn, TimelineId};
use jiff::tz::TimeZone;
use jiff::{Timestamp, Zoned, civil};

/// What to recover to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The last commit not later than this time.
    Time(Timestamp),
    /// The end of the archive.
    Latest,
    /// The end of the backup, as soon as it is consistent.
    Immediate,
    /// A position in the WAL.
    Lsn(Lsn),
    /// A transaction, by its id without the epoch.
    Xid(u32),
    /// A restore point (`pg_create_restore_point`).
    Name(String),
}

/// Which timeline to follow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TimelineChoice {
    /// What fits the target: for a time the branch that was live then, else the latest.
    Fitting,
    /// The highest one with a history.
    Latest,
    /// The backup's own.
    Current,
    /// This one.
    Number(TimelineId),
}

impl std::str::FromStr for TimelineChoice {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "latest" => Ok(Self::Latest),
            "current" => Ok(Self::Current),
            number => number
                .parse()
                .map(Self::Number)
                .map_err(|_| Error::usage(format!("timeline \"{text}\" is not a number, latest or current"))),
        }
    }
}

impl Target {
    /// Parses a target; times without a zone are in `zone`, relative ones count from `now`.
    /// Fails with [`crate::kind::Kind::Usage`].
    pub fn parse(text: &str, now: &Zoned) -> Result<Self> {
        let text = text.trim();
        match text {
            // Up to now is as far as the archive goes.
            "latest" | "now" => return Ok(Self::Latest),
            "immediate" => return Ok(Self::Immediate),
            "" => return Err(wrong(text, "it is empty")),
            _ => {}
        }
        if let Some(lsn) = text.strip_prefix("lsn:") {
            let parsed: Lsn = lsn.parse().map_err(|_| wrong(text, "an LSN looks like 0/3000060"))?;
            return if parsed.is_valid() {
                Ok(Self::Lsn(parsed))
            } else {
                Err(wrong(text, "0/0 is no position"))
            };
        }
        if let Some(xid) = text.strip_prefix("xid:") {
            // pg_current_xact_id() shows 64 bits with the epoch; the WAL and the server's setting know the low 32.
            let xid: u64 = xid.parse().map_err(|_| wrong(text, "a transaction id is a number"))?;
            let low = (xid & 0xffff_ffff) as u32;
            return if low < 3 { Err(wrong(text, "transaction ids begin at 3")) } else { Ok(Self::Xid(low)) };
        }
        if let Some(name) = text.strip_prefix("name:") {
            // MAXFNAMELEN of the server, less the zero byte (xlog_internal.h).
            return match name.len() {
                0 => Err(wrong(text, "the restore point's name is empty")),
                1..=63 => Ok(Self::Name(name.to_owned())),
                _ => Err(wrong(text, "the name of a restore point has at most 63 bytes")),
            };
        }
        parse_time(text, now).map(Self::Time)
    }

    /// Returns whether recovery can stop right before it.
    pub fn can_be_exclusive(&self) -> bool {
        matches!(self, Self::Time(_) | Self::Lsn(_) | Self::Xid(_))
    }
}

/// Returns the time as it is shown and as it is written into the server's settings: UTC, with its offset, since the
/// server reads a time without one in a zone of its own.
pub fn utc(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S%.6f+00").to_string()
}

impl std::fmt::Display for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Time(time) => f.write_str(&utc(*time)),
            Self::Latest => f.write_str("latest"),
            Self::Immediate => f.write_str("immediate"),
            Self::Lsn(lsn) => write!(f, "lsn:{lsn}"),
            Self::Xid(xid) => write!(f, "xid:{xid}"),
            Self::Name(name) => write!(f, "name:{name}"),
        }
    }
}

fn wrong(text: &str, why: &str) -> Error {
    Error::usage(format!("target \"{text}\" is not understood: {why}")).with_hint(
        "a target is a time ('2026-11-20 14:30:00+01', '10 minutes ago'), latest, immediate, lsn:0/3000060, xid:1234 \
         or name:RESTORE_POINT",
    )
}

/// Returns an offset as it stands behind a time.
fn numeric(offset: jiff::tz::Offset) -> String {
    let minutes = offset.seconds() / 60;
    let (sign, minutes) = if minutes < 0 { ('-', -minutes) } else { ('+', minutes) };
    match minutes % 60 {
        0 => format!("{sign}{:02}", minutes / 60),
        rest => format!("{sign}{:02}:{rest:02}", minutes / 60),
    }
}

fn parse_time(text: &str, now: &Zoned) -> Result<Timestamp> {
    if text.ends_with("ago") {
        let span: jiff::Span = text.parse().map_err(|_| wrong(text, "write it as '10 minutes ago'"))?;
        return now
            .checked_add(span)
            .map(|then| then.timestamp())
            .map_err(|_| wrong(text, "that long ago is out of range"));
    }
    if !text.starts_with(|c: char| c.is_ascii_digit()) {
        return Err(wrong(text, "it is no time and begins with none of lsn:, xid:, name:"));
    }
    // PostgreSQL's log and people write a space before the offset.
    let joined = text.replace(" +", "+").replace(" -", "-");
    if let Ok(time) = joined.parse::<Timestamp>() {
        return Ok(time);
    }
    if let Ok(zoned) = joined.parse::<Zoned>() {
        return Ok(zoned.timestamp());
    }
    let utc_word = joined.strip_suffix(" UTC").or_else(|| joined.strip_suffix(" GMT"));
    if let Some(time) = utc_word.and_then(|text| text.parse::<civil::DateTime>().ok()) {
        return TimeZone::UTC.to_timestamp(time).map_err(|_| wrong(text, "the time is out of range"));
    }
    let letters = joined.rsplit(' ').next().is_some_and(|last| last.chars().all(|c| c.is_ascii_alphabetic()));
    if letters {
        return Err(wrong(text, "zones by abbreviation are ambiguous; write the offset, as in 14:30:00+02"));
    }
    let local: civil::DateTime =
        joined.parse().map_err(|_| wrong(text, "a time looks like '2026-11-20 14:30:00+01'"))?;
    let zone = now.time_zone();
    let ambiguous = zone.to_ambiguous_zoned(local);
    match ambiguous.offset() {
        jiff::tz::AmbiguousOffset::Unambiguous { .. } => {}
        jiff::tz::AmbiguousOffset::Fold { before, after } => {
            let with = |offset: jiff::tz::Offset| format!("'{text}{}'", numeric(offset));
            let why = format!(
                "this local time exists twice, at the end of daylight saving: write {} or {}, the later one",
                with(before),
                with(after)
            );
            return Err(wrong(text, &why));
        }
        jiff::tz::AmbiguousOffset::Gap { .. } => {
            return Err(wrong(text, "this local time does not exist: daylight saving begins and skips it"));
        }
    }
    ambiguous
        .unambiguous()
        .map(|zoned| zoned.timestamp())
        .map_err(|_| wrong(text, "the time is out of range"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn berlin() -> Zoned {
        "2026-11-20T15:00:00+01:00[Europe/Berlin]".parse().unwrap()
    }

    fn time(text: &str) -> String {
        match Target::parse(text, &berlin()).unwrap() {
            Target::Time(time) => utc(time),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn every_way_to_write_a_time_is_the_same_moment() {
        for text in [
            "2026-11-20 14:30:00+01",
            "2026-11-20 14:30:00 +01",
            "2026-11-20T13:30:00Z",
            "2026-11-20 13:30:00+00",
            "2026-11-20 13:30:00 UTC",
            "2026-11-20 14:30:00",
            "2026-11-20 14:30",
            "2026-11-20T14:30:00+01:00[Europe/Berlin]",
            "30 minutes ago",
            "30m ago",
            "1800s ago",
        ] {
            assert_eq!(time(text), "2026-11-20 13:30:00.000000+00", "{text}");
        }
        assert_eq!(time("2026-11-20 14:30:00.123456+01"), "2026-11-20 13:30:00.123456+00");
    }

    #[test]
    fn a_local_time_that_exists_twice_is_shown_as_both() {
        let refused = |text| Target::parse(text, &berlin()).unwrap_err().to_string();
        let twice = refused("2026-10-25 02:30:00");
        assert!(
            twice.contains("write '2026-10-25 02:30:00+02' or '2026-10-25 02:30:00+01', the later one"),
            "{twice}"
        );
        assert!(refused("2026-03-29 02:30:00").contains("does not exist"));
        let hours = |text: &str| numeric(text.parse::<Zoned>().unwrap().offset());
        assert_eq!(hours("2026-11-20T15:00:00-03:30[America/St_Johns]"), "-03:30");
    }

    #[test]
    fn the_other_targets() {
        let parse = |text| Target::parse(text, &berlin()).unwrap();
        assert_eq!(parse("latest"), Target::Latest);
        assert_eq!(parse("now"), Target::Latest);
        assert_eq!(parse("immediate"), Target::Immediate);
        assert_eq!(parse("lsn:0/3000060"), Target::Lsn(Lsn(0x0300_0060)));
        assert_eq!(parse("xid:1234"), Target::Xid(1234));
        assert_eq!(parse("xid:4294968530"), Target::Xid(1234), "the epoch is cut off");
        assert_eq!(parse("name:before migration"), Target::Name("before migration".into()));
    }

    #[test]
    fn what_is_no_target_is_a_wrong_command_line_with_one_line() {
        for text in [
            "",
            "yesterday",
            "lsn:",
            "lsn:0/0",
            "lsn:xyz",
            "xid:",
            "xid:-1",
            "xid:1",
            "name:",
            "25:00",
            "2026-13-01 00:00:00",
            "2026-11-20 14:30:00 CEST",
            "ten minutes ago",
            "2026-10-25 02:30:00",
            "2026-03-29 02:30:00",
            "99999999 years ago",
        ] {
            let error = Target::parse(text, &berlin()).unwrap_err();
            assert_eq!(error.kind(), crate::kind::Kind::Usage, "{text}");
            assert!(!error.to_string().contains('\n'));
        }
        assert!(Target::parse(&format!("name:{}", "x".repeat(64)), &berlin()).is_err());
    }
}
