//! The state machine that walks the pages of a segment and puts its records together.

use super::super::bytes::u16_in;
use super::super::{BLOCK_SIZE, Lsn, ParseError, SegmentHeader};
use super::carry::{Carry, PartialRecord};
use super::crc::{PageCrc, record_crc};
use super::outcome::{ReadOutcome, ReaderOptions, SegmentEnd, WalVersion};
use super::page::{Page, PageHeader};
use super::record::{Record, RecordHeader, align};
use super::stop::{Stop, StopReason};
use super::visitor::RecordVisitor;

/// The record that is under way at the beginning of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Pending {
    None,
    /// So many bytes of a record whose beginning is not at hand.
    Skip(u32),
    /// The record in `RecordReader::partial`.
    Partial,
}

/// Reads the records of one segment from its bytes, which are pushed in chunks of any size.
///
/// Memory is bounded: one page, and the kept beginning of one record. Records that lie within one page are visited
/// where they lie, without a copy and without an allocation.
#[derive(Debug)]
pub struct RecordReader {
    options: ReaderOptions,
    carry: Option<Carry>,
    version: Option<WalVersion>,
    major_version: u32,
    header: Option<SegmentHeader>,
    magic: u16,
    /// Where the next page begins.
    position: Lsn,
    /// Where the segment ends.
    segment_end: Lsn,
    end: Option<SegmentEnd>,
    broken_carry: Option<Stop>,
    records: u64,
    valid_end: Lsn,
    /// Where the last record began, if that is known.
    previous: Lsn,
    pending: Pending,
    partial: PartialRecord,
    crc: PageCrc,
    /// The beginning of a page whose end was not pushed yet.
    buffer: Vec<u8>,
}

impl RecordReader {
    /// Returns a reader for a segment. `carry` is what the reader of the segment before left behind; one that
    /// belongs to another position, version or cluster is ignored.
    pub fn new(options: ReaderOptions, carry: Option<Carry>) -> Self {
        Self {
            options,
            carry,
            version: None,
            major_version: 0,
            header: None,
            magic: 0,
            position: Lsn::INVALID,
            segment_end: Lsn::INVALID,
            end: None,
            broken_carry: None,
            records: 0,
            valid_end: Lsn::INVALID,
            previous: Lsn::INVALID,
            pending: Pending::None,
            partial: PartialRecord::new(),
            crc: PageCrc::new(),
            buffer: Vec::new(),
        }
    }

    /// Reads on. Bytes after the end of the segment, or after the place where reading stopped, are ignored.
    pub fn push<V: RecordVisitor>(&mut self, bytes: &[u8], visitor: &mut V) {
        let mut bytes = bytes;
        if !self.buffer.is_empty() {
            let (head, rest) = bytes.split_at(bytes.len().min(BLOCK_SIZE - self.buffer.len()));
            self.buffer.extend_from_slice(head);
            bytes = rest;
            let buffer = std::mem::take(&mut self.buffer);
            if let Some(page) = buffer.first_chunk() {
                self.page(page, visitor);
            }
            self.buffer = buffer;
            if self.buffer.len() < BLOCK_SIZE {
                return;
            }
            self.buffer.clear();
        }
        let (pages, rest) = bytes.as_chunks::<BLOCK_SIZE>();
        for page in pages {
            if self.end.is_some() {
                return;
            }
            self.page(page, visitor);
        }
        if self.end.is_none() {
            self.buffer.extend_from_slice(rest);
        }
    }

    /// Returns whether further bytes would be ignored.
    pub fn is_done(&self) -> bool {
        self.end.is_some()
    }

