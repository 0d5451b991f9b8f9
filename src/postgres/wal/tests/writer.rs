//! Writes WAL as the server would, so that tests can put a record's edge wherever they like.

use super::super::super::{BLOCK_SIZE, Lsn, SystemIdentifier};

pub(in crate::postgres::wal) const SEGMENT: usize = 1 << 20;
pub(in crate::postgres::wal) const MAGIC_15: u16 = 0xD110;
pub(in crate::postgres::wal) const SYSTEM: SystemIdentifier = SystemIdentifier(7_710_439_461_982_692_055);

/// A record as it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::postgres::wal) struct Written {
    pub(in crate::postgres::wal) lsn: Lsn,
    pub(in crate::postgres::wal) xid: u32,
    pub(in crate::postgres::wal) rmid: u8,
    pub(in crate::postgres::wal) info: u8,
    pub(in crate::postgres::wal) body: Vec<u8>,
}

/// Some WAL of timeline 1, from the start of a segment on.
pub(in crate::postgres::wal) struct Writer {
    magic: u16,
    start: u64,
    bytes: Vec<u8>,
    previous: u64,
    pub(in crate::postgres::wal) written: Vec<Written>,
}

impl Writer {
    pub(in crate::postgres::wal) fn new() -> Self {
        Self::of_version(MAGIC_15)
    }

    pub(in crate::postgres::wal) fn of_version(magic: u16) -> Self {
        let start = 3 * SEGMENT as u64;
        Self { magic, start, bytes: Vec::new(), previous: start - 64, written: Vec::new() }
    }

    fn position(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    /// Begins a page if one is due. `remaining` bytes of a record are still to come.
    fn page(&mut self, flags: u16, remaining: u32) {
        if !self.bytes.len().is_multiple_of(BLOCK_SIZE) {
            return;
        }
        let first = self.bytes.len().is_multiple_of(SEGMENT);
        let flags = flags | u16::from(remaining > 0) | if first { 2 } else { 0 };
        let position = self.position();
        self.bytes.extend(self.magic.to_le_bytes());
        self.bytes.extend(flags.to_le_bytes());
        self.bytes.extend(1u32.to_le_bytes());
        self.bytes.extend(position.to_le_bytes());
        self.bytes.extend(remaining.to_le_bytes());
        self.bytes.extend([0; 4]);
        if first {
            self.bytes.extend(SYSTEM.0.to_le_bytes());
            self.bytes.extend((SEGMENT as u32).to_le_bytes());
            self.bytes.extend((BLOCK_SIZE as u32).to_le_bytes());
        }
    }

    /// Writes a record and returns where it begins.
    pub(in crate::postgres::wal) fn record(&mut self, rmid: u8, info: u8, xid: u32, body: &[u8]) -> Lsn {
        self.page(0, 0);
        let lsn = self.position();
        let mut record = Vec::new();
        record.extend((24 + body.len() as u32).to_le_bytes());
        record.extend(xid.to_le_bytes());
        record.extend(self.previous.to_le_bytes());
        record.extend([info, rmid, 0, 0]);
        let crc = crc32c::crc32c_append(crc32c::crc32c(body), &record);
        record.extend(crc.to_le_bytes());
        record.extend(body);
        let mut rest = &record[..];
        while !rest.is_empty() {
            self.page(0, rest.len() as u32);
            let room = BLOCK_SIZE - self.bytes.len() % BLOCK_SIZE;
            let (here, later) = rest.split_at(rest.len().min(room));
            self.bytes.extend(here);
            rest = later;
        }
        self.bytes.resize(self.bytes.len().next_multiple_of(8), 0);
        self.previous = lsn;
        self.written.push(Written { lsn: Lsn(lsn), xid, rmid, info, body: body.to_vec() });
        Lsn(lsn)
    }

    /// Writes a record that consists of main data only.
    pub(in crate::postgres::wal) fn main_data(&mut self, rmid: u8, info: u8, xid: u32, data: &[u8]) -> Lsn {
        self.record(rmid, info, xid, &main_data(data))
    }

    /// Returns how many bytes are left on the page.
    pub(in crate::postgres::wal) fn room(&self) -> usize {
        BLOCK_SIZE - self.bytes.len() % BLOCK_SIZE
    }

    /// Writes records so that the next one begins `left` bytes before the end of a segment.
    pub(in crate::postgres::wal) fn fill_segment(&mut self, left: usize) {
        self.fill(SEGMENT, left);
    }

    /// Writes records so that the next one begins `left` bytes before the end of a page.
    pub(in crate::postgres::wal) fn fill_page(&mut self, left: usize) {
        self.fill(BLOCK_SIZE, left);
    }

    fn fill(&mut self, unit: usize, left: usize) {
        assert!(left.is_multiple_of(8));
        loop {
            if left == 0 && !self.bytes.is_empty() && self.bytes.len().is_multiple_of(unit) {
                return;
            }
            self.page(0, 0);
            let to_unit = unit - self.bytes.len() % unit;
            let to_page = BLOCK_SIZE - self.bytes.len() % BLOCK_SIZE;
            if to_unit == left {
                return;
            }
            // Records on this page, the last of which leaves either nothing or what was asked for.
            let left_here = if to_unit == to_page { left } else { 0 };
            assert!(to_page >= left_here + 24, "too late on this page");
            let len = to_page - left_here;
            let len = if len > 4000 { 2000 } else { len };
            match len.checked_sub(24 + 5) {
                Some(data) => self.main_data(10, 0, 7, &vec![0x5A; data]),
                None => self.record(10, 0, 7, &[]),
            };
        }
    }

    /// Leaves the last record unfinished, as a crash does, at the next page's beginning, and goes on there.
    pub(in crate::postgres::wal) fn crash_in_last_record(&mut self) {
        let last = self.written.pop().unwrap();
        let begin = (last.lsn.0 - self.start) as usize;
        self.bytes.truncate(begin.next_multiple_of(BLOCK_SIZE));
        self.previous = self.written.last().map_or(self.start - 64, |record| record.lsn.0);
        self.page(8, 0);
    }

    /// Writes a segment switch.
    pub(in crate::postgres::wal) fn switch(&mut self) -> Lsn {
        let lsn = self.record(0, 0x40, 0, &[]);
        self.bytes.resize(self.bytes.len().next_multiple_of(SEGMENT), 0);
        lsn
    }

    /// Returns the segments, the last one filled up with zeros.
    pub(in crate::postgres::wal) fn segments(&self) -> Vec<Vec<u8>> {
        let mut bytes = self.bytes.clone();
        bytes.resize(bytes.len().next_multiple_of(SEGMENT), 0);
        bytes.chunks(SEGMENT).map(<[u8]>::to_vec).collect()
    }
}

/// Returns the body of a record that consists of main data only.
pub(in crate::postgres::wal) fn main_data(data: &[u8]) -> Vec<u8> {
    let mut body = vec![254];
    body.extend((data.len() as u32).to_le_bytes());
    body.extend(data);
    body
}
