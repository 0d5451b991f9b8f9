//! Clocks: those of the server and of the stores against this host's. Zones do not matter.

use super::Item;
use crate::kind::Error;
use jiff::Timestamp;

/// How far a clock may be off, in seconds: more, and times in status, events and recovery targets mislead.
const TOLERATED: f64 = 60.0;

/// Returns the item for a clock that said `theirs` at a moment between `from` and `to` by this host's. `resolution` is that of
/// the answer, in seconds.
pub(super) fn item(
    name: &str,
    whose: &str,
    theirs: Timestamp,
    (from, to): (Timestamp, Timestamp),
    resolution: f64,
) -> Item {
    let off = off_by(theirs, (from, to), resolution);
    if off.abs() <= TOLERATED {
        let found = if off.abs() < 1.0 {
            format!("{whose} agrees with this host's")
        } else {
            format!("{whose} is {:.0} s {} this host's", off.abs(), ahead_or_behind(off))
        };
        return Item::ok(name, found);
    }
    let message = format!("{whose} is {:.0} s {} this host's", off.abs(), ahead_or_behind(off));
    let hint = "one of them is wrong: let both follow an NTP server; times of commits, backups and recovery targets mislead \
                until then";
    Item::failed(name, &Error::other(message).with_hint(hint))
}

fn ahead_or_behind(off: f64) -> &'static str {
    if off > 0.0 { "ahead of" } else { "behind" }
}

/// Returns by how many seconds a clock is ahead, at least.
fn off_by(theirs: Timestamp, (from, to): (Timestamp, Timestamp), resolution: f64) -> f64 {
    let seconds = |later: Timestamp, earlier: Timestamp| later.duration_since(earlier).as_secs_f64();
    let (early, late) = (seconds(from, theirs) - resolution, seconds(theirs, to));
    if late > 0.0 {
        late
    } else if early > 0.0 {
        -early
    } else {
        0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::upkeep::check::State;

    #[test]
    fn a_clock_is_off_by_what_no_moment_of_the_span_explains() {
        let at = |second: i64| Timestamp::from_second(1_000_000 + second).unwrap();
        let judge = |theirs, resolution| item("clock", "it", at(theirs), (at(0), at(10)), resolution);
        for within in [-60, -1, 0, 5, 10, 70] {
            assert_eq!(judge(within, 0.0).state, State::Ok, "{within}");
        }
        assert_eq!(judge(-61, 1.0).state, State::Ok, "a second of what it says is cut off");
        let behind = judge(-100, 0.0);
        assert_eq!((behind.state, behind.found.as_str()), (State::Failed, "it is 100 s behind this host's"));
        assert!(judge(3610, 0.0).found.contains("3600 s ahead of"));
    }
}
