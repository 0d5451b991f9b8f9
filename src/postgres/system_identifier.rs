//! The number that tells clusters apart.

use std::fmt;
use std::str::FromStr;

use super::ParseError;

/// The system identifier that `initdb` gives a cluster and that every copy of it keeps; it stands in the control
/// file and at the start of every WAL segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SystemIdentifier(pub u64);

impl fmt::Display for SystemIdentifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl FromStr for SystemIdentifier {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits
            .then(|| text.parse().ok())
            .flatten()
            .map(Self)
            .ok_or_else(|| ParseError::text("system identifier", text, "a decimal number of 64 bits"))
    }
}

super::serde_text::serde_as_text!(SystemIdentifier);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn refuses_what_is_not_a_number() {
        for bad in ["", "+1", "-1", "1 ", "0x1", "18446744073709551616"] {
            assert!(bad.parse::<SystemIdentifier>().is_err(), "{bad:?}");
        }
    }

    proptest! {
        #[test]
        fn round_trips(value: u64) {
            let id = SystemIdentifier(value);
            prop_assert_eq!(id.to_string().parse(), Ok(id));
            prop_assert_eq!(serde_json::to_string(&id).unwrap(), format!("\"{value}\""));
        }
    }
}
