//! Buckets and objects in memory, and what is checked before anything gets in.

use std::collections::BTreeMap;
use std::time::{Duration, SystemTime};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use futures::StreamExt;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32, Crc32c, Crc64Nvme, Md5, Sha1, Sha256};
use s3s::dto::{Checksum, ChecksumType, StreamingBlob};
use s3s::{S3Error, S3Result, TrailingHeaders, s3_error};

/// One stored object.
#[derive(Debug, Clone)]
pub(super) struct Object {
    pub(super) data: Bytes,
    pub(super) etag: String,
    pub(super) checksum: Checksum,
    pub(super) modified: SystemTime,
}

impl Object {
    pub(super) fn new(data: Bytes, etag: String, mut checksum: Checksum) -> Self {
        checksum.checksum_type = Some(ChecksumType::from_static(ChecksumType::FULL_OBJECT));
        Self { data, etag, checksum, modified: SystemTime::now() }
    }
}

/// A multipart upload that is neither completed nor aborted.
#[derive(Debug)]
pub(super) struct Upload {
    pub(super) bucket: String,
    pub(super) key: String,
    pub(super) parts: BTreeMap<i32, Object>,
}

/// Everything that the store holds.
#[derive(Debug, Default)]
pub(super) struct Contents {
    pub(super) buckets: BTreeMap<String, BTreeMap<String, Object>>,
    pub(super) uploads: BTreeMap<String, Upload>,
    pub(super) uploads_ever: u64,
    /// How far the store's clock is behind.
    pub(super) behind: Duration,
}

impl Contents {
    pub(super) fn create_bucket(&mut self, name: &str) {
        self.buckets.entry(name.to_owned()).or_default();
    }

    pub(super) fn object(&self, bucket: &str, key: &str) -> Option<&Object> {
        self.buckets.get(bucket)?.get(key)
    }

    pub(super) fn keys(&self, bucket: &str) -> Vec<String> {
        self.buckets.get(bucket).map(|objects| objects.keys().cloned().collect()).unwrap_or_default()
    }

    pub(super) fn put(&mut self, bucket: &str, key: &str, data: Vec<u8>) {
        let mut hasher = ChecksumHasher { crc32: Some(Crc32::new()), ..Default::default() };
        hasher.update(&data);
        let object = Object::new(data.clone().into(), hex(&md5(&data)), hasher.finalize());
        self.buckets.entry(bucket.to_owned()).or_default().insert(key.to_owned(), object);
    }

    pub(super) fn remove(&mut self, bucket: &str, key: &str) -> bool {
        self.buckets.get_mut(bucket).is_some_and(|objects| objects.remove(key).is_some())
    }

    pub(super) fn damage(&mut self, bucket: &str, key: &str, offset: usize) -> bool {
        let object = self.buckets.get_mut(bucket).and_then(|objects| objects.get_mut(key));
        let Some(object) = object.filter(|object| offset < object.data.len()) else { return false };
        let mut data = object.data.to_vec();
        data[offset] ^= 1;
        object.data = data.into();
        true
    }

    pub(super) fn open_uploads(&self) -> usize {
        self.uploads.len()
    }

    pub(super) fn bucket(&mut self, name: &str) -> S3Result<&mut BTreeMap<String, Object>> {
        self.buckets.get_mut(name).ok_or_else(|| s3_error!(NoSuchBucket))
    }

    pub(super) fn upload(&mut self, id: &str, bucket: &str, key: &str) -> S3Result<&mut Upload> {
        let upload = self.uploads.get_mut(id).filter(|upload| upload.bucket == bucket && upload.key == key);
        upload.ok_or_else(|| s3_error!(NoSuchUpload))
    }
}

pub(super) fn md5(data: &[u8]) -> [u8; 16] {
    let mut hash = Md5::new();
    hash.update(data);
    hash.finalize()
}

pub(super) fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .flat_map(|byte| [byte >> 4, byte & 15])
        .filter_map(|digit| char::from_digit(digit.into(), 16))
        .collect()
}

/// A size as the S3 API counts: signed.
pub(super) fn size(length: usize) -> i64 {
    i64::try_from(length).expect("a size fits")
}

/// What a client claims about the bytes that it sends.
#[derive(Debug, Default)]
pub(super) struct Claims {
    pub(super) md5: Option<String>,
    pub(super) length: Option<i64>,
    pub(super) checksum: Checksum,
}

/// Reads a body to its end and compares it with every claim, in the headers and in the trailer, so that nothing is
/// stored unless all of them hold. The object keeps the checksums that were claimed, and always a CRC-32.
pub(super) async fn receive(
    body: Option<StreamingBlob>,
    mut claims: Claims,
    trailer: Option<&TrailingHeaders>,
) -> S3Result<Object> {
    let mut data = Vec::new();
    if let Some(mut body) = body {
        while let Some(chunk) = body.next().await {
            data.extend_from_slice(
                &chunk.map_err(|error| S3Error::with_source(s3s::S3ErrorCode::IncompleteBody, error))?,
            );
        }
    }
    if claims.length.is_some_and(|length| length != size(data.len())) {
        return Err(s3_error!(IncompleteBody));
    }
    if claims.md5.as_ref().is_some_and(|claim| *claim != STANDARD.encode(md5(&data))) {
        return Err(s3_error!(BadDigest, "The Content-MD5 you specified did not match what we received."));
    }
    if let Some(headers) = trailer.and_then(TrailingHeaders::take) {
        let claimed = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
        let checksum = &mut claims.checksum;
        checksum.checksum_crc32 = claimed("x-amz-checksum-crc32").or(checksum.checksum_crc32.take());
        checksum.checksum_crc32c = claimed("x-amz-checksum-crc32c").or(checksum.checksum_crc32c.take());
        checksum.checksum_crc64nvme =
            claimed("x-amz-checksum-crc64nvme").or(checksum.checksum_crc64nvme.take());
        checksum.checksum_sha1 = claimed("x-amz-checksum-sha1").or(checksum.checksum_sha1.take());
        checksum.checksum_sha256 = claimed("x-amz-checksum-sha256").or(checksum.checksum_sha256.take());
    }
    let claimed = claims.checksum;
    let mut hasher = ChecksumHasher {
        crc32: Some(Crc32::new()),
        crc32c: claimed.checksum_crc32c.as_ref().map(|_| Crc32c::new()),
        crc64nvme: claimed.checksum_crc64nvme.as_ref().map(|_| Crc64Nvme::new()),
        sha1: claimed.checksum_sha1.as_ref().map(|_| Sha1::new()),
        sha256: claimed.checksum_sha256.as_ref().map(|_| Sha256::new()),
    };
    hasher.update(&data);
    let found = hasher.finalize();
    let agrees = |claim: &Option<String>, found: &Option<String>| claim.is_none() || claim == found;
    if !(agrees(&claimed.checksum_crc32, &found.checksum_crc32)
        && agrees(&claimed.checksum_crc32c, &found.checksum_crc32c)
        && agrees(&claimed.checksum_crc64nvme, &found.checksum_crc64nvme)
        && agrees(&claimed.checksum_sha1, &found.checksum_sha1)
        && agrees(&claimed.checksum_sha256, &found.checksum_sha256))
    {
        return Err(s3_error!(BadDigest, "The checksum you specified did not match what we received."));
    }
    let etag = hex(&md5(&data));
    Ok(Object::new(data.into(), etag, found))
}
