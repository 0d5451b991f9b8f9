//! Sets of WAL segments, by timeline and number.

use super::TimelineId;
use std::collections::BTreeMap;

/// How many segments share a chunk.
pub const CHUNK: u64 = 256;
const WORDS: usize = (CHUNK / 64) as usize;

/// Which segments of a chunk are in a set: bit n is the segment number `chunk * CHUNK + n`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ChunkBits([u64; WORDS]);

impl ChunkBits {
    /// Adds the segment with this number; returns whether it was not in it.
    pub fn insert(&mut self, number: u64) -> bool {
        let (word, bit) = place(number);
        let is_new = self.0[word] & bit == 0;
        self.0[word] |= bit;
        is_new
    }

    /// Removes the segment with this number; returns whether it was in it.
    pub fn remove(&mut self, number: u64) -> bool {
        let (word, bit) = place(number);
        let was_in = self.0[word] & bit != 0;
        self.0[word] &= !bit;
        was_in
    }

    /// Returns whether the segment with this number is in it.
    pub fn contains(&self, number: u64) -> bool {
        let (word, bit) = place(number);
        self.0[word] & bit != 0
    }

    /// Returns how many there are.
    pub fn count(&self) -> u64 {
        self.0.iter().map(|word| u64::from(word.count_ones())).sum()
    }

    /// Returns the bits as bytes, the lowest number first.
    pub fn to_bytes(self) -> Vec<u8> {
        self.0.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    /// Reads what [`ChunkBits::to_bytes`] returned; none for another length.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        if bytes.len() != WORDS * 8 {
            return None;
        }
        let mut bits = Self::default();
        for (word, bytes) in bits.0.iter_mut().zip(bytes.chunks_exact(8)) {
            *word = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(bits)
    }

    fn without(&self, other: Option<&Self>) -> Self {
        let mut rest = *self;
        if let Some(other) = other {
            rest.0.iter_mut().zip(other.0).for_each(|(word, other)| *word &= !other);
        }
        rest
    }

    fn numbers(self, chunk: u64) -> impl Iterator<Item = u64> {
        (chunk * CHUNK..(chunk + 1) * CHUNK).filter(move |number| self.contains(*number))
    }
}

fn place(number: u64) -> (usize, u64) {
    let within = number % CHUNK;
    ((within / 64) as usize, 1 << (within % 64))
}

/// Segments of one size, of any number of timelines. Takes an eighth of a byte for each where they are dense.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SegmentSet {
    timelines: BTreeMap<TimelineId, BTreeMap<u64, ChunkBits>>,
}

impl SegmentSet {
    /// Adds the segment with this number.
    pub fn insert(&mut self, timeline: TimelineId, number: u64) {
        self.timelines.entry(timeline).or_default().entry(number / CHUNK).or_default().insert(number);
    }

    /// Adds the segments of a chunk.
    pub fn insert_chunk(&mut self, timeline: TimelineId, chunk: u64, bits: ChunkBits) {
        if bits == ChunkBits::default() {
            return;
        }
        let held = self.timelines.entry(timeline).or_default().entry(chunk).or_default();
        held.0.iter_mut().zip(bits.0).for_each(|(word, more)| *word |= more);
    }

    /// Adds everything that is in `other`.
    pub fn extend(&mut self, other: &Self) {
        for (timeline, chunks) in &other.timelines {
            for (chunk, bits) in chunks {
                self.insert_chunk(*timeline, *chunk, *bits);
            }
        }
    }

    /// Returns whether the segment with this number is in it.
    pub fn contains(&self, timeline: TimelineId, number: u64) -> bool {
        let chunk = self.timelines.get(&timeline).and_then(|chunks| chunks.get(&(number / CHUNK)));
        chunk.is_some_and(|bits| bits.contains(number))
    }

