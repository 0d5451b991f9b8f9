//! Positions in the write-ahead log.

use std::fmt;
use std::ops::{Add, Sub};
use std::str::FromStr;

use super::ParseError;

/// A log sequence number: the position of a byte in the write-ahead log (`XLogRecPtr`).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl Lsn {
    /// The LSN at which nothing ever stands (`InvalidXLogRecPtr`).
    pub const INVALID: Self = Self(0);

    /// Returns whether this is anything but [`Lsn::INVALID`].
    pub fn is_valid(self) -> bool {
        self != Self::INVALID
    }
}

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl fmt::Debug for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Lsn {
    type Err = ParseError;

    /// Reads what `pg_lsn_in` reads: two hexadecimal numbers of one to eight digits, of either case.
    fn from_str(text: &str) -> Result<Self, ParseError> {
        let half = |digits: &str| -> Option<u64> {
            let valid = (1..=8).contains(&digits.len()) && digits.bytes().all(|b| b.is_ascii_hexdigit());
            valid.then(|| u64::from_str_radix(digits, 16).ok()).flatten()
        };
        text.split_once('/').and_then(|(high, low)| Some(Self(half(high)? << 32 | half(low)?))).ok_or_else(
            || ParseError::text("log sequence number", text, "two hexadecimal numbers as in 0/3000060"),
        )
    }
}

super::serde_text::serde_as_text!(Lsn);

impl Add<u64> for Lsn {
    type Output = Self;

    /// Returns the position so many bytes later, at most the last one there is: positions come from bytes that
    /// may be garbage, and must not panic.
    fn add(self, bytes: u64) -> Self {
        Self(self.0.saturating_add(bytes))
    }
}

impl Sub for Lsn {
    type Output = u64;

    /// Returns the bytes from `earlier` to `self`, zero if `earlier` is the later one.
    fn sub(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn prints_as_the_server_does() {
        assert_eq!(Lsn(0x0300_0060).to_string(), "0/3000060");
        assert_eq!(format!("{:?}", Lsn(0x16_B374_D848)), "16/B374D848");
        assert_eq!(Lsn::INVALID.to_string(), "0/0");
        assert!(!Lsn::default().is_valid());
    }

    #[test]
    fn reads_either_case_and_nothing_else() {
        assert_eq!("16/b374d848".parse(), Ok(Lsn(0x16_B374_D848)));
        assert_eq!("16/B374D848".parse(), Ok(Lsn(0x16_B374_D848)));
        for bad in ["", "/", "0/", "/0", "0", "0/0/0", "+1/0", "0/+1", " 0/0", "0/0 ", "0/123456789", "0x1/0"]
        {
            assert!(bad.parse::<Lsn>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn arithmetic_saturates() {
        assert_eq!(Lsn(u64::MAX) + 1, Lsn(u64::MAX));
        assert_eq!(Lsn(5) - Lsn(7), 0);
        assert_eq!(Lsn(7) - Lsn(5), 2);
    }

    proptest! {
        #[test]
        fn round_trips(value: u64) {
            let lsn = Lsn(value);
            prop_assert_eq!(lsn.to_string().parse(), Ok(lsn));
            prop_assert_eq!(serde_json::from_str::<Lsn>(&serde_json::to_string(&lsn).unwrap()).unwrap(), lsn);
        }

        #[test]
        fn never_panics(text: String) {
            let _ = text.parse::<Lsn>();
        }
    }
}
