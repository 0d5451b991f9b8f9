//! The S3 requests on the store's contents.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use s3s::checksum::ChecksumHasher;
use s3s::crypto::{Checksum as _, Crc32};
use s3s::dto::*;
use s3s::{S3, S3Request, S3Response, S3Result, s3_error};

use super::contents::{Claims, Object, Upload, hex, md5, receive, size};
use super::{Conditions, Shared, lock};

/// The least size of a part that is not the last one, as on AWS.
const MIN_PART: usize = 5 << 20;

/// The store's answers.
#[derive(Debug, Clone)]
pub(super) struct Objects {
    shared: Arc<Shared>,
}

impl Objects {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// Decides on `If-None-Match` and inserts, under one lock: of racing requests exactly one creates the object.
    fn commit(
        &self,
        bucket: &str,
        key: &str,
        condition: Option<&IfNoneMatch>,
        object: Object,
    ) -> S3Result<()> {
        let conditions = lock(&self.shared.behaviour).conditions;
        let mut contents = lock(&self.shared.contents);
        let object = Object { modified: object.modified - contents.behind, ..object };
        let objects = contents.bucket(bucket)?;
        if condition.is_some() {
            match conditions {
                Conditions::Refused => {
                    return Err(s3_error!(
                        NotImplemented,
                        "A header you provided implies functionality that is not implemented"
                    ));
                }
                Conditions::Enforced if objects.contains_key(key) => {
                    return Err(s3_error!(PreconditionFailed));
                }
                Conditions::Enforced | Conditions::Ignored => {}
            }
        }
        objects.insert(key.to_owned(), object);
        Ok(())
    }

    fn find(&self, bucket: &str, key: &str) -> S3Result<Object> {
        let hidden = lock(&self.shared.behaviour).hide_missing;
        let mut contents = lock(&self.shared.contents);
        let missing = || if hidden { s3_error!(AccessDenied) } else { s3_error!(NoSuchKey) };
        contents.bucket(bucket)?.get(key).cloned().ok_or_else(missing)
    }
}