    /// Returns what is known when all bytes have been pushed.
    pub fn finish(mut self) -> ReadOutcome {
        if self.end.is_none() {
            let start = self.header.map_or(Lsn::INVALID, |header| header.page_address);
            let found = self.position - start + self.buffer.len() as u64;
            let reason = match self.header {
                None => ParseError::too_short("WAL segment", BLOCK_SIZE, found as usize).into(),
                Some(header) => StopReason::Truncated { found, expected: header.segment_size.bytes() },
            };
            let lsn = if self.pending == Pending::Partial { self.partial.start } else { self.position };
            self.stop(lsn, reason);
        }
        let carry = self.leave();
        ReadOutcome {
            version: self.version,
            header: self.header,
            records: self.records,
            valid_end: self.valid_end,
            end: self.end.unwrap_or(SegmentEnd::Full),
            broken_carry: self.broken_carry,
            carry,
        }
    }

    fn leave(&mut self) -> Option<Carry> {
        let header = self.header?;
        let partial = match (self.end.as_ref()?, self.pending) {
            (SegmentEnd::Switched, _) | (SegmentEnd::Full, Pending::None) => None,
            (SegmentEnd::Full, Pending::Partial) => {
                Some(std::mem::replace(&mut self.partial, PartialRecord::new()))
            }
            // A record that began before this segment and goes on after it, and whose beginning is unknown.
            _ => return None,
        };
        Some(Carry {
            magic: self.magic,
            system_identifier: header.system_identifier,
            position: self.segment_end,
            previous: self.previous,
            partial,
        })
    }

    fn stop(&mut self, lsn: Lsn, reason: StopReason) {
        self.end = Some(SegmentEnd::Stopped(Stop { lsn, reason }));
    }

    /// Reads a page: what is left of the record under way, then the records that begin here.
    fn page<V: RecordVisitor>(&mut self, page: &Page, visitor: &mut V) {
        let is_first = self.version.is_none();
        if is_first && !self.begin(page) {
            return;
        }
        let lsn = self.position;
        let header = PageHeader::read(page);
        if let Some(reason) = header.fault(self.magic, lsn) {
            let lsn = if self.pending == Pending::Partial { self.partial.start } else { lsn };
            return self.stop(lsn, reason);
        }
        if is_first {
            self.take_up_carry(&header);
        }
        self.position = lsn + BLOCK_SIZE as u64;
        if let Some(at) = self.resume(page, &header, lsn, visitor) {
            self.records(page, at, lsn, visitor);
        }
        if self.end.is_none() && self.position >= self.segment_end {
            self.end = Some(SegmentEnd::Full);
        }
    }

    /// Takes note of the segment's header. Returns whether the segment can be read.
    fn begin(&mut self, page: &Page) -> bool {
        self.magic = u16_in(page, 0);
        let Some(major_version) = SegmentHeader::major_version(self.magic) else {
            self.version = Some(WalVersion::Unknown { magic: self.magic });
            self.end = Some(SegmentEnd::UnknownVersion);
            return false;
        };
        self.version = Some(WalVersion::Known { magic: self.magic, major_version });
        self.major_version = major_version;
        let header = match SegmentHeader::parse(page) {
            Ok(header) => header,
            Err(error) => {
                self.stop(PageHeader::read(page).address(), error.into());
                return false;
            }
        };
        self.position = header.page_address;
        self.valid_end = header.page_address;
        let size = header.segment_size;
        if header.page_address.0 % size.bytes() != 0 {
            let expected = format!("a multiple of {}", size.bytes());
            self.stop(
                header.page_address,
                ParseError::mismatch("page address of WAL segment", header.page_address, expected).into(),
            );
            return false;
        }
        self.segment_end = header.page_address + size.bytes();
        self.header = Some(header);
        true
    }

