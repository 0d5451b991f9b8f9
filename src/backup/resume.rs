//! Continuing a backup that broke off: which of its pieces are still what building them anew would give.
//!
//! The backup begins anew on the server and keeps its id and the good pieces, under their names. A piece is good if it is
//! stored and if every file and directory in it is unchanged; of pieces that share a file all are good or none. What is
//! left of the tar stream is therefore whole entries, and the pieces that follow under higher numbers go on with it.

use super::journal::{BrokenOff, Journal, JournaledPiece};
use super::pieces::PartDone;
use super::record::Recorder;
use super::unchanged::is_same_directory;
use crate::kind::Result;
use crate::repository::backup::StoredObject;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// How far above all known numbers new pieces begin: as many may have been under way when the attempt ended, and arrive
/// yet.
const HEADROOM: u32 = 1000;

/// Paths that are in the backup already, each as the beginning of its SHA-256: a million of them must fit in memory.
#[derive(Debug, Default)]
pub struct Paths(HashSet<[u8; 16]>);

impl Paths {
    fn key(path: &Path) -> [u8; 16] {
        let mut key = [0; 16];
        key.copy_from_slice(&Sha256::digest(path.as_os_str().as_bytes())[..16]);
        key
    }

    fn insert(&mut self, path: &Path) {
        self.0.insert(Self::key(path));
    }

    /// Returns whether the path is among them.
    pub fn contains(&self, path: &Path) -> bool {
        !self.0.is_empty() && self.0.contains(&Self::key(path))
    }
}

/// What is known of a piece before it is decided.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Candidate {
    object: StoredObject,
    /// Whether its content is as it would be now.
    good: bool,
    /// Whether it begins within a file.
    continues: bool,
    /// Whether a file goes on in the next piece.
    goes_on: bool,
}

/// The pieces that stay.
#[derive(Debug, Default)]
pub struct Kept {
    /// The objects, in the order of their numbers.
    pub objects: Vec<StoredObject>,
    /// Their place in that order, by their number.
    positions: BTreeMap<u32, u32>,
    /// The number of the first new piece.
    pub first_free: u32,
    /// The number of the first new item.
    pub first_item: u64,
    /// The pieces that the journal knows.
    pub known: usize,
}

/// Decides which pieces of the earlier attempt stay. `present` are the objects that some repository holds, by name, with
/// their sizes; `data_dir` is looked at as it is now, right after the checkpoint with which the new backup begins.
pub fn choose(earlier: &BrokenOff, data_dir: &Path, present: &HashMap<String, u64>) -> Result<Kept> {
    let mut candidates = BTreeMap::new();
    let (mut first_free, mut first_item) = (0, 0);
    earlier.pieces(&mut |piece| {
        first_free = first_free.max(piece.number + 1);
        first_item = piece.parts.iter().map(|part| part.item.number + 1).fold(first_item, u64::max);
        candidates.insert(piece.number, judge(piece, data_dir, present));
        Ok(())
    })?;
    let stored = present.keys().filter_map(|name| piece_number(name)).max();
    first_free = first_free.max(stored.map_or(0, |number| number + 1)) + HEADROOM;
    let known = candidates.len();
    let mut kept = Kept { first_free, first_item, known, ..Kept::default() };
    for (number, object) in closed_chains(candidates) {
        kept.positions.insert(number, kept.objects.len() as u32);
        kept.objects.push(object);
    }
    Ok(kept)
}

fn judge(piece: JournaledPiece, data_dir: &Path, present: &HashMap<String, u64>) -> Candidate {
    let is_same = |part: &PartDone| {
        let path = data_dir.join(&part.item.path);
        if part.item.directory {
            is_same_directory(&path, part.item.attributes)
        } else {
            part.item.identity.is_some_and(|identity| identity.is_at(&path))
        }
    };
    Candidate {
        good: present.get(&piece.object.name) == Some(&piece.object.size) && piece.parts.iter().all(is_same),
        continues: piece.parts.first().is_some_and(|part| part.index > 0),
        goes_on: piece.parts.last().is_some_and(|part| !part.last),
        object: piece.object,
    }
}

/// Returns the good pieces without those that share a file with one that is not good.
fn closed_chains(candidates: BTreeMap<u32, Candidate>) -> Vec<(u32, StoredObject)> {
    let mut kept = Vec::new();
    let mut chain: Vec<(u32, StoredObject)> = Vec::new();
    for (number, piece) in candidates {
        let follows = chain.last().is_some_and(|(last, _)| last + 1 == number);
        if !follows || !piece.continues {
            // The rest of the file before it is missing.
            chain.clear();
        }
        if !piece.good || (piece.continues && !follows) {
            chain.clear();
            continue;
        }
        chain.push((number, piece.object));
        if !piece.goes_on {
            kept.append(&mut chain);
        }
    }
    kept
}

