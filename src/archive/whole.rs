//! Is an object that is there already whole?
//!
//! Its key says which content it should have, and nobody here can read it: a host that archives needs no identity. But its
//! length is known. LZ4 makes the same bytes of the same content, and age adds a header, which differs from object to
//! object and can be read by anybody, and then a fixed amount for each chunk. An object that was cut, as by a copy that ran
//! out of space, is shorter and must not be acknowledged. Another version of this program may have compressed it better; an
//! object that the index knows with its length is not measured anew.

use super::source::WalFile;
use super::targets::Target;
use crate::codec::{self, header_length, sealed_length, stream_length};
use crate::index::IndexHandle;
use crate::kind::{Error, Result};
use crate::repository::WalObject;
use std::io::Read;

/// The longest header that is looked at, in bytes: enough for a hundred recipients.
const LONGEST_HEADER: u64 = 64 << 10;

/// Fails with [`crate::kind::Kind::Corrupt`] where `held` cannot be the whole object of `file`, and notes the damage in
/// the index.
pub fn check(target: &Target<'_>, held: &WalObject, file: &mut WalFile, index: &IndexHandle) -> Result<()> {
    let (key, size) = (&held.object.key, held.object.size);
    let stored = index.run(|index| index.stored_size(file.sysid, &held.name.to_string(), held.crc)).flatten();
    if stored == Some(size) && size > 0 {
        return Ok(());
    }
    let expected = expected_length(target, held, file)?;
    if expected.is_some_and(|expected| size >= expected) {
        return Ok(());
    }
    let what = match expected {
        Some(expected) => format!("is {size} bytes long instead of {expected}"),
        None => format!("is {size} bytes long and does not begin as it should"),
    };
    let repository = target.repository;
    index.run(|index| index.note_damage(repository.url(), key, &what));
    Err(Error::corrupt(format!(
        "object \"{key}\" in repository \"{}\" {what} and does not count",
        repository.name()
    ))
    .with_hint(
        "walden sync replaces it by another repository's copy; where there is none, move it away, and the next call \
         stores it anew",
    ))
}

/// Returns the length that the object must have; none where it does not begin like one.
fn expected_length(target: &Target<'_>, held: &WalObject, file: &mut WalFile) -> Result<Option<u64>> {
    let key = &held.object.key;
    let encrypted = key.ends_with(codec::LZ4_AGE);
    let stream = stream_length(encrypted, |out| {
        file.pass(|piece| out.write_all(piece).map_err(|error| Error::other(format!("compress: {error}"))))
            .map(drop)
    })?;
    if !encrypted {
        return Ok(Some(stream));
    }
    let repository = target.repository;
    let failed = |error| repository.error("look into", &error);
    let mut start = Vec::new();
    let range = 0..held.object.size.min(LONGEST_HEADER);
    if !range.is_empty() {
        let stored = repository.storage().get(key, Some(range), &repository.deadline()).map_err(failed)?;
        stored.take(LONGEST_HEADER).read_to_end(&mut start).map_err(|error| {
            failed(crate::storage::Error::Unreachable(format!("read \"{key}\": {error}")))
        })?;
    }
    Ok(header_length(&start).map(|header| header + sealed_length(stream)))
}