    /// Decides at the segment's first page which record is under way.
    fn take_up_carry(&mut self, page: &PageHeader) {
        let skip = if page.continues_record() { Pending::Skip(page.remaining) } else { Pending::None };
        let start = self.position;
        let fits = |carry: &Carry| {
            carry.position == start
                && carry.magic == self.magic
                && self.header.is_some_and(|header| header.system_identifier == carry.system_identifier)
        };
        let Some(carry) = self.carry.take().filter(fits) else {
            self.pending = skip;
            return;
        };
        self.previous = carry.previous;
        self.pending = match carry.partial {
            Some(partial) if page.continues_record() && partial.remaining() == page.remaining => {
                self.partial = partial;
                Pending::Partial
            }
            Some(_) if page.overwrites_record() => Pending::None,
            Some(partial) => {
                self.broken_carry = Some(Stop {
                    lsn: partial.start,
                    reason: if page.continues_record() {
                        StopReason::ContinuationLength {
                            page: start,
                            found: page.remaining,
                            expected: partial.remaining(),
                        }
                    } else {
                        StopReason::NotContinued { page: start }
                    },
                });
                self.previous = Lsn::INVALID;
                skip
            }
            None if page.continues_record() => {
                self.broken_carry = Some(Stop { lsn: start, reason: StopReason::Unexpected });
                self.previous = Lsn::INVALID;
                skip
            }
            None => Pending::None,
        };
    }

    /// Reads what the page holds of the record under way. Returns where the first record begins that begins on this
    /// page, or `None` if none does or reading has ended.
    fn resume<V: RecordVisitor>(
        &mut self,
        page: &Page,
        header: &PageHeader,
        lsn: Lsn,
        visitor: &mut V,
    ) -> Option<usize> {
        let len = header.len();
        if header.overwrites_record() {
            self.pending = Pending::None;
        }
        let (start, remaining) = match self.pending {
            Pending::None if !header.continues_record() => return Some(len),
            Pending::None => {
                self.stop(lsn, StopReason::Unexpected);
                return None;
            }
            Pending::Skip(remaining) => (lsn, remaining),
            Pending::Partial => (self.partial.start, self.partial.remaining()),
        };
        if !header.continues_record() {
            self.stop(start, StopReason::NotContinued { page: lsn });
            return None;
        }
        if header.remaining != remaining || remaining == 0 {
            let found = header.remaining;
            self.stop(start, StopReason::ContinuationLength { page: lsn, found, expected: remaining });
            return None;
        }
        let here = (remaining as usize).min(BLOCK_SIZE - len);
        let left = remaining - here as u32;
        let next = align(len + here);
        if self.pending == Pending::Partial {
            self.extend(&page[len..len + here], visitor)?;
            if left == 0 {
                self.pending = Pending::None;
                self.complete(lsn + next as u64, visitor)?;
            }
        } else {
            visitor.skip(&page[len..len + here]);
            if left == 0 {
                self.pending = Pending::None;
                self.valid_end = lsn + next as u64;
            } else {
                self.pending = Pending::Skip(left);
            }
        }
        (left == 0).then_some(next)
    }

    /// Reads the records that begin on the page from `at` on.
    fn records<V: RecordVisitor>(&mut self, page: &Page, mut at: usize, page_lsn: Lsn, visitor: &mut V) {
        let verified = if self.options.check_crc { self.crc.verified_until(page, at) } else { BLOCK_SIZE };
        while let Some(header) = page.get(at..).and_then(|rest| rest.first_chunk()) {
            let lsn = Lsn(page_lsn.0 + at as u64);
            let header = RecordHeader(header);
            if let Err(reason) = self.check_header(&header, lsn) {
                return self.stop_at(page, at, lsn, reason);
            }
            let total_len = header.total_len();
            let Some(bytes) = page.get(at..at + total_len as usize) else { break };
            let body = &bytes[RecordHeader::LEN..];
            if at >= verified {
                let computed = record_crc(header.0, body);
                if computed != header.crc() {
                    return self.stop(lsn, StopReason::Checksum { stored: header.crc(), computed });
                }
            }
            at = align(at + total_len as usize);
            if !self.deliver(&header, lsn, Lsn(page_lsn.0 + at as u64), body, visitor) {
                return;
            }
        }
        // The length is in the first four bytes, and records begin at multiples of eight.
        let rest = &page[at.min(BLOCK_SIZE)..];
        if let Some(length) = rest.first_chunk::<4>() {
            let lsn = Lsn(page_lsn.0 + at as u64);
            if let Err(reason) = check_length(u32::from_le_bytes(*length)) {
                return self.stop_at(page, at, lsn, reason);
            }
            self.pending = Pending::Partial;
            self.partial.restart(lsn);
            self.extend(rest, visitor);
        }
    }

