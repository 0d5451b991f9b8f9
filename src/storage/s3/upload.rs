//! The create-only write of a large object: a multipart upload whose completion bears the condition.
//!
//! Every part carries its CRC-32 and the completion that of the whole, which the store verifies and keeps. What a store
//! does not know of that is left away, as in `put`: then parts carry `Content-MD5`, and the store is asked whether
//! the object is there before the upload is completed.

use super::S3Storage;
use super::errors::Failure;
use super::put::{self, Extras};
use crate::storage::{Deadline, Error, Put, Result, Upload};
use aws_sdk_s3::error::SdkError;
use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumType, CompletedMultipartUpload, CompletedPart, ServerSideEncryption,
    StorageClass,
};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use bytes::Bytes;
use md5::Digest;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// How long the end of a call may be held up by giving back the parts of an upload that failed.
const ABORT_TIME: Duration = Duration::from_secs(5);

/// An upload that the store has begun.
pub(super) struct S3Upload<'a> {
    storage: &'a S3Storage,
    key: String,
    full: String,
    /// None once nothing of it is left in the store.
    id: Option<String>,
    parts: Vec<Part>,
    /// Whether the store was told that checksums come with it.
    checksums: bool,
    deadline: Deadline,
}

/// A part that the store has.
#[derive(Debug, Clone)]
struct Part {
    etag: String,
    crc: crc32fast::Hasher,
    length: u64,
}

/// Begins an upload.
pub(super) fn begin<'a>(storage: &'a S3Storage, key: &str, deadline: &Deadline) -> Result<S3Upload<'a>> {
    let full = storage.full(key)?;
    let checksums = !storage.no_checksums.load(Ordering::Relaxed);
    let (id, checksums) = match create(storage, key, &full, checksums, deadline) {
        Err(failure) if checksums && failure.may_be_unknown_header() => {
            let id = create(storage, key, &full, false, deadline).map_err(|failure| failure.error)?;
            put::remember(&storage.no_checksums, true, &storage.url, put::CHECKSUM_HEADER);
            (id, false)
        }
        answer => (answer.map_err(|failure| failure.error)?, checksums),
    };
    let (key, deadline) = (key.to_owned(), deadline.clone());
    Ok(S3Upload { storage, key, full, id: Some(id), parts: Vec::new(), checksums, deadline })
}

fn create(
    storage: &S3Storage,
    key: &str,
    full: &str,
    checksums: bool,
    deadline: &Deadline,
) -> Result<String, Failure> {
    let what = format!("CreateMultipartUpload \"{key}\"");
    let options = &storage.options;
    let (answer, _) = storage.call(&what, deadline, |client| {
        let request = client
            .create_multipart_upload()
            .bucket(&options.bucket)
            .key(full)
            .set_checksum_algorithm(checksums.then_some(ChecksumAlgorithm::Crc32))
            .set_checksum_type(checksums.then_some(ChecksumType::FullObject))
            .set_storage_class(options.storage_class.as_deref().map(StorageClass::from))
            .set_server_side_encryption(options.kms_key_id.as_ref().map(|_| ServerSideEncryption::AwsKms))
            .set_ssekms_key_id(options.kms_key_id.clone())
            .set_tagging((!options.tags.is_empty()).then(|| put::tagging(&options.tags)));
        async {
            match request.send().await {
                Ok(answer) => Ok(answer.upload_id),
                Err(error) => misnamed_id(&error).map(Some).ok_or(error),
            }
        }
    })?;
    let id = answer.filter(|id| !id.is_empty());
    id.ok_or_else(|| Error::Unreachable(format!("{what}: an answer without upload id")).into())
}

/// Returns the upload's id from an answer that the SDK does not understand: rclone's names the element around it
/// `InitiateMultipartUpload`.
fn misnamed_id<E>(error: &SdkError<E>) -> Option<String> {
    let answer = error.raw_response().filter(|answer| answer.status().is_success())?;
    let body = std::str::from_utf8(answer.body().bytes()?).ok()?;
    let (id, _) = body.split_once("<UploadId>")?.1.split_once("</UploadId>")?;
    let harmless = |c: char| c.is_ascii_alphanumeric() || "-_.~".contains(c);
    (!id.is_empty() && id.chars().all(harmless)).then(|| id.to_owned())
}

fn encoded(crc: &crc32fast::Hasher) -> String {
    BASE64.encode(crc.clone().finalize().to_be_bytes())
}

