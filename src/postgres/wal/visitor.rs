//! Who looks at the records.

use super::record::Record;

/// Takes the records that a [`RecordReader`](super::RecordReader) finds, in the order of the log.
pub trait RecordVisitor {
    /// Takes a record.
    fn visit(&mut self, record: &Record<'_>);

    /// Returns whether the bodies of such records matter. Those of the others are not kept where they cross pages;
    /// on one page a body is always at hand.
    fn wants(&self, rmid: u8, info: u8) -> bool {
        let _ = (rmid, info);
        true
    }

    /// Takes bytes of a record that began in the segment before, of which nothing else is at hand.
    fn skip(&mut self, bytes: &[u8]) {
        let _ = bytes;
    }
}

impl<F: FnMut(&Record<'_>)> RecordVisitor for F {
    #[inline]
    fn visit(&mut self, record: &Record<'_>) {
        self(record);
    }
}

/// A visitor that looks at nothing.
#[derive(Debug, Default)]
pub struct Nobody;

impl RecordVisitor for Nobody {
    #[inline]
    fn visit(&mut self, _: &Record<'_>) {}

    fn wants(&self, _: u8, _: u8) -> bool {
        false
    }
}

/// Two visitors that see the same records.
#[derive(Debug)]
pub(super) struct Both<A, B>(pub(super) A, pub(super) B);

impl<A: RecordVisitor, B: RecordVisitor> RecordVisitor for Both<A, B> {
    #[inline]
    fn visit(&mut self, record: &Record<'_>) {
        self.0.visit(record);
        self.1.visit(record);
    }

    fn wants(&self, rmid: u8, info: u8) -> bool {
        self.0.wants(rmid, info) || self.1.wants(rmid, info)
    }

    fn skip(&mut self, bytes: &[u8]) {
        self.0.skip(bytes);
        self.1.skip(bytes);
    }
}
