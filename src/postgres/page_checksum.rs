//! Checksums of data pages (`checksum_impl.h`).

use super::Lsn;
use super::bytes::{u16_in, u32_in};

/// The size of a data page and of a WAL page in bytes (`BLCKSZ`, `XLOG_BLCKSZ`). Clusters with other sizes exist
/// only where someone compiled their own server.
pub const BLOCK_SIZE: usize = 8192;

/// The number of partial checksums that are computed side by side.
const LANES: usize = 32;

/// The prime of FNV-1a.
const PRIME: u32 = 16_777_619;

/// Where each partial checksum starts (`checksumBaseOffsets`).
const OFFSETS: [u32; LANES] = [
    0x5B1F_36E9,
    0xB852_5960,
    0x02AB_50AA,
    0x1DE6_6D2A,
    0x79FF_467A,
    0x9BB9_F8A3,
    0x217E_7CD2,
    0x83E1_3D2C,
    0xF8D4_474F,
    0xE39E_B970,
    0x42C6_AE16,
    0x9932_16FA,
    0x7B09_3B5D,
    0x98DA_FF3C,
    0xF718_902A,
    0x0B1C_9CDB,
    0xE58F_764B,
    0x1876_36BC,
    0x5D7B_3BB1,
    0xE73D_E7DE,
    0x92BE_C979,
    0xCCA6_C0B2,
    0x304A_0979,
    0x85AA_43D4,
    0x7831_25BB,
    0x6CA8_EAA2,
    0xE407_EAC6,
    0x4B5C_FC3E,
    0x9FBF_8C76,
    0x15CA_20BE,
    0xF2CA_9FD3,
    0x959B_D756,
];

/// Where in a page its LSN, its checksum and `pd_upper` stand (`PageHeaderData`).
const CHECKSUM_AT: usize = 8;
const UPPER_AT: usize = 14;

/// What checking a page found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageCheck {
    /// The checksum is right.
    Ok,
    /// The page is all zeros: allocated and never written.
    New,
    /// The page was written after the backup began: its LSN, given here, is at or beyond the start. It may be torn,
    /// and replay will write it anew. An LSN beyond the backup's stop, though, no server wrote.
    Skipped(Lsn),
    /// The checksum is wrong.
    Bad {
        /// The checksum in the page.
        stored: u16,
        /// The checksum of the page's bytes.
        computed: u16,
    },
}

/// Returns the checksum of a page of [`BLOCK_SIZE`] bytes (what is missing counts as zero, what is beyond does not
/// count), whatever stands in its checksum field. `block_number` counts from the relation's beginning, over all
/// its files: a file holds 131072 pages.
pub fn page_checksum(page: &[u8], block_number: u32) -> u16 {
    match page.first_chunk::<BLOCK_SIZE>() {
        Some(page) => checksum(page, block_number),
        None => checksum(&padded(page), block_number),
    }
}

/// Checks a page of a relation in a backup that began at `start_lsn`.
pub fn check_page(page: &[u8], block_number: u32, start_lsn: Lsn) -> PageCheck {
    match page.first_chunk::<BLOCK_SIZE>() {
        Some(page) => check(page, block_number, start_lsn),
        None => check(&padded(page), block_number, start_lsn),
    }
}

fn check(page: &[u8; BLOCK_SIZE], block_number: u32, start_lsn: Lsn) -> PageCheck {
    let stored = u16_in(page, CHECKSUM_AT);
    if u16_in(page, UPPER_AT) == 0 {
        if page.iter().all(|&byte| byte == 0) {
            return PageCheck::New;
        }
        // Never the state of a page on disk (`PageIsVerified`), whatever its checksum and LSN say.
        return PageCheck::Bad { stored, computed: checksum(page, block_number) };
    }
    let lsn = Lsn(u64::from(u32_in(page, 0)) << 32 | u64::from(u32_in(page, 4)));
    if lsn >= start_lsn {
        return PageCheck::Skipped(lsn);
    }
    let computed = checksum(page, block_number);
    if stored == computed { PageCheck::Ok } else { PageCheck::Bad { stored, computed } }
}

