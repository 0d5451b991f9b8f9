//! The create-only write, on stores that know `If-None-Match: *` and on those that do not.
//!
//! AWS, and the stores that follow it, answer 412 when the object is there, and 409 when another write of it is
//! under way. Some answer 501 or 400 to a header that they do not know: then it is left away, for the life of the
//! [`S3Storage`], and without the condition the store is asked first whether the object is there. Some ignore the
//! condition without a word (rclone's): those have to be configured so (`conditional_writes = false`).

use super::S3Storage;
use super::errors::Failure;
use crate::storage::{Deadline, Error, Put, Result};
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use md5::Digest;
use std::fmt::Write;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How often a write is repeated that met another one of the same object.
const CONFLICTS: u32 = 4;

/// The headers that some stores do not know.
pub(super) const CONDITION_HEADER: &str = "If-None-Match";
pub(super) const CHECKSUM_HEADER: &str = "x-amz-checksum-crc32";

/// What a write asks of the store beyond keeping the bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extras {
    pub(super) condition: bool,
    pub(super) checksum: bool,
}

pub(super) fn put_new(storage: &S3Storage, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
    let known = |refused: &AtomicBool| !refused.load(Ordering::Relaxed);
    let extras = Extras { condition: known(&storage.no_conditions), checksum: known(&storage.no_checksums) };
    let refusal = match attempt(storage, key, body, extras, deadline) {
        Err(failure) if failure.may_be_unknown_header() => failure,
        result => return result.map_err(|failure| failure.error),
    };
    for fewer in fewer(extras, refusal.status) {
        match attempt(storage, key, body, fewer, deadline) {
            Err(failure) if failure.may_be_unknown_header() => {}
            Err(failure) => return Err(failure.error),
            Ok(put) => {
                remember(&storage.no_conditions, !fewer.condition, &storage.url, CONDITION_HEADER);
                remember(&storage.no_checksums, !fewer.checksum, &storage.url, CHECKSUM_HEADER);
                return Ok(put);
            }
        }
    }
    Err(refusal.error)
}

/// Returns what to try after a refusal, the likeliest first: 501 is for headers "that imply functionality that is
/// not implemented".
pub(super) fn fewer(extras: Extras, status: Option<u16>) -> Vec<Extras> {
    let mut choices = vec![
        Extras { condition: false, ..extras },
        Extras { checksum: false, ..extras },
        Extras { condition: false, checksum: false },
    ];
    if status == Some(400) {
        choices.swap(0, 1);
    }
    choices.retain(|choice| *choice != extras);
    choices.dedup();
    choices
}

pub(super) fn remember(refused: &AtomicBool, now: bool, url: &str, header: &str) {
    if now && !refused.swap(true, Ordering::Relaxed) {
        tracing::warn!("store \"{url}\" does not accept the header {header}; it is left away");
    }
}

fn attempt(
    storage: &S3Storage,
    key: &str,
    body: &Bytes,
    extras: Extras,
    deadline: &Deadline,
) -> Result<Put, Failure> {
    if !extras.condition && storage.ask(key, deadline)?.is_some() {
        return Ok(Put::Existed);
    }
    let mut conflicts = 0;
    loop {
        let failure = match send(storage, key, body, extras, deadline) {
            Ok(()) => return Ok(Put::Created),
            Err(failure) => failure,
        };
        match failure.status {
            Some(412) => return existed(storage, key, &failure, deadline),
            Some(409) if conflicts < CONFLICTS => {
                conflicts += 1;
                std::thread::sleep(Duration::from_millis(fastrand::u64(20..=100) << conflicts));
                if storage.ask(key, deadline)?.is_some() {
                    return Ok(Put::Existed);
                }
            }
            _ => return Err(failure),
        }
    }
}

/// "Existed" becomes "archived" further up, so the object has to be seen.
pub(super) fn existed(
    storage: &S3Storage,
    key: &str,
    failure: &Failure,
    deadline: &Deadline,
) -> Result<Put, Failure> {
    match storage.ask(key, deadline) {
        Ok(Some(_)) => Ok(Put::Existed),
        Ok(None) => Err(Error::Unreachable(format!("{}, but it is not there", failure.error)).into()),
        // Whoever may write and list, but not read, sees it in the listing.
        Err(refused @ Error::Refused(_)) => {
            let found = crate::storage::Storage::list(storage, key, "", 1, deadline);
            if found.is_ok_and(|found| found.first().is_some_and(|object| object.key == key)) {
                Ok(Put::Existed)
            } else {
                Err(refused.into())
            }
        }
        Err(error) => Err(error.into()),
    }
}

fn send(
    storage: &S3Storage,
    key: &str,
    body: &Bytes,
    extras: Extras,
    deadline: &Deadline,
) -> Result<(), Failure> {
    let full = storage.full(key)?;
    let options = &storage.options;
    storage
        .call(&format!("PutObject \"{key}\""), deadline, |client| {
            let crc32 = extras.checksum.then(|| BASE64.encode(crc32fast::hash(body).to_be_bytes()));
            // Object Lock wants one or the other, and every store that was ever called S3 knows this one.
            let md5 = (!extras.checksum).then(|| BASE64.encode(md5::Md5::digest(body)));
            client
                .put_object()
                .bucket(&options.bucket)
                .key(&full)
                .body(ByteStream::from(body.clone()))
                .set_if_none_match(extras.condition.then(|| "*".to_owned()))
                .set_checksum_crc32(crc32)
                .set_content_md5(md5)
                .set_storage_class(options.storage_class.as_deref().map(StorageClass::from))
                .set_server_side_encryption(options.kms_key_id.as_ref().map(|_| ServerSideEncryption::AwsKms))
                .set_ssekms_key_id(options.kms_key_id.clone())
                .set_tagging((!options.tags.is_empty()).then(|| tagging(&options.tags)))
                .customize()
                // The signature covers the checksum, and the store checks that: no need to hash the body twice.
                .disable_payload_signing()
                .send()
        })
        .map(drop)
}

/// Returns tags as a URL's query.
pub(super) fn tagging(tags: &[(String, String)]) -> String {
    let tags: Vec<String> =
        tags.iter().map(|(name, value)| format!("{}={}", encode(name), encode(value))).collect();
    tags.join("&")
}

fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            let _ = write!(encoded, "%{byte:02X}"); // writing to a string does not fail
        }
        encoded
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tags_are_encoded_as_a_query() {
        let tags =
            [("cluster".to_owned(), "main".to_owned()), ("cost centre".to_owned(), "a=b&c".to_owned())];
        assert_eq!(tagging(&tags), "cluster=main&cost%20centre=a%3Db%26c");
    }

    #[test]
    fn a_refusal_leaves_away_one_header_after_the_other() {
        let all = Extras { condition: true, checksum: true };
        let plain = Extras { condition: false, checksum: false };
        let unconditional = Extras { condition: false, checksum: true };
        let unchecked = Extras { condition: true, checksum: false };
        assert_eq!(fewer(all, Some(501)), [unconditional, unchecked, plain]);
        assert_eq!(fewer(all, Some(400)), [unchecked, unconditional, plain]);
        assert_eq!(fewer(unchecked, Some(400)), [plain]);
        assert_eq!(fewer(plain, Some(501)), []);
    }
}
