//! Contributions and trackers as bytes: a tag, JSON under LZ4, raw parts, a checksum.

use serde::Serialize;
use serde::de::DeserializeOwned;

use super::super::super::ParseError;
use super::super::super::bytes::u32_at;

/// No JSON is longer than this, in bytes.
const MAX_JSON: usize = 64 << 20;
const CRC_LEN: usize = 4;

/// Returns the value and the raw parts as bytes.
pub(super) fn seal(tag: [u8; 4], value: &impl Serialize, parts: &[&[u8]]) -> Vec<u8> {
    // Plain data with string keys only: this cannot fail.
    let json = serde_json::to_vec(value).unwrap_or_default();
    let packed = lz4_flex::block::compress(&json);
    let mut bytes = tag.to_vec();
    bytes.extend((json.len() as u32).to_le_bytes());
    for part in std::iter::once(&packed[..]).chain(parts.iter().copied()) {
        bytes.extend((part.len() as u32).to_le_bytes());
        bytes.extend(part);
    }
    bytes.extend(crc32c::crc32c(&bytes).to_le_bytes());
    bytes
}

/// Returns the value and the raw parts that [`seal`] was given. `what` names it in errors.
pub(super) fn open<T: DeserializeOwned, const PARTS: usize>(
    what: &'static str,
    tag: [u8; 4],
    bytes: &[u8],
) -> Result<(T, [Vec<u8>; PARTS]), ParseError> {
    let Some((content, crc)) = bytes.split_last_chunk::<CRC_LEN>() else {
        return Err(ParseError::too_short(what, CRC_LEN, bytes.len()));
    };
    let (stored, computed) = (u32::from_le_bytes(*crc), crc32c::crc32c(content));
    if stored != computed {
        let [found, expected] = [stored, computed].map(|crc| format!("{crc:08X}"));
        return Err(ParseError::mismatch(what, format!("checksum {found}"), format!("checksum {expected}")));
    }
    let parse = || {
        let (found, rest) = content.split_first_chunk::<4>()?;
        let json_len = u32_at(rest, 0)? as usize;
        if *found != tag || json_len > MAX_JSON {
            return None;
        }
        let mut rest = rest.get(4..)?;
        let mut next = || {
            let (part, after) = rest.get(4..)?.split_at_checked(u32_at(rest, 0)? as usize)?;
            rest = after;
            Some(part)
        };
        let json = lz4_flex::block::decompress(next()?, json_len).ok()?;
        let value = serde_json::from_slice(&json).ok()?;
        let mut parts = [const { Vec::new() }; PARTS];
        for part in &mut parts {
            *part = next()?.to_vec();
        }
        Some((value, parts))
    };
    let expected = String::from_utf8_lossy(&tag).into_owned();
    parse().ok_or_else(|| ParseError::mismatch(what, "another format", expected))
}