/// Returns the number in the name of a piece.
fn piece_number(name: &str) -> Option<u32> {
    let digits = name.strip_prefix("data/")?;
    digits.split('.').next()?.parse().ok()
}

impl Kept {
    /// Puts what is in the kept pieces into the account and into the new journal, and returns their paths.
    pub fn carry_over(
        &self,
        earlier: &BrokenOff,
        recorder: &mut Recorder,
        journal: Option<&mut Journal>,
    ) -> Result<Paths> {
        let mut paths = Paths::default();
        let mut journal = journal;
        let mut seen = HashSet::new();
        earlier.pieces(&mut |piece| {
            let Some(&position) = self.positions.get(&piece.number) else { return Ok(()) };
            if !seen.insert(piece.number) {
                return Ok(());
            }
            if let Some(journal) = &mut journal {
                journal.add(piece.number, &piece.object, &piece.parts);
            }
            for mut part in piece.parts {
                paths.insert(&part.item.path);
                if let Some(extent) = &mut part.extent {
                    extent.piece = position;
                }
                recorder.add(part)?;
            }
            Ok(())
        })?;
        Ok(paths)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn piece(good: bool, continues: bool, goes_on: bool) -> Candidate {
        Candidate { object: StoredObject::of("x".into(), b""), good, continues, goes_on }
    }

    fn kept(candidates: &[(u32, Candidate)]) -> Vec<u32> {
        closed_chains(candidates.iter().cloned().collect()).into_iter().map(|(number, _)| number).collect()
    }

    #[test]
    fn pieces_that_share_a_file_stay_together_or_go_together() {
        let whole = piece(true, false, false);
        let (begin, middle, end) =
            (piece(true, false, true), piece(true, true, true), piece(true, true, false));
        let bad = |piece: &Candidate| Candidate { good: false, ..piece.clone() };
        let of = |pieces: &[&Candidate]| {
            kept(&(0..).zip(pieces.iter().map(|&piece| piece.clone())).collect::<Vec<_>>())
        };
        assert_eq!(of(&[&whole, &bad(&whole), &whole]), [0, 2]);
        assert_eq!(of(&[&begin, &middle, &end, &whole]), [0, 1, 2, 3]);
        assert_eq!(of(&[&begin, &bad(&middle), &end, &whole]), [3]);
        assert_eq!(of(&[&bad(&begin), &middle, &end, &whole]), [3]);
        assert_eq!(of(&[&begin, &middle, &bad(&end), &whole]), [3]);
        assert_eq!(of(&[&whole, &begin]), [0], "the rest was never stored");
        // A number is missing in between.
        assert_eq!(kept(&[(0, begin.clone()), (2, end.clone()), (3, whole.clone())]), [3]);
        assert_eq!(kept(&[(0, begin.clone()), (2, whole.clone())]), [2]);
        assert_eq!(kept(&[(1, end), (2, whole)]), [2]);
    }

    proptest! {
        #[test]
        fn what_stays_is_whole_entries(
            files in prop::collection::vec(1u32..5, 1..30),
            lost in prop::collection::vec(any::<bool>(), 150),
            bad in prop::collection::vec(any::<bool>(), 150),
        ) {
            // Each file spans so many pieces; a piece holds the end of one file and the beginning of the next.
            let mut pieces: Vec<(Vec<usize>, Candidate)> = vec![(vec![], piece(true, false, false))];
            for (file, &spans) in files.iter().enumerate() {
                for part in 0..spans {
                    if part > 0 {
                        pieces.last_mut().unwrap().1.goes_on = true;
                        pieces.push((vec![], piece(true, true, false)));
                    }
                    pieces.last_mut().unwrap().0.push(file);
                }
            }
            let candidates: Vec<(u32, Candidate)> = (0u32..)
                .zip(&pieces)
                .filter(|(number, _)| !lost[*number as usize % lost.len()])
                .map(|(number, (_, candidate))| {
                    (number, Candidate { good: !bad[number as usize % bad.len()], ..candidate.clone() })
                })
                .collect();
            let kept = kept(&candidates);
            for &number in &kept {
                for file in &pieces[number as usize].0 {
                    let all = (0u32..).zip(&pieces).filter(|(_, (held, _))| held.contains(file));
                    for (other, _) in all {
                        prop_assert!(kept.contains(&other), "file {file} of piece {number} lacks piece {other}");
                    }
                }
            }
        }
    }

    #[test]
    fn numbers_are_read_from_names() {
        assert_eq!(piece_number("data/0000012.lz4.age"), Some(12));
        assert_eq!(piece_number("manifest.jsonl.lz4"), None);
        assert_eq!(piece_number("data/x"), None);
    }
}
