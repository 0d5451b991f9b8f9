//! The server's clock readings.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ParseError;

/// A moment as the server writes it down: microseconds since 2000-01-01 00:00:00 UTC (`TimestampTz`).
///
/// Every `i64` is one, but text and [`Timestamp`] know only the years -9999 to 9999: what lies outside (possible in
/// damaged WAL only) is shown as the nearest moment inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PgTimestamp(pub i64);

/// The Unix time of 2000-01-01, in microseconds.
const EPOCH_MICROS: i64 = 946_684_800_000_000;

impl From<Timestamp> for PgTimestamp {
    /// Returns the last microsecond that is not after the moment.
    fn from(moment: Timestamp) -> Self {
        let micros = moment.as_nanosecond().div_euclid(1000) - i128::from(EPOCH_MICROS);
        Self(micros as i64)
    }
}

impl From<PgTimestamp> for Timestamp {
    fn from(time: PgTimestamp) -> Self {
        let outside = if time.0 < 0 { Self::MIN } else { Self::MAX };
        time.0
            .checked_add(EPOCH_MICROS)
            .and_then(|micros| Self::from_microsecond(micros).ok())
            .unwrap_or(outside)
    }
}

impl PgTimestamp {
    /// Returns the moment so many seconds after 1970-01-01 UTC (`pg_time_t`, as control files have it).
    pub fn from_unix_seconds(seconds: i64) -> Self {
        Self(seconds.saturating_mul(1_000_000).saturating_sub(EPOCH_MICROS))
    }
}

impl fmt::Display for PgTimestamp {
    /// Prints UTC with a numeric offset, which every server reads alike whatever its `timezone` is:
    /// `2026-11-20 13:30:00.123456+00`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", Timestamp::from(*self).strftime("%Y-%m-%d %H:%M:%S.%6f+00"))
    }
}

impl FromStr for PgTimestamp {
    type Err = ParseError;

    /// Reads RFC 3339 and what [`PgTimestamp`] prints; an offset is required.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let moment: Timestamp = text.parse().map_err(|_| {
            ParseError::text("timestamp", text, "a date, a time and an offset as in 2026-11-20T13:30:00Z")
        })?;
        Ok(moment.into())
    }
}

impl Serialize for PgTimestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&Timestamp::from(*self))
    }
}

impl<'de> Deserialize<'de> for PgTimestamp {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prints_what_every_server_reads_alike() {
        assert_eq!(PgTimestamp(0).to_string(), "2000-01-01 00:00:00.000000+00");
        let time: PgTimestamp = "2026-11-20T14:30:00.123456789+01:00".parse().unwrap();
        assert_eq!(time.to_string(), "2026-11-20 13:30:00.123456+00");
        assert_eq!(serde_json::to_string(&time).unwrap(), "\"2026-11-20T13:30:00.123456Z\"");
        assert_eq!(PgTimestamp::from_unix_seconds(946_684_801), PgTimestamp(1_000_000));
    }

    #[test]
    fn an_offset_is_required() {
        assert!("2026-11-20 13:30:00".parse::<PgTimestamp>().is_err());
        assert!("-infinity".parse::<PgTimestamp>().is_err());
    }

    #[test]
    fn nanoseconds_round_down_before_the_epoch_too() {
        let moment = Timestamp::from_nanosecond(i128::from(EPOCH_MICROS) * 1000 - 1).unwrap();
        assert_eq!(PgTimestamp::from(moment), PgTimestamp(-1));
    }

    proptest! {
        #[test]
        fn round_trips(micros in -63_000_000_000_000_000i64..250_000_000_000_000_000) {
            let time = PgTimestamp(micros);
            prop_assert_eq!(PgTimestamp::from(Timestamp::from(time)), time);
            prop_assert_eq!(time.to_string().parse(), Ok(time));
            let json = serde_json::to_string(&time).unwrap();
            prop_assert_eq!(serde_json::from_str::<PgTimestamp>(&json).unwrap(), time);
        }

        #[test]
        fn never_panics(micros: i64) {
            let _ = (PgTimestamp(micros).to_string(), PgTimestamp::from_unix_seconds(micros));
        }
    }
}