#[async_trait::async_trait]
impl S3 for Objects {
    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let claims = Claims {
            md5: input.content_md5,
            length: input.content_length,
            checksum: Checksum {
                checksum_crc32: input.checksum_crc32,
                checksum_crc32c: input.checksum_crc32c,
                checksum_crc64nvme: input.checksum_crc64nvme,
                checksum_sha1: input.checksum_sha1,
                checksum_sha256: input.checksum_sha256,
                checksum_type: None,
            },
        };
        let object = receive(input.body, claims, req.trailing_headers.as_ref()).await?;
        let output = PutObjectOutput {
            e_tag: Some(ETag::Strong(object.etag.clone())),
            checksum_crc32: object.checksum.checksum_crc32.clone(),
            ..Default::default()
        };
        self.commit(&input.bucket, &input.key, input.if_none_match.as_ref(), object)?;
        Ok(S3Response::new(output))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let object = self.find(&input.bucket, &input.key)?;
        let whole = object.data.len() as u64;
        let mut output = GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified.into()),
            ..Default::default()
        };
        let mut data = object.data;
        if let Some(range) = input.range {
            let range = range.check(whole).map_err(|_| s3_error!(InvalidRange))?;
            output.content_range = Some(format!("bytes {}-{}/{whole}", range.start, range.end - 1));
            let index = |offset| usize::try_from(offset).expect("an offset fits");
            data = data.slice(index(range.start)..index(range.end));
        } else if input.checksum_mode.is_some() {
            output.checksum_crc32 = object.checksum.checksum_crc32;
            output.checksum_type = object.checksum.checksum_type;
        }
        output.content_length = Some(size(data.len()));
        output.body = Some(StreamingBlob::from(s3s::Body::from(data)));
        Ok(S3Response::new(output))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let input = req.input;
        let object = self.find(&input.bucket, &input.key)?;
        let mut output = HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(size(object.data.len())),
            e_tag: Some(ETag::Strong(object.etag)),
            last_modified: Some(object.modified.into()),
            ..Default::default()
        };
        if input.checksum_mode.is_some() {
            output.checksum_crc32 = object.checksum.checksum_crc32;
            output.checksum_crc32c = object.checksum.checksum_crc32c;
            output.checksum_crc64nvme = object.checksum.checksum_crc64nvme;
            output.checksum_sha1 = object.checksum.checksum_sha1;
            output.checksum_sha256 = object.checksum.checksum_sha256;
            output.checksum_type = object.checksum.checksum_type;
        }
        Ok(S3Response::new(output))
    }

    async fn list_objects_v2(
        &self,
        req: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let page_limit = lock(&self.shared.behaviour).page_limit.unwrap_or(1000);
        let asked = input.max_keys.map_or(1000, |keys| usize::try_from(keys).unwrap_or(0));
        let limit = asked.min(1000).min(page_limit);
        let prefix = input.prefix.clone().unwrap_or_default();
        let delimiter = input.delimiter.clone().filter(|delimiter| !delimiter.is_empty());
        let after = match &input.continuation_token {
            Some(token) => {
                let decoded = STANDARD.decode(token).ok().and_then(|bytes| String::from_utf8(bytes).ok());
                decoded.ok_or_else(|| {
                    s3_error!(InvalidArgument, "The continuation token provided is incorrect")
                })?
            }
            None => input.start_after.clone().unwrap_or_default(),
        };
        // A page that ended with a rolled-up prefix goes on behind everything below it.
        let done_prefix = delimiter.as_ref().filter(|delimiter| {
            input.continuation_token.is_some()
                && after.len() > prefix.len()
                && after.ends_with(delimiter.as_str())
        });

        let mut contents = lock(&self.shared.contents);
        let objects = contents.bucket(&input.bucket)?;
        let (mut keys, mut prefixes) = (Vec::new(), Vec::<CommonPrefix>::new());
        let (mut last, mut truncated) = (String::new(), false);
        // What has the prefix stands together.
        let from =
            if after < prefix { Bound::Included(prefix.clone()) } else { Bound::Excluded(after.clone()) };
        for (key, object) in objects.range::<String, _>((from, Bound::Unbounded)) {
            if !key.starts_with(&prefix) {
                break;
            }
            if done_prefix.is_some_and(|_| key.starts_with(&after)) {
                continue;
            }
            let rolled_up = delimiter.as_ref().and_then(|delimiter| {
                let end = key[prefix.len()..].find(delimiter.as_str())? + prefix.len() + delimiter.len();
                Some(key[..end].to_owned())
            });
            if rolled_up.is_some()
                && prefixes.last().and_then(|last| last.prefix.as_ref()) == rolled_up.as_ref()
            {
                continue;
            }
            if keys.len() + prefixes.len() == limit {
                truncated = true;
                break;
            }
            if let Some(rolled_up) = rolled_up {
                last.clone_from(&rolled_up);
                prefixes.push(CommonPrefix { prefix: Some(rolled_up) });
            } else {
                last.clone_from(key);
                keys.push(s3s::dto::Object {
                    key: Some(key.clone()),
                    size: Some(size(object.data.len())),
                    e_tag: Some(ETag::Strong(object.etag.clone())),
                    last_modified: Some(object.modified.into()),
                    ..Default::default()
                });
            }
        }
        Ok(S3Response::new(ListObjectsV2Output {
            name: Some(input.bucket),
            prefix: input.prefix,
            delimiter: input.delimiter,
            start_after: input.start_after,
            continuation_token: input.continuation_token,
            max_keys: Some(i32::try_from(limit).unwrap_or(1000)),
            key_count: Some(i32::try_from(keys.len() + prefixes.len()).unwrap_or(1000)),
            is_truncated: Some(truncated),
            next_continuation_token: truncated.then(|| STANDARD.encode(&last)),
            contents: Some(keys),
            common_prefixes: Some(prefixes),
            ..Default::default()
        }))
    }

    async fn delete_object(
        &self,
        req: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        lock(&self.shared.contents).bucket(&req.input.bucket)?.remove(&req.input.key);
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn delete_objects(
        &self,
        req: S3Request<DeleteObjectsInput>,
    ) -> S3Result<S3Response<DeleteObjectsOutput>> {
        let mut contents = lock(&self.shared.contents);
        let objects = contents.bucket(&req.input.bucket)?;
        let mut deleted = Vec::new();
        for identifier in req.input.delete.objects {
            objects.remove(&identifier.key);
            deleted.push(DeletedObject { key: Some(identifier.key), ..Default::default() });
        }
        if req.input.delete.quiet == Some(true) {
            deleted.clear();
        }
        Ok(S3Response::new(DeleteObjectsOutput { deleted: Some(deleted), ..Default::default() }))
    }

    async fn create_multipart_upload(
        &self,
        req: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let (bucket, key) = (req.input.bucket, req.input.key);
        let mut contents = lock(&self.shared.contents);
        contents.bucket(&bucket)?;
        contents.uploads_ever += 1;
        let id = format!("upload-{}", contents.uploads_ever);
        let upload = Upload { bucket: bucket.clone(), key: key.clone(), parts: BTreeMap::new() };
        contents.uploads.insert(id.clone(), upload);
        let (bucket, key, upload_id) = (Some(bucket), Some(key), Some(id));
        Ok(S3Response::new(CreateMultipartUploadOutput { bucket, key, upload_id, ..Default::default() }))
    }

    async fn upload_part(&self, req: S3Request<UploadPartInput>) -> S3Result<S3Response<UploadPartOutput>> {
        let input = req.input;
        lock(&self.shared.contents).upload(&input.upload_id, &input.bucket, &input.key)?;
        let claims = Claims {
            md5: input.content_md5,
            length: input.content_length,
            checksum: Checksum {
                checksum_crc32: input.checksum_crc32,
                checksum_crc32c: input.checksum_crc32c,
                checksum_crc64nvme: input.checksum_crc64nvme,
                checksum_sha1: input.checksum_sha1,
                checksum_sha256: input.checksum_sha256,
                checksum_type: None,
            },
        };
        let part = receive(input.body, claims, req.trailing_headers.as_ref()).await?;
        let output = UploadPartOutput {
            e_tag: Some(ETag::Strong(part.etag.clone())),
            checksum_crc32: part.checksum.checksum_crc32.clone(),
            ..Default::default()
        };
        let mut contents = lock(&self.shared.contents);
        contents.upload(&input.upload_id, &input.bucket, &input.key)?.parts.insert(input.part_number, part);
        Ok(S3Response::new(output))
    }

    async fn complete_multipart_upload(
        &self,
        req: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        let input = req.input;
        let (data, etag) = {
            let mut contents = lock(&self.shared.contents);
            let upload = contents.upload(&input.upload_id, &input.bucket, &input.key)?;
            assemble(upload, &input.multipart_upload.and_then(|upload| upload.parts).unwrap_or_default())?
        };
        if input.mpu_object_size.is_some_and(|claim| claim != size(data.len())) {
            return Err(s3_error!(InvalidRequest, "The object size does not match the one provided"));
        }
        let mut hasher = ChecksumHasher { crc32: Some(Crc32::new()), ..Default::default() };
        hasher.update(&data);
        let checksum = hasher.finalize();
        let full = input.checksum_type.is_none_or(|kind| kind.as_str() == ChecksumType::FULL_OBJECT);
        if full && input.checksum_crc32.is_some() && input.checksum_crc32 != checksum.checksum_crc32 {
            return Err(s3_error!(
                BadDigest,
                "The checksum you specified did not match the assembled object."
            ));
        }
        let object = Object::new(data.into(), etag.clone(), checksum);
        let checksum_crc32 = object.checksum.checksum_crc32.clone();
        // As on AWS, an upload whose condition fails stays open until it is aborted.
        self.commit(&input.bucket, &input.key, input.if_none_match.as_ref(), object)?;
        lock(&self.shared.contents).uploads.remove(&input.upload_id);
        Ok(S3Response::new(CompleteMultipartUploadOutput {
            bucket: Some(input.bucket),
            key: Some(input.key),
            e_tag: Some(ETag::Strong(etag)),
            checksum_crc32,
            ..Default::default()
        }))
    }

    async fn abort_multipart_upload(
        &self,
        req: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let input = req.input;
        let mut contents = lock(&self.shared.contents);
        contents.upload(&input.upload_id, &input.bucket, &input.key)?;
        contents.uploads.remove(&input.upload_id);
        Ok(S3Response::new(AbortMultipartUploadOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        lock(&self.shared.contents).bucket(&req.input.bucket)?;
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn create_bucket(
        &self,
        req: S3Request<CreateBucketInput>,
    ) -> S3Result<S3Response<CreateBucketOutput>> {
        let mut contents = lock(&self.shared.contents);
        if contents.buckets.contains_key(&req.input.bucket) {
            return Err(s3_error!(BucketAlreadyOwnedByYou));
        }
        contents.create_bucket(&req.input.bucket);
        Ok(S3Response::new(CreateBucketOutput::default()))
    }
}

/// Puts the listed parts together; returns the content and the entity tag in AWS's form for multipart.
fn assemble(upload: &Upload, listed: &[CompletedPart]) -> S3Result<(Vec<u8>, String)> {
    if listed.is_empty() {
        return Err(s3_error!(MalformedXML, "You must specify at least one part"));
    }
    let (mut data, mut digests, mut previous) = (Vec::new(), Vec::new(), 0);
    for (index, part) in listed.iter().enumerate() {
        let number = part.part_number.unwrap_or_default();
        if number <= previous {
            return Err(s3_error!(InvalidPartOrder));
        }
        previous = number;
        let stored = upload.parts.get(&number).ok_or_else(|| s3_error!(InvalidPart))?;
        if part.e_tag.as_ref().is_none_or(|tag| tag.value() != stored.etag) {
            return Err(s3_error!(InvalidPart));
        }
        if index + 1 < listed.len() && stored.data.len() < MIN_PART {
            return Err(s3_error!(EntityTooSmall));
        }
        data.extend_from_slice(&stored.data);
        digests.extend_from_slice(&md5(&stored.data));
    }
    Ok((data, format!("{}-{}", hex(&md5(&digests)), listed.len())))
}