impl S3Upload<'_> {
    fn id(&self) -> Result<&str> {
        self.id.as_deref().ok_or_else(|| Error::Refused(format!("upload of \"{}\" has ended", self.key)))
    }

    fn send(&self, index: u32, bytes: &Bytes, crc: &crc32fast::Hasher) -> Result<String> {
        let number = index + 1;
        let what = format!("UploadPart {number} of \"{}\"", self.key);
        let id = self.id()?;
        let (answer, _) = self
            .storage
            .call(&what, &self.deadline, |client| {
                client
                    .upload_part()
                    .bucket(&self.storage.options.bucket)
                    .key(&self.full)
                    .upload_id(id)
                    .part_number(number.cast_signed())
                    .body(ByteStream::from(bytes.clone()))
                    .set_checksum_crc32(self.checksums.then(|| encoded(crc)))
                    .set_content_md5((!self.checksums).then(|| BASE64.encode(md5::Md5::digest(bytes))))
                    .customize()
                    // As in `put`: the store checks what the signature covers.
                    .disable_payload_signing()
                    .send()
            })
            .map_err(|failure| failure.error)?;
        let etag = answer.e_tag.filter(|etag| !etag.is_empty());
        etag.ok_or_else(|| Error::Unreachable(format!("{what}: an answer without entity tag")))
    }

    /// Returns the CRC-32 and the length of all parts together.
    fn whole(&self) -> (crc32fast::Hasher, u64) {
        let (mut crc, mut length) = (crc32fast::Hasher::new(), 0);
        for part in &self.parts {
            crc.combine(&part.crc);
            length += part.length;
        }
        (crc, length)
    }

    fn finish(&self, extras: Extras) -> Result<Put, Failure> {
        let (storage, deadline) = (self.storage, &self.deadline);
        if !extras.condition && storage.ask(&self.key, deadline)?.is_some() {
            return Ok(Put::Existed);
        }
        let parts = self.parts.iter().zip(1..).map(|(part, number)| {
            let crc = extras.checksum.then(|| encoded(&part.crc));
            CompletedPart::builder().part_number(number).e_tag(&part.etag).set_checksum_crc32(crc).build()
        });
        let parts = CompletedMultipartUpload::builder().set_parts(Some(parts.collect())).build();
        let (crc, length) = self.whole();
        let length = i64::try_from(length).unwrap_or(i64::MAX);
        let id = self.id()?;
        let answer = storage.call(&format!("CompleteMultipartUpload \"{}\"", self.key), deadline, |client| {
            client
                .complete_multipart_upload()
                .bucket(&storage.options.bucket)
                .key(&self.full)
                .upload_id(id)
                .multipart_upload(parts)
                .set_if_none_match(extras.condition.then(|| "*".to_owned()))
                .set_checksum_crc32(extras.checksum.then(|| encoded(&crc)))
                .set_checksum_type(extras.checksum.then_some(ChecksumType::FullObject))
                .set_mpu_object_size(extras.checksum.then_some(length))
                .send()
        });
        let Err(failure) = answer else { return Ok(Put::Created) };
        match failure.status {
            Some(412) => put::existed(storage, &self.key, &failure, deadline),
            // The answer to an attempt before this one may have been lost, or another writer is at it.
            Some(404 | 409) => match storage.ask(&self.key, deadline)? {
                Some(_) => Ok(Put::Existed),
                None => Err(failure),
            },
            _ => Err(failure),
        }
    }

    fn abort(&mut self) {
        let Some(id) = self.id.take() else { return };
        let deadline = Deadline::stall(ABORT_TIME);
        deadline.cut_after(ABORT_TIME);
        let what = format!("AbortMultipartUpload \"{}\"", self.key);
        let answer = self.storage.call(&what, &deadline, |client| {
            let request =
                client.abort_multipart_upload().bucket(&self.storage.options.bucket).key(&self.full);
            request.upload_id(id).send()
        });
        if let Err(failure) = answer
            && failure.status != Some(404)
        {
            let error = failure.error;
            tracing::warn!(
                "parts of \"{}\" may be left in store \"{}\": {error}; hint: a lifecycle rule that aborts incomplete \
                 multipart uploads removes them",
                self.key,
                self.storage.url
            );
        }
    }
}

impl Upload for S3Upload<'_> {
    fn part(&mut self, index: u32, bytes: &Bytes) -> Result<()> {
        let at = index as usize;
        if at > self.parts.len() {
            return Err(Error::Refused(format!("part {index} of \"{}\" comes too early", self.key)));
        }
        let mut crc = crc32fast::Hasher::new();
        crc.update(bytes);
        let etag = self.send(index, bytes, &crc)?;
        let part = Part { etag, crc, length: bytes.len() as u64 };
        match self.parts.get_mut(at) {
            Some(again) => *again = part,
            None => self.parts.push(part),
        }
        Ok(())
    }

    fn complete(&mut self) -> Result<Put> {
        if self.parts.is_empty() {
            self.part(0, &Bytes::new())?; // an upload has at least one
        }
        let condition = !self.storage.no_conditions.load(Ordering::Relaxed);
        let extras = Extras { condition, checksum: self.checksums };
        let put = match self.finish(extras) {
            Err(failure) if failure.may_be_unknown_header() => self.finish_with_fewer(extras, &failure)?,
            answer => answer.map_err(|failure| failure.error)?,
        };
        if put == Put::Created {
            self.id = None; // what existed leaves the parts to be given back
        }
        Ok(put)
    }
}

impl S3Upload<'_> {
    fn finish_with_fewer(&self, extras: Extras, refusal: &Failure) -> Result<Put> {
        for fewer in put::fewer(extras, refusal.status) {
            match self.finish(fewer) {
                Err(failure) if failure.may_be_unknown_header() => {}
                Err(failure) => return Err(failure.error),
                Ok(put) => {
                    let storage = self.storage;
                    put::remember(
                        &storage.no_conditions,
                        !fewer.condition,
                        &storage.url,
                        put::CONDITION_HEADER,
                    );
                    put::remember(&storage.no_checksums, !fewer.checksum, &storage.url, put::CHECKSUM_HEADER);
                    return Ok(put);
                }
            }
        }
        Err(refusal.error.clone())
    }
}

impl Drop for S3Upload<'_> {
    fn drop(&mut self) {
        self.abort();
    }
}
