//! The header at the start of every WAL segment (`XLogLongPageHeaderData` in `xlog_internal.h`).

use super::bytes::{u16_in, u32_in, u64_in};
use super::page_checksum::BLOCK_SIZE;
use super::{Lsn, ParseError, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};

/// What a WAL segment's first page says about the segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The WAL version (`XLOG_PAGE_MAGIC`).
    pub magic: u16,
    /// The page's flags.
    pub info: u16,
    /// The timeline of the page, which in the first segment after a promotion is lower than the file name's.
    pub timeline: TimelineId,
    /// The position of the segment's first byte.
    pub page_address: Lsn,
    /// The cluster that wrote it.
    pub system_identifier: SystemIdentifier,
    /// The size of the cluster's segments.
    pub segment_size: WalSegmentSize,
    /// The size of a WAL page in bytes, always 8192.
    pub block_size: u32,
}

/// The flag of a page whose header is the long one (`XLP_LONG_HEADER`).
const LONG_HEADER: u16 = 0x0002;

impl SegmentHeader {
    /// Length of the header in bytes.
    pub const LEN: usize = 40;

    /// Returns the header that stands at the start of `bytes`. A WAL version that is not known yet is accepted;
    /// what is not the start of a WAL segment at all is an error.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let Some(header) = bytes.first_chunk::<{ Self::LEN }>() else {
            return Err(ParseError::too_short("WAL segment header", Self::LEN, bytes.len()));
        };
        let magic = u16_in(header, 0);
        if magic >> 8 != 0xD1 {
            return Err(ParseError::mismatch("magic number of WAL segment", format!("{magic:04X}"), "D1xx"));
        }
        let info = u16_in(header, 2);
        if info & LONG_HEADER == 0 {
            let expected = format!("with bit {LONG_HEADER:04X}");
            return Err(ParseError::mismatch("flags of WAL segment", format!("{info:04X}"), expected));
        }
        let block_size = u32_in(header, 36);
        if block_size as usize != BLOCK_SIZE {
            return Err(ParseError::mismatch("block size of WAL segment", block_size, BLOCK_SIZE));
        }
        Ok(Self {
            magic,
            info,
            timeline: TimelineId::try_from(u32_in(header, 4))?,
            page_address: Lsn(u64_in(header, 8)),
            system_identifier: SystemIdentifier(u64_in(header, 24)),
            segment_size: WalSegmentSize::new(u32_in(header, 32))?,
            block_size,
        })
    }

    /// Returns the major version of the servers that write WAL with that magic number, or `None` if it is not
    /// known.
    pub fn major_version(magic: u16) -> Option<u32> {
        match magic {
            0xD106 => Some(13),
            0xD10D => Some(14),
            0xD110 => Some(15),
            0xD113 => Some(16),
            0xD116 => Some(17),
            0xD118 => Some(18),
            _ => None,
        }
    }

    /// Returns an error unless a file of that name and length can have this header.
    ///
    /// The page's timeline may be lower than the name's, for a promotion copies the beginning of its segment from
    /// the old timeline; a higher one is wrong.
    pub fn check(&self, name: WalSegmentName, file_len: u64) -> Result<(), ParseError> {
        if self.segment_size.bytes() != file_len {
            return Err(ParseError::mismatch("length of WAL segment", file_len, self.segment_size.bytes()));
        }
        if !name.is_valid_for(self.segment_size) {
            let expected = format!("below {:08X}", self.segment_size.segments_per_log());
            let found = format!("{:08X}", name.segment);
            return Err(ParseError::mismatch("segment number in WAL segment name", found, expected));
        }
        let start = name.start(self.segment_size);
        if self.page_address != start {
            return Err(ParseError::mismatch("page address of WAL segment", self.page_address, start));
        }
        if self.timeline > name.timeline {
            let expected = format!("at most {}", name.timeline);
            return Err(ParseError::mismatch("timeline of WAL segment", self.timeline, expected));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The first page of 000000010000000000000003 of a PostgreSQL 15.18.
    const PAGE: &[u8] = include_bytes!("../../tests/golden/wal-15-first-page");

    fn name(text: &str) -> WalSegmentName {
        text.parse().unwrap()
    }

    #[test]
    fn reads_a_real_segments_header() {
        let header = SegmentHeader::parse(PAGE).unwrap();
        assert_eq!(SegmentHeader::major_version(header.magic), Some(15));
        assert_eq!(header.timeline, TimelineId(1));
        assert_eq!(header.page_address, Lsn(0x0300_0000));
        assert_eq!(header.segment_size, WalSegmentSize::DEFAULT);
        assert_eq!(header.system_identifier, SystemIdentifier(7_710_439_461_982_692_055));
    }

    #[test]
    fn a_name_that_does_not_fit_is_refused() {
        let header = SegmentHeader::parse(PAGE).unwrap();
        let check = |text, len| header.check(name(text), len).map_err(|error| error.to_string());
        assert_eq!(check("000000010000000000000003", 16 << 20), Ok(()));
        assert_eq!(check("000000020000000000000003", 16 << 20), Ok(()));
        assert_eq!(
            check("000000010000000000000003", 8192),
            Err("length of WAL segment is 8192, expected 16777216".to_owned())
        );
        assert_eq!(
            check("000000010000000000000004", 16 << 20),
            Err("page address of WAL segment is 0/3000000, expected 0/4000000".to_owned())
        );
        assert_eq!(
            check("000000010000000000000100", 16 << 20),
            Err("segment number in WAL segment name is 00000100, expected below 00000100".to_owned())
        );
        let later = SegmentHeader { timeline: TimelineId(2), ..header };
        assert!(later.check(name("000000010000000000000003"), 16 << 20).is_err());
    }

    #[test]
    fn an_unknown_version_is_accepted_and_nonsense_is_not() {
        let with = |at: usize, value: u8| {
            let mut page = PAGE.to_vec();
            page[at] = value;
            SegmentHeader::parse(&page)
        };
        assert_eq!(SegmentHeader::major_version(with(0, 0xFF).unwrap().magic), None);
        assert!(with(1, 0xD0).is_err());
        assert!(with(2, 0).is_err());
        assert!(with(4, 0).is_err());
        assert!(with(33, 1).is_err());
        assert!(with(37, 0x10).is_err());
        assert!(SegmentHeader::parse(&PAGE[..39]).is_err());
        assert!(SegmentHeader::parse(&[0; 8192]).is_err());
    }

    proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(any::<u8>(), 0..64), segment: u32) {
            let mut page = PAGE[..SegmentHeader::LEN].to_vec();
            page.iter_mut().zip(&bytes).skip(3).for_each(|(to, from)| *to = *from);
            for bytes in [&bytes, &page] {
                if let Ok(header) = SegmentHeader::parse(bytes) {
                    let _ = header.check(WalSegmentName { timeline: TimelineId(1), log: segment, segment }, 0);
                }
            }
        }
    }
}
