//! Pages of WAL that a reader does not refuse at once.

const PAGE: usize = 8192;

/// Magic numbers of versions, known and unknown.
pub const MAGICS: [u16; 6] = [0xD106, 0xD10D, 0xD110, 0xD113, 0xD116, 0xD118];

/// Gives each page the header that it should have.
pub fn repair_headers(segment: &mut [u8], magic: u16) {
    for (page, number) in segment.chunks_mut(PAGE).zip(0u64..) {
        if page.len() < 40 {
            return;
        }
        page[..2].copy_from_slice(&magic.to_le_bytes());
        page[2] = (page[2] & 0x0D) | u8::from(number == 0) << 1;
        page[3] = 0;
        page[4..8].copy_from_slice(&1u32.to_le_bytes());
        page[8..16].copy_from_slice(&((3 << 20) + number * PAGE as u64).to_le_bytes());
        if number == 0 {
            page[32..36].copy_from_slice(&(1u32 << 20).to_le_bytes());
            page[36..40].copy_from_slice(&(PAGE as u32).to_le_bytes());
        }
    }
}
