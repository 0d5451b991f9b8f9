use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;

fn at(text: &str) -> Timestamp {
    text.parse().unwrap()
}

fn backup(time: &str) -> Candidate {
    backup_on(time, 1)
}

fn backup_on(time: &str, timeline: u32) -> Candidate {
    Candidate {
        id: format!("{time}-{timeline}"),
        branch: Branch { sysid: SystemIdentifier(7), timeline: TimelineId(timeline) },
        stop_time: at(time),
        usable: true,
        clean: true,
        pinned: false,
    }
}

/// Returns the reasons in words, none as an empty text.
fn words(policy: &Policy, candidates: &[Candidate], now: &str) -> Vec<String> {
    let text = |reasons: BTreeSet<Reason>| reasons.iter().map(ToString::to_string).collect::<Vec<_>>();
    decide(policy, candidates, at(now)).into_iter().map(|reasons| text(reasons).join(", ")).collect()
}

#[test]
fn each_rule_keeps_the_newest_of_its_last_periods_that_have_a_backup() {
    let times = [
        "2024-12-30T02:00:00Z",
        "2026-01-31T02:00:00Z",
        "2026-11-02T02:00:00Z",
        "2026-11-19T02:00:00Z",
        "2026-11-20T02:00:00Z",
        "2026-11-20T14:00:00Z",
    ];
    let candidates: Vec<Candidate> = times.into_iter().map(backup).collect();
    let policy = Policy { keep_daily: Some(2), ..Policy::default() };
    let now = "2026-11-20T15:00:00Z";
    assert_eq!(
        words(&policy, &candidates, now),
        ["", "", "", "daily 2026-11-19", "", "daily 2026-11-20, last good backup"]
    );
    let policy = Policy { keep_weekly: Some(3), keep_yearly: Some(5), ..Policy::default() };
    assert_eq!(
        words(&policy, &candidates, now),
        [
            "yearly 2024",
            "weekly 2026-W05",
            "weekly 2026-W45",
            "",
            "",
            "weekly 2026-W47, yearly 2026, last good backup"
        ]
    );
    let policy = Policy {
        keep_monthly: Some(2),
        keep_last: Some(3),
        window: Some(Duration::from_secs(86400)),
        ..Policy::default()
    };
    assert_eq!(
        words(&policy, &candidates, now),
        [
            "",
            "monthly 2026-01",
            "",
            "last",
            "last, window",
            "last, monthly 2026-11, window, last good backup"
        ]
    );
    assert_eq!(policy.to_string(), "3 last, 2 monthly, window 1day");
}

#[test]
fn the_last_good_backup_stays_whatever_the_policy_says() {
    let nothing = Policy { keep_last: Some(0), ..Policy::default() };
    let mut candidates = vec![
        backup("2026-11-17T02:00:00Z"),
        backup("2026-11-18T02:00:00Z"),
        backup("2026-11-19T02:00:00Z"),
        backup("2026-11-20T02:00:00Z"),
    ];
    candidates[3].usable = false;
    candidates[2].clean = false;
    let kept = words(&nothing, &candidates, "2026-11-21T02:00:00Z");
    assert_eq!(kept, ["", "last good backup", "last good backup", ""]);
}

#[test]
fn what_is_not_usable_takes_no_others_place_and_waits_for_sync() {
    let policy = Policy { keep_last: Some(1), ..Policy::default() };
    let mut candidates =
        [backup("2026-11-18T02:00:00Z"), backup("2026-11-19T02:00:00Z"), backup("2026-11-20T02:00:00Z")];
    candidates[2].usable = false;
    assert_eq!(words(&policy, &candidates, "2026-11-21T02:00:00Z"), ["", "last, last good backup", "last"]);
}

#[test]
fn branches_that_live_side_by_side_do_not_take_each_others_place() {
    let policy = Policy { keep_daily: Some(1), ..Policy::default() };
    let candidates = [backup_on("2026-11-20T02:00:00Z", 1), backup_on("2026-11-20T03:00:00Z", 2)];
    let kept = words(&policy, &candidates, "2026-11-21T02:00:00Z");
    assert_eq!(kept, ["daily 2026-11-20", "daily 2026-11-20, last good backup"]);
}

#[test]
fn a_system_from_before_an_upgrade_ages_out_by_the_backups_of_the_new_one() {
    let policy = Policy { keep_daily: Some(2), ..Policy::default() };
    let mut candidates =
        [backup("2026-11-18T02:00:00Z"), backup("2026-11-19T02:00:00Z"), backup("2026-11-20T02:00:00Z")];
    candidates[0].branch.sysid = SystemIdentifier(6);
    assert_eq!(words(&policy, &candidates, "2026-11-21T00:00:00Z")[0], "");
    // As long as the new one has nothing usable, the old one's last stays.
    candidates[1].usable = false;
    candidates[2].usable = false;
    assert_eq!(words(&policy, &candidates, "2026-11-21T00:00:00Z")[0], "daily 2026-11-18, last good backup");
}

#[test]
fn a_pin_keeps_and_a_backup_from_the_future_takes_no_others_place() {
    let policy = Policy { keep_daily: Some(1), ..Policy::default() };
    let mut candidates =
        [backup("2026-10-01T02:00:00Z"), backup("2026-11-20T02:00:00Z"), backup("2036-01-01T00:00:00Z")];
    candidates[0].pinned = true;
    assert_eq!(
        words(&policy, &candidates, "2026-11-21T02:00:00Z"),
        ["pinned", "daily 2026-11-20, last good backup", "last good backup, its time is in the future"]
    );
}