    /// Checks what the header of a record that begins at `lsn` says.
    #[inline]
    fn check_header(&self, header: &RecordHeader<'_>, lsn: Lsn) -> Result<(), StopReason> {
        check_length(header.total_len())?;
        let found = header.previous();
        if found == self.previous {
            return Ok(());
        }
        if self.previous.is_valid() {
            return Err(StopReason::Previous { found, expected: self.previous });
        }
        if found < lsn { Ok(()) } else { Err(StopReason::PreviousNotEarlier { found }) }
    }

    /// Ends at a record whose header is wrong. A length of zero followed by zeros is no record at all.
    #[cold]
    fn stop_at(&mut self, page: &Page, at: usize, lsn: Lsn, reason: StopReason) {
        let zeros = page[at..].iter().all(|&byte| byte == 0);
        self.stop(lsn, if zeros { StopReason::Zeros } else { reason });
    }

    /// Takes more bytes of the record that crosses pages; `None` if its header turns out wrong.
    fn extend<V: RecordVisitor>(&mut self, bytes: &[u8], visitor: &mut V) -> Option<()> {
        let had_header = self.partial.has_header();
        let body = self.partial.add_to_header(bytes);
        if !self.partial.has_header() {
            return Some(());
        }
        let header = self.partial.header();
        if !had_header && let Err(reason) = self.check_header(&header, self.partial.start) {
            self.stop(self.partial.start, reason);
            return None;
        }
        let wanted = visitor.wants(header.rmid(), header.info());
        self.partial.add_to_body(body, self.options.check_crc, wanted);
        Some(())
    }

    /// Delivers the record that crossed pages; `None` if reading ends with it.
    fn complete<V: RecordVisitor>(&mut self, end_lsn: Lsn, visitor: &mut V) -> Option<()> {
        let partial = std::mem::replace(&mut self.partial, PartialRecord::new());
        let header = partial.header();
        if self.options.check_crc && partial.crc() != header.crc() {
            self.stop(partial.start, StopReason::Checksum { stored: header.crc(), computed: partial.crc() });
            return None;
        }
        let goes_on = self.deliver(&header, partial.start, end_lsn, &partial.kept, visitor);
        self.partial = partial;
        goes_on.then_some(())
    }

    /// Hands a record to the visitor. Returns whether another may follow.
    #[inline]
    fn deliver<V: RecordVisitor>(
        &mut self,
        header: &RecordHeader<'_>,
        lsn: Lsn,
        end_lsn: Lsn,
        body: &[u8],
        visitor: &mut V,
    ) -> bool {
        let switch = header.is_switch();
        let end_lsn = if switch { self.segment_end } else { end_lsn };
        self.previous = lsn;
        self.valid_end = end_lsn;
        self.records += 1;
        visitor.visit(&Record {
            lsn,
            end_lsn,
            xid: header.xid(),
            rmid: header.rmid(),
            info: header.info(),
            total_len: header.total_len(),
            major_version: self.major_version,
            body,
        });
        if switch {
            self.end = Some(SegmentEnd::Switched);
        }
        !switch
    }
}

#[inline]
fn check_length(length: u32) -> Result<(), StopReason> {
    if (RecordHeader::LEN as u32..=RecordHeader::MAX_TOTAL_LEN).contains(&length) {
        Ok(())
    } else {
        Err(StopReason::Length { found: length })
    }
}
