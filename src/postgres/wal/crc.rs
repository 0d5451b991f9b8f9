//! The CRCs of records (`COMP_CRC32C` over the body, then over the header up to the CRC).

use super::super::BLOCK_SIZE;
use super::page::Page;
use super::record::{RecordHeader, align};

/// Returns the CRC of a record whose header and body are those.
pub(super) fn record_crc(header: &[u8; RecordHeader::LEN], body: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(body), &header[..RecordHeader::CRC_AT])
}

/// Checks all the records of a page at once.
///
/// Most records are short, and a call for each of them takes longer than the CRC itself. But a CRC's register after
/// the right bytes is known beforehand: it is the complement of the CRC in the record. Four bytes with that value
/// turn it to zero, and four more from there to the value with which a CRC begins. So the records of a page, each
/// with those eight bytes behind it, make one run of bytes whose CRC is that of no bytes at all, if all of them are
/// right. If one is wrong, the difference stays in the register to the end.
#[derive(Debug)]
pub(super) struct PageCrc {
    run: Box<[u8; RUN_MAX]>,
}

/// What a record is longer by in the run than on the page.
const GROWTH: usize = RESET.len();
const RUN_MAX: usize = BLOCK_SIZE + BLOCK_SIZE / RecordHeader::LEN * GROWTH;

/// What turns a register of zero to the value with which a CRC begins.
const RESET: [u8; 4] = register_before_zeros(4).to_le_bytes();

impl PageCrc {
    pub(super) fn new() -> Self {
        Self { run: Box::new([0; RUN_MAX]) }
    }

    /// Returns the position up to which the records from `at` on are right. Where that is not the whole of them, one
    /// is wrong, and nothing is said of the others: then it is `at`.
    pub(super) fn verified_until(&mut self, page: &Page, at: usize) -> usize {
        const TAIL: usize = RecordHeader::LEN + GROWTH;
        let mut end = at;
        let mut len = 0;
        while let Some(header) = page.get(end..).and_then(|rest| rest.first_chunk()) {
            let header = RecordHeader(header);
            let next = end + header.total_len() as usize;
            let Some(body) = page.get(end + RecordHeader::LEN..next) else { break };
            let Some(run) = self.run.get_mut(len..len + body.len() + TAIL) else { break };
            let (to, tail) = run.split_at_mut(body.len());
            to.copy_from_slice(body);
            if let Some(tail) = tail.first_chunk_mut::<TAIL>() {
                tail[..RecordHeader::CRC_AT].copy_from_slice(&header.0[..RecordHeader::CRC_AT]);
                tail[RecordHeader::CRC_AT..RecordHeader::LEN].copy_from_slice(&(!header.crc()).to_le_bytes());
                tail[RecordHeader::LEN..].copy_from_slice(&RESET);
            }
            len += body.len() + TAIL;
            end = align(next);
        }
        if crc32c::crc32c(&self.run[..len]) == crc32c::crc32c(&[]) { end } else { at }
    }
}

/// Returns the register that so many zero bytes turn into the one with which a CRC begins.
const fn register_before_zeros(zeros: u32) -> u32 {
    /// The polynomial, lowest power first.
    const CASTAGNOLI: u32 = 0x82F6_3B78;
    let mut register = u32::MAX;
    let mut bit = 0;
    while bit < 8 * zeros {
        // A step backwards: the polynomial's top bit tells whether it was added.
        register = if register >> 31 == 1 { (register ^ CASTAGNOLI) << 1 | 1 } else { register << 1 };
        bit += 1;
    }
    register
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Returns a page of records with bodies of those lengths, from `at` on, and where each begins.
    fn page(at: usize, lengths: &[usize]) -> (Box<Page>, Vec<usize>) {
        let mut page = Box::new([0; BLOCK_SIZE]);
        let mut starts = vec![];
        let mut next = at;
        for (length, seed) in lengths.iter().zip((1..=255u8).cycle()) {
            let end = next + RecordHeader::LEN + length;
            if end > BLOCK_SIZE {
                break;
            }
            for (byte, value) in page[next..end].iter_mut().zip(0u8..=255) {
                *byte = value.wrapping_mul(seed);
            }
            page[next..next + 4].copy_from_slice(&((RecordHeader::LEN + length) as u32).to_le_bytes());
            let header = *page[next..].first_chunk().unwrap();
            let crc = record_crc(&header, &page[next + RecordHeader::LEN..end]);
            page[next + RecordHeader::CRC_AT..next + RecordHeader::LEN].copy_from_slice(&crc.to_le_bytes());
            starts.push(next);
            next = align(end);
        }
        starts.push(next);
        (page, starts)
    }

    proptest! {
        #[test]
        fn right_records_pass_and_one_wrong_bit_does_not(
            at in (3usize..20).prop_map(|at| at * 8),
            lengths in prop::collection::vec(0usize..700, 1..200),
            wrong: prop::sample::Index,
            bit in 0u8..8,
        ) {
            let (mut page, starts) = page(at, &lengths);
            let (&end, starts) = starts.split_last().unwrap();
            let mut crc = PageCrc::new();
            prop_assert_eq!(crc.verified_until(&page, at), end);
            // Not in a length, which would make it another record.
            let start = starts[wrong.index(starts.len())];
            page[start + 4 + wrong.index(RecordHeader::LEN - 4)] ^= 1u8 << bit;
            prop_assert_eq!(crc.verified_until(&page, at), at);
        }
    }

    #[test]
    fn a_page_full_of_the_shortest_records() {
        let (page, starts) = page(24, &[0; 400]);
        assert_eq!(starts.len(), (BLOCK_SIZE - 24) / RecordHeader::LEN + 1);
        assert_eq!(PageCrc::new().verified_until(&page, 24), *starts.last().unwrap());
    }

    #[test]
    fn a_page_without_records() {
        assert_eq!(PageCrc::new().verified_until(&[0; BLOCK_SIZE], 24), 24);
        assert_eq!(PageCrc::new().verified_until(&[0xFF; BLOCK_SIZE], 24), 24);
        assert_eq!(PageCrc::new().verified_until(&[0xFF; BLOCK_SIZE], BLOCK_SIZE), BLOCK_SIZE);
    }
}