#[test]
fn a_clock_that_is_wrong_ages_nothing() {
    let policy = Policy { keep_daily: Some(3), window: Some(Duration::from_hours(48)), ..Policy::default() };
    let candidates: Vec<Candidate> =
        (10..20).map(|day| backup(&format!("2026-11-{day}T02:00:00Z"))).collect();
    let newest_stored = Some(at("2026-11-19T02:00:10Z"));
    let kept = |now: &str| {
        let reference = reference_time(at(now), newest_stored);
        decide(&policy, &candidates, reference).iter().filter(|reasons| !reasons.is_empty()).count()
    };
    assert_eq!(kept("2026-11-19T03:00:00Z"), 3);
    assert_eq!(kept("2090-01-01T00:00:00Z"), 3, "far ahead");
    assert_eq!(kept("1970-01-01T00:00:00Z"), 10, "back before everything");
}

#[test]
fn what_was_stored_within_a_whole_second_is_not_after_it() {
    let (now, stored) = (at("2026-11-19T02:00:20Z"), at("2026-11-19T02:00:10Z"));
    assert_eq!(reference_time(now, Some(stored)), at("2026-11-19T02:00:11Z"), "stores tell whole seconds");
    assert_eq!(reference_time(stored, Some(stored)), stored, "never later than now");
}

/// The rules said in another way: a backup is kept by a rule if nothing later is of its period, and less than so many
/// later periods have a backup.
fn oracle(policy: &Policy, times: &[Timestamp], start: Option<Timestamp>) -> Vec<bool> {
    let label = |time: &Timestamp, format: &str| time.strftime(format).to_string();
    let rules = [
        (policy.keep_daily, "%Y-%m-%d"),
        (policy.keep_weekly, "%G-%V"),
        (policy.keep_monthly, "%Y-%m"),
        (policy.keep_yearly, "%Y"),
    ];
    let by_rule = |time: &Timestamp| {
        rules.iter().any(|(count, format)| {
            let mine = label(time, format);
            let later: BTreeSet<String> =
                times.iter().filter(|other| *other > time).map(|other| label(other, format)).collect();
            !later.contains(&mine) && later.len() < count.unwrap_or(0) as usize
        })
    };
    let later = |time: &Timestamp| times.iter().filter(|other| *other > time).count();
    times
        .iter()
        .map(|time| {
            by_rule(time)
                || later(time) < policy.keep_last.unwrap_or(0) as usize
                || start.is_some_and(|start| *time >= start)
                || later(time) == 0
        })
        .collect()
}

proptest! {
    #[test]
    fn any_policy_over_any_backups_agrees_with_the_oracle(
        minutes in proptest::collection::btree_set(0i64..2_000_000, 0..60),
        counts in proptest::array::uniform5(proptest::option::of(0u32..6)),
        window in proptest::option::of(0u64..30 * 86400),
    ) {
        let times: Vec<Timestamp> =
            minutes.iter().map(|m| Timestamp::from_second(1_600_000_000 + m * 60).unwrap()).collect();
        let [keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly] = counts;
        let window = window.map(Duration::from_secs);
        let policy = Policy { keep_last, keep_daily, keep_weekly, keep_monthly, keep_yearly, window };
        let candidates: Vec<Candidate> = times.iter().map(|time| backup(&time.to_string())).collect();
        let reference = times.last().copied().unwrap_or(Timestamp::UNIX_EPOCH);
        let kept: Vec<bool> =
            decide(&policy, &candidates, reference).iter().map(|reasons| !reasons.is_empty()).collect();
        prop_assert_eq!(kept, oracle(&policy, &times, policy.window_start(reference)));
    }

    #[test]
    fn more_time_without_new_backups_removes_nothing(
        minutes in proptest::collection::btree_set(0i64..500_000, 1..30),
        later in 0i64..100_000_000,
    ) {
        let policy = Policy { keep_daily: Some(3), keep_monthly: Some(2), ..Policy::default() };
        let time = |m: &i64| Timestamp::from_second(1_600_000_000 + m * 60).unwrap();
        let candidates: Vec<Candidate> = minutes.iter().map(|m| backup(&time(m).to_string())).collect();
        let last = time(minutes.last().unwrap());
        let after = last.checked_add(SignedDuration::from_secs(later)).unwrap();
        prop_assert_eq!(decide(&policy, &candidates, last), decide(&policy, &candidates, after));
    }
}

#[test]
fn the_reasons_of_one_day_are_told_apart() {
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    let policy =
        Policy { keep_daily: Some(30), keep_weekly: Some(12), keep_monthly: Some(12), ..Policy::default() };
    let candidates: Vec<Candidate> =
        (1..=28).map(|day| backup(&format!("2026-02-{day:02}T02:00:00Z"))).collect();
    for text in words(&policy, &candidates, "2026-02-28T03:00:00Z") {
        *seen.entry(text.split(' ').next().unwrap_or_default().to_owned()).or_default() += 1;
    }
    assert_eq!(seen, BTreeMap::from([("daily".to_owned(), 28)]));
}
