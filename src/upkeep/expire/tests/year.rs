//! The reference policy over a year, every day checked against an oracle that knows the whole past.

use super::world::World;
use crate::upkeep::retention::Policy;
use jiff::Timestamp;
use std::collections::BTreeSet;
use std::time::Duration;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;
/// A Thursday, at midnight.
const BEGIN: i64 = 1_767_225_600;

fn time(seconds: i64) -> Timestamp {
    Timestamp::from_second(BEGIN + seconds).unwrap()
}

/// A backup as the oracle remembers it.
struct Taken {
    id: String,
    day: i64,
    stop: i64,
    first: u64,
}

/// Returns the days whose backups are kept on `today`, from the calendar alone: there is one each day.
fn days_kept(today: i64) -> BTreeSet<i64> {
    let date = |day: i64| time(day * DAY).to_zoned(jiff::tz::TimeZone::UTC).date();
    let mut kept: BTreeSet<i64> = (today - 29..=today).collect();
    // The newest of a week is its Sunday, or today; of a month its last day, or today.
    let sundays = (0..today).rev().filter(|day| date(*day).weekday() == jiff::civil::Weekday::Sunday);
    let ends = (0..today).rev().filter(|day| date(*day).month() != date(*day + 1).month());
    kept.extend(sundays.take(11));
    kept.extend(ends.take(11));
    kept.retain(|day| *day >= 0);
    kept
}

#[test]
fn thirty_days_twelve_weeks_twelve_months_and_a_window_of_seven_days() {
    let policy = Policy {
        keep_daily: Some(30),
        keep_weekly: Some(12),
        keep_monthly: Some(12),
        window: Some(Duration::from_secs(7 * DAY as u64)),
        ..Policy::default()
    };
    let world = World::new();
    let mut taken: Vec<Taken> = Vec::new();
    for day in 0..366 {
        for hour in 0..4 {
            // A segment every six hours; the backup at two needs the one of midnight and the one of six.
            let number = (day * 4 + hour) as u64 + 10;
            world.segment(1, number, time(day * DAY + hour * 6 * HOUR));
        }
        let (first, stop) = (day as u64 * 4 + 10, day * DAY + 2 * HOUR);
        let id = world.backup(1, first, first + 1, time(stop));
        taken.push(Taken { id, day, stop, first });
        // The newest thing in the store is the segment of 18:00, which is where the window ends.
        world.segment(1, first + 3, time(day * DAY + 18 * HOUR));
        let outcome = world.expire(policy, time(day * DAY + 23 * HOUR));
        assert!(outcome.failed.is_none() && outcome.refused == 0, "{outcome:?}");

        let days = days_kept(day);
        let window = day * DAY + 18 * HOUR - 7 * DAY;
        let expected: BTreeSet<String> =
            taken.iter().filter(|b| days.contains(&b.day)).map(|b| b.id.clone()).collect();
        assert_eq!(world.backups(), expected, "day {day}");
        let anchor = taken.iter().rev().find(|backup| backup.stop <= window);
        let cut = anchor.map_or(0, |backup| backup.first);
        let needed = |number: u64| {
            let of_backup = |b: &Taken| days.contains(&b.day) && (number == b.first || number == b.first + 1);
            number >= cut || taken.iter().any(of_backup)
        };
        for number in 10..=first + 3 {
            assert_eq!(world.has_segment(1, number), needed(number), "day {day}, segment {number}");
        }
    }
    // 30 days, 12 weeks of which 5 are in them, 12 months of which 2 are in them, less what is both.
    assert!((40..=50).contains(&world.backups().len()), "{}", world.backups().len());
}
