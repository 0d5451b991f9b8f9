//! Reading little-endian integers at an offset. The `*_in` forms are for fixed layouts whose length is in the
//! type, the `*_at` forms for bytes of unknown length.

/// Returns the `N` bytes at `at`, or `None` where they do not exist.
#[inline]
pub(super) fn array_at<const N: usize>(bytes: &[u8], at: usize) -> Option<[u8; N]> {
    bytes.get(at..)?.first_chunk::<N>().copied()
}

#[inline]
pub(super) fn u16_at(bytes: &[u8], at: usize) -> Option<u16> {
    array_at(bytes, at).map(u16::from_le_bytes)
}

#[inline]
pub(super) fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    array_at(bytes, at).map(u32::from_le_bytes)
}

#[inline]
pub(super) fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    array_at(bytes, at).map(u64::from_le_bytes)
}

/// Returns the integer at a constant offset that lies within the layout; the callers' tests reach each of them.
#[inline]
pub(super) fn u16_in<const N: usize>(bytes: &[u8; N], at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

#[inline]
pub(super) fn u32_in<const N: usize>(bytes: &[u8; N], at: usize) -> u32 {
    u32::from(u16_in(bytes, at)) | u32::from(u16_in(bytes, at + 2)) << 16
}

#[inline]
pub(super) fn u64_in<const N: usize>(bytes: &[u8; N], at: usize) -> u64 {
    u64::from(u32_in(bytes, at)) | u64::from(u32_in(bytes, at + 4)) << 32
}