fn checksum(page: &[u8; BLOCK_SIZE], block_number: u32) -> u16 {
    let mut sums = OFFSETS;
    let (rows, _) = page.as_chunks::<{ LANES * 4 }>();
    if let Some((first, rest)) = rows.split_first() {
        let mut first = *first;
        first[CHECKSUM_AT..CHECKSUM_AT + 2].fill(0);
        mix(&mut sums, &first);
        for row in rest {
            mix(&mut sums, row);
        }
    }
    for _ in 0..2 {
        mix(&mut sums, &[0; LANES * 4]);
    }
    let folded = sums.iter().fold(0, |all, sum| all ^ sum) ^ block_number;
    (folded % 65535 + 1) as u16
}

/// Takes one word more into each partial checksum. The lanes do not depend on each other, and the compiler makes
/// vector instructions of the loop.
#[inline]
fn mix(sums: &mut [u32; LANES], row: &[u8; LANES * 4]) {
    for (sum, word) in sums.iter_mut().zip(row.as_chunks::<4>().0) {
        let mixed = *sum ^ u32::from_le_bytes(*word);
        *sum = mixed.wrapping_mul(PRIME) ^ (mixed >> 17);
    }
}

fn padded(page: &[u8]) -> [u8; BLOCK_SIZE] {
    let mut padded = [0; BLOCK_SIZE];
    padded.iter_mut().zip(page).for_each(|(to, from)| *to = *from);
    padded
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Block 0 of `pg_class` and block 3 of `pgbench_accounts` of a PostgreSQL 15.18.
    const PAGES: [(&[u8], u32); 2] = [
        (include_bytes!("../../tests/golden/heap-page-block-0"), 0),
        (include_bytes!("../../tests/golden/heap-page-block-3"), 3),
    ];

    #[test]
    fn real_pages_have_the_checksum_that_the_server_wrote() {
        for (page, block) in PAGES {
            assert_eq!(check_page(page, block, Lsn(u64::MAX)), PageCheck::Ok);
            assert!(matches!(check_page(page, block + 1, Lsn(u64::MAX)), PageCheck::Bad { .. }));
        }
    }

    #[test]
    fn newer_pages_are_skipped_and_new_ones_recognised() {
        let (page, block) = PAGES[1];
        let PageCheck::Skipped(lsn) = check_page(page, block, Lsn(1)) else { panic!("not skipped") };
        assert_eq!(check_page(page, block, lsn), PageCheck::Skipped(lsn));
        assert_eq!(check_page(page, block, lsn + 1), PageCheck::Ok);
        assert_eq!(check_page(&[0; BLOCK_SIZE], 9, lsn), PageCheck::New);
        assert_eq!(check_page(&[], 9, lsn), PageCheck::New);
        let mut broken = [0; BLOCK_SIZE];
        broken[BLOCK_SIZE - 1] = 1;
        assert!(matches!(check_page(&broken, 9, lsn), PageCheck::Bad { stored: 0, .. }));
    }

    #[test]
    fn flipped_bits_are_found() {
        let (page, block) = PAGES[1];
        let mut page = page.to_vec();
        let mut missed = 0;
        for at in 0..BLOCK_SIZE {
            page[at] ^= 1 << (at % 8);
            missed += u32::from(check_page(&page, block, Lsn(u64::MAX)) == PageCheck::Ok);
            page[at] ^= 1 << (at % 8);
        }
        // Sixteen bits let one error in 65,535 pass.
        assert!(missed <= 1, "{missed}");
    }

    proptest! {
        #[test]
        fn never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), block: u32) {
            let _ = (page_checksum(&bytes, block), check_page(&bytes, block, Lsn(1)));
        }
    }
}
