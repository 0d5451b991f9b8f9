//! Checking the pages of relations while they are read for a backup.

use super::names::RelationFile;
use crate::postgres::{BLOCK_SIZE, Lsn, PageCheck, check_page};
use crate::repository::backup::BadPages;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::Duration;

/// How many bad blocks of a file are named; the rest is only counted.
const NAMED: usize = 100;

/// How many blocks of a part are remembered that look newer than the backup's start: the newest.
const REMEMBERED: usize = 32;

/// How long the server gets to finish writing a page that was read half written.
const PAUSE: Duration = Duration::from_millis(1);

/// What all checks of a backup need to know.
#[derive(Debug, Clone, Copy)]
pub struct PageChecks {
    /// Pages at or beyond this position are not checked: replay writes them anew.
    pub start_lsn: Lsn,
    /// The blocks in each but the last file of a relation.
    pub blocks_per_segment: u32,
}

/// What checking a part of a file found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Findings {
    /// Pages whose checksum is wrong.
    pub bad: BadPages,
    /// Pages that were not checked because their LSN is that of the backup's start or later, with that LSN. Where
    /// the LSN turns out to lie beyond the backup's stop, no server wrote it.
    pub newer: Vec<(Lsn, u32)>,
}

impl Findings {
    fn add_newer(&mut self, lsn: Lsn, block: u32) {
        self.newer.push((lsn, block));
        if self.newer.len() >= 2 * REMEMBERED {
            self.keep_newest();
        }
    }

    fn keep_newest(&mut self) {
        self.newer.sort_unstable_by(|a, b| b.cmp(a));
        self.newer.truncate(REMEMBERED);
    }

    /// Adds what was found in the part of the same file that follows.
    pub fn merge(&mut self, other: Self) {
        merge_bad(&mut self.bad, other.bad);
        self.newer.extend(other.newer);
        self.keep_newest();
    }

    /// Returns whether all pages are good, given that WAL has come as far as `position`.
    pub fn is_good(&self, position: Lsn) -> bool {
        self.bad.count == 0 && self.newer.iter().all(|(lsn, _)| *lsn <= position)
    }

    /// Returns the bad pages, now that it is known where the backup ends; none if all are good.
    pub fn settle(mut self, stop_lsn: Lsn) -> Option<BadPages> {
        let mut forged: Vec<u32> =
            self.newer.iter().filter(|(lsn, _)| *lsn > stop_lsn).map(|(_, block)| *block).collect();
        forged.sort_unstable();
        merge_bad(&mut self.bad, BadPages { count: forged.len() as u64, blocks: forged, relation: None });
        (self.bad.count > 0).then_some(self.bad)
    }
}

fn merge_bad(bad: &mut BadPages, more: BadPages) {
    bad.count += more.count;
    bad.blocks.extend(more.blocks);
    bad.blocks.sort_unstable();
    bad.blocks.truncate(NAMED);
}

/// Checks the whole pages in `bytes`, which were read from `file` at `offset`, a multiple of the page size. A bad
/// page is read again; what is then there replaces it in `bytes`, as the server's own base backup does it.
pub fn check(
    checks: PageChecks,
    relation: RelationFile,
    file: &File,
    offset: u64,
    bytes: &mut [u8],
    findings: &mut Findings,
) {
    let first = (offset / BLOCK_SIZE as u64) as u32;
    let base = relation.segment.wrapping_mul(checks.blocks_per_segment);
    for (at, page) in bytes.as_chunks_mut::<BLOCK_SIZE>().0.iter_mut().enumerate() {
        let block = first + at as u32;
        let number = base.wrapping_add(block);
        let mut result = check_page(page, number, checks.start_lsn);
        if matches!(result, PageCheck::Bad { .. }) && findings.bad.count < NAMED as u64 {
            std::thread::sleep(PAUSE);
            let mut again = [0; BLOCK_SIZE];
            if file.read_exact_at(&mut again, u64::from(block) * BLOCK_SIZE as u64).is_ok() {
                *page = again;
                result = check_page(page, number, checks.start_lsn);
            }
        }
        match result {
            PageCheck::Ok | PageCheck::New => {}
            PageCheck::Skipped(lsn) => findings.add_newer(lsn, block),
            PageCheck::Bad { .. } => {
                findings.bad.count += 1;
                if findings.bad.blocks.len() < NAMED {
                    findings.bad.blocks.push(block);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::names::Fork;
    use std::io::Write;

    const PAGE: &[u8] = include_bytes!("../../tests/golden/heap-page-block-3");
    const RELATION: RelationFile = RelationFile { number: 1, fork: Fork::Main, segment: 0 };

    fn check_file(pages: &[&[u8]], read: &[&[u8]], start_lsn: Lsn) -> (Findings, Vec<u8>) {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&pages.concat()).unwrap();
        let mut bytes = read.concat();
        let mut findings = Findings::default();
        let checks = PageChecks { start_lsn, blocks_per_segment: 131_072 };
        check(checks, RELATION, &file, 0, &mut bytes, &mut findings);
        (findings, bytes)
    }

    #[test]
    fn a_page_that_is_bad_at_first_and_good_afterwards_is_taken_as_read_again() {
        let zero: &[u8] = &[0; BLOCK_SIZE];
        let mut torn = PAGE.to_vec();
        torn[8000] ^= 1;
        let good = [zero, zero, zero, PAGE];
        let (findings, bytes) = check_file(&good, &[zero, zero, zero, &torn], Lsn(u64::MAX));
        assert_eq!(findings, Findings::default());
        assert_eq!(bytes, good.concat());
        let bad = [zero, &torn, zero, &torn];
        let (findings, _) = check_file(&bad, &bad, Lsn(u64::MAX));
        assert_eq!(findings.bad, BadPages { count: 2, blocks: vec![1, 3], relation: None });
        assert_eq!(findings.settle(Lsn(0)).unwrap().count, 2);
    }

    #[test]
    fn a_page_from_beyond_the_stop_is_bad() {
        let zero: &[u8] = &[0; BLOCK_SIZE];
        let pages = [zero, zero, zero, PAGE];
        let (findings, _) = check_file(&pages, &pages, Lsn(1));
        let lsn = findings.newer[0].0;
        assert_eq!(findings.clone().settle(lsn), None);
        assert_eq!(
            findings.settle(Lsn(lsn.0 - 1)),
            Some(BadPages { count: 1, blocks: vec![3], relation: None })
        );
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let mut findings = Findings::default();
        for block in 0..10_000 {
            findings.add_newer(Lsn(u64::from(block)), block);
        }
        findings.merge(Findings::default());
        assert_eq!(findings.newer.len(), REMEMBERED);
        assert_eq!(findings.newer[0], (Lsn(9999), 9999));
    }
}
