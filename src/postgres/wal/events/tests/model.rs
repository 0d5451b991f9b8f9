//! Transactions at random, against a model that sees all of the log at once.

use std::collections::HashMap;

use super::*;

#[derive(Debug, Clone)]
enum Act {
    Delete {
        xid: u32,
        relation: u32,
        rows: u32,
    },
    Commit {
        xid: u32,
        subxids: Vec<u32>,
    },
    Abort {
        xid: u32,
    },
    /// Goes on shortly before the next segment.
    Fill {
        left: usize,
    },
}

/// A few transactions, each with subtransactions 100 above it.
fn act() -> impl Strategy<Value = Act> {
    let top = 700..706u32;
    let any_xid = (top.clone(), 0..3u32).prop_map(|(top, sub)| if sub == 0 { top } else { top + 100 * sub });
    prop_oneof![
        6 => (any_xid.clone(), 20_000..20_003u32, prop_oneof![Just(3u32), Just(400), Just(1100)])
            .prop_map(|(xid, relation, rows)| Act::Delete { xid, relation, rows }),
        2 => (top, any::<[bool; 2]>()).prop_map(|(xid, subs)| Act::Commit {
            xid,
            subxids: (1..3).zip(subs).filter(|(_, is)| *is).map(|(sub, _)| xid + 100 * sub).collect(),
        }),
        1 => any_xid.prop_map(|xid| Act::Abort { xid }),
        2 => (0..30usize).prop_map(|left| Act::Fill { left: 8 * left }),
    ]
}

/// Gives numbers to transactions; none is used again.
#[derive(Default)]
struct Numbers {
    of: HashMap<u32, u32>,
    last: u32,
}

impl Numbers {
    fn of(&mut self, xid: u32) -> u32 {
        *self.of.entry(xid).or_insert_with(|| {
            self.last += 1;
            1000 + self.last
        })
    }

    fn end(&mut self, xid: u32) -> u32 {
        let number = self.of(xid);
        self.of.remove(&xid);
        number
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn segments_by_themselves_tell_what_the_whole_log_tells(acts in prop::collection::vec(act(), 1..40)) {
        let mut wal = Writer::new();
        let mut open: HashMap<(u32, u32), u64> = HashMap::new();
        let mut numbers = Numbers::default();
        let mut expected = Vec::new();
        for act in acts {
            match act {
                Act::Delete { xid, relation, rows } => {
                    let xid = numbers.of(xid);
                    (0..rows).for_each(|_| delete(&mut wal, xid, relation));
                    *open.entry((xid, relation)).or_default() += u64::from(rows);
                }
                Act::Commit { xid, subxids } => {
                    let xid = numbers.end(xid);
                    let subxids: Vec<u32> = subxids.into_iter().map(|xid| numbers.end(xid)).collect();
                    let lsn = end(&mut wal, COMMIT, xid, 5, &subxids, &[]);
                    for relation in 20_000..20_003 {
                        let of = |xid: &u32| open.remove(&(*xid, relation)).unwrap_or(0);
                        let rows: u64 = std::iter::once(&xid).chain(&subxids).map(of).sum();
                        if rows >= 1000 {
                            expected.push((lsn, xid, relation, rows));
                        }
                    }
                }
                Act::Abort { xid } => {
                    let xid = numbers.end(xid);
                    end(&mut wal, ABORT, xid, 5, &[], &[]);
                    open.retain(|(of, _), _| *of != xid);
                }
                Act::Fill { left } => {
                    while wal.room() < left + 32 {
                        wal.main_data(HEAP, 0, 9, &[0; 60]);
                    }
                    wal.fill_segment(left);
                }
            }
        }
        let mut found: Vec<_> = each_by_itself(&wal.segments())
            .iter()
            .flat_map(|event| event.relations.iter().map(|relation| (event.lsn, event.xid, relation.file.relation, relation.rows)))
            .collect();
        found.sort_unstable();
        prop_assert_eq!(found, expected);
        let [mut apart, mut at_once] = [each_by_itself(&wal.segments()), in_one_pass(&wal.segments())];
        for event in apart.iter_mut().chain(&mut at_once) {
            event.relations.sort_by_key(|relation| relation.file);
            event.relations.iter_mut().for_each(|relation| relation.may_be_no_table = false);
        }
        prop_assert_eq!(apart, at_once);
    }
}