    /// Returns how many there are.
    pub fn len(&self) -> u64 {
        self.timelines.values().flat_map(BTreeMap::values).map(ChunkBits::count).sum()
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the timelines of which there are any, lowest first.
    pub fn timelines(&self) -> impl DoubleEndedIterator<Item = TimelineId> {
        self.timelines.keys().copied()
    }

    /// Returns the highest number on a timeline.
    pub fn last(&self, timeline: TimelineId) -> Option<u64> {
        let (chunk, bits) = self.timelines.get(&timeline)?.last_key_value()?;
        bits.numbers(*chunk).last()
    }

    /// Returns the lowest number from `from` on that is not in it.
    pub fn first_missing(&self, timeline: TimelineId, from: u64) -> u64 {
        let mut number = from;
        let Some(chunks) = self.timelines.get(&timeline) else { return number };
        for (chunk, bits) in chunks.range(from / CHUNK..) {
            if *chunk != number / CHUNK {
                return number;
            }
            while number / CHUNK == *chunk {
                if !bits.contains(number) {
                    return number;
                }
                number += 1;
            }
        }
        number
    }

    /// Returns the segments that are in it and not in `other`, in order.
    pub fn difference<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (TimelineId, u64)> + 'a {
        self.rest(other)
            .flat_map(|(timeline, chunk, bits)| bits.numbers(chunk).map(move |number| (timeline, number)))
    }

    /// Returns how many segments are in it and not in `other`.
    pub fn difference_len(&self, other: &Self) -> u64 {
        self.rest(other).map(|(_, _, bits)| bits.count()).sum()
    }

    fn rest<'a>(&'a self, other: &'a Self) -> impl Iterator<Item = (TimelineId, u64, ChunkBits)> + 'a {
        self.timelines.iter().flat_map(move |(timeline, chunks)| {
            let theirs = other.timelines.get(timeline);
            chunks.iter().map(move |(chunk, bits)| {
                (*timeline, *chunk, bits.without(theirs.and_then(|theirs| theirs.get(chunk))))
            })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    type Model = BTreeSet<(TimelineId, u64)>;

    fn set(model: &Model) -> SegmentSet {
        let mut set = SegmentSet::default();
        for (timeline, number) in model {
            set.insert(*timeline, *number);
        }
        set
    }

    fn model() -> impl Strategy<Value = Model> {
        let one = (1u32..4, prop_oneof![0u64..600, 100_000u64..100_010]);
        proptest::collection::btree_set(
            one.prop_map(|(timeline, number)| (TimelineId(timeline), number)),
            0..400,
        )
    }

    proptest! {
        #[test]
        fn it_answers_as_a_set_of_names_would(a in model(), b in model(), from in 0u64..700) {
            let (ours, theirs) = (set(&a), set(&b));
            prop_assert_eq!(ours.len(), a.len() as u64);
            prop_assert_eq!(ours.is_empty(), a.is_empty());
            let rest: Vec<_> = a.difference(&b).copied().collect();
            prop_assert_eq!(ours.difference(&theirs).collect::<Vec<_>>(), rest.clone());
            prop_assert_eq!(ours.difference_len(&theirs), rest.len() as u64);
            let mut both = ours.clone();
            both.extend(&theirs);
            prop_assert_eq!(both, set(&a.union(&b).copied().collect()));
            for timeline in [TimelineId(1), TimelineId(2), TimelineId(9)] {
                let missing = (from..200_000).find(|number| !a.contains(&(timeline, *number))).unwrap();
                prop_assert_eq!(ours.first_missing(timeline, from), missing);
                prop_assert!(!ours.contains(timeline, missing));
                let last = a.iter().rev().find(|(of, _)| *of == timeline).map(|(_, number)| *number);
                prop_assert_eq!(ours.last(timeline), last);
            }
        }
    }

    #[test]
    fn a_run_over_the_edge_of_a_chunk_is_one_run() {
        let set = set(&(200..600).map(|number| (TimelineId(1), number)).collect());
        assert_eq!(set.first_missing(TimelineId(1), 200), 600);
        let whole = super::tests::set(&(0..512).map(|number| (TimelineId(1), number)).collect());
        assert_eq!(whole.first_missing(TimelineId(1), 0), 512);
        assert_eq!(whole.timelines().collect::<Vec<_>>(), [TimelineId(1)]);
    }

    #[test]
    fn bits_survive_as_bytes() {
        let mut bits = ChunkBits::default();
        assert!(bits.insert(511) && !bits.insert(511) && bits.insert(256 + 64));
        assert_eq!(ChunkBits::from_bytes(&bits.to_bytes()), Some(bits));
        assert_eq!(ChunkBits::from_bytes(&[1]), None);
        assert!(bits.remove(511) && !bits.remove(511));
        assert_eq!(bits.count(), 1);
    }
}
