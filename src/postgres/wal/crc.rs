//! The CRC of a record (`COMP_CRC32C` over the body, then over the header up to the CRC).

use super::record::RecordHeader;

/// The longest body whose CRC is computed by way of a copy.
const COPIED_MAX: usize = 744;
/// What the header contributes.
const HEADER: usize = RecordHeader::CRC_AT;
const LEN: usize = (COPIED_MAX + HEADER).next_multiple_of(8);

/// Computes the CRC of records whose header and body are at hand.
#[derive(Debug, Clone)]
#[repr(align(64))]
pub(super) struct RecordCrc([u8; LEN]);

impl RecordCrc {
    pub(super) fn new() -> Self {
        Self([0; LEN])
    }

    /// Returns the CRC of a record whose header and body are those.
    ///
    /// The CPU takes eight bytes at a time, and most records are short and of odd length: two calls, with odd bytes
    /// before and after, take longer than the CRC itself. So body and header are laid end to end in a buffer whose
    /// end is aligned, with zeros before them to the next multiple of eight, and a start value that turns into the
    /// right one while the zeros are taken in.
    #[inline]
    pub(super) fn of(&mut self, header: &[u8; RecordHeader::LEN], body: &[u8]) -> u32 {
        if body.len() > COPIED_MAX {
            return crc32c::crc32c_append(crc32c::crc32c(body), &header[..HEADER]);
        }
        let begin = LEN - HEADER - body.len();
        let aligned = begin & !7;
        self.0[aligned..aligned + 8].fill(0);
        self.0[begin..LEN - HEADER].copy_from_slice(body);
        self.0[LEN - HEADER..].copy_from_slice(&header[..HEADER]);
        crc32c::crc32c_append(!BEFORE_ZEROS[begin % 8], &self.0[aligned..])
    }
}

/// The states of the CRC register that so many zero bytes turn into the one with which a CRC begins.
const BEFORE_ZEROS: [u32; 8] = before_zeros();

const fn before_zeros() -> [u32; 8] {
    /// The polynomial, lowest power first.
    const CASTAGNOLI: u32 = 0x82F6_3B78;
    let mut states = [u32::MAX; 8];
    let mut zeros = 1;
    while zeros < 8 {
        let mut state = states[zeros - 1];
        let mut bit = 0;
        while bit < 8 {
            // The step of the register backwards: the polynomial's top bit tells whether it was added.
            state = if state >> 31 == 1 { (state ^ CASTAGNOLI) << 1 | 1 } else { state << 1 };
            bit += 1;
        }
        states[zeros] = state;
        zeros += 1;
    }
    states
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn equals_the_crc_of_body_and_header(
            header: [u8; RecordHeader::LEN],
            body in prop::collection::vec(any::<u8>(), 0..2 * COPIED_MAX),
        ) {
            let whole = [&body, &header[..HEADER]].concat();
            prop_assert_eq!(RecordCrc::new().of(&header, &body), crc32c::crc32c(&whole));
        }
    }

    #[test]
    fn short_bodies_of_every_length() {
        let body: Vec<u8> = (0..=255).cycle().take(COPIED_MAX + 9).collect();
        let header: [u8; RecordHeader::LEN] = std::array::from_fn(|i| i as u8 + 1);
        for len in 0..=body.len() {
            let whole = [&body[..len], &header[..HEADER]].concat();
            assert_eq!(RecordCrc::new().of(&header, &body[..len]), crc32c::crc32c(&whole), "{len}");
        }
    }
}
