//! S3 and what speaks it, as a store.
//!
//! Here are the calls of [`Storage`]; `put.rs` has the create-only write, `upload.rs` that in parts, `reader.rs` an object's bytes, `errors.rs`
//! what answers mean, `client.rs` the SDK's set-up and its runtime, `http.rs` and `watch.rs` the connections and how
//! long they may stall, and `post.rs` a request to others than stores. Retries are not here: see [`super::Retry`].

mod client;
mod errors;
mod http;
mod post;
mod put;
mod reader;
mod upload;
mod watch;

use super::{Deadline, Error, Object, Put, Result, Storage, Upload};
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::types::ChecksumMode;
use base64::Engine;
use bytes::Bytes;
use errors::{Failure, failure};
use reader::Body;
use std::io::{self, Read};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use tokio::sync::OnceCell;
use watch::Watch;

pub use post::post_json;

/// The most keys that S3 lists in one answer.
const PAGE: usize = 1000;

/// What one needs to know of a bucket. Credentials come from AWS's standard chain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct S3Options {
    /// The bucket's name.
    pub bucket: String,
    /// What all keys begin with, without slashes around it; may be empty.
    pub prefix: String,
    /// The region; else from the environment, the profile or the machine.
    pub region: Option<String>,
    /// The URL of a store that is not AWS's.
    pub endpoint: Option<String>,
    /// Whether the bucket goes into the path of URLs instead of the host's name.
    pub path_style: bool,
    /// The certificates (PEM) of those that vouch for the store, instead of the system's.
    pub ca_file: Option<PathBuf>,
    /// The profile in AWS's own configuration files; it comes before credentials from the environment.
    pub profile: Option<String>,
    /// The storage class of new objects.
    pub storage_class: Option<String>,
    /// The KMS key that the store encrypts new objects with.
    pub kms_key_id: Option<String>,
    /// Tags of new objects.
    pub tags: Vec<(String, String)>,
    /// Whether new objects carry a CRC-32 that the store verifies and keeps; else `Content-MD5`, that it verifies.
    pub checksums: bool,
    /// Whether the store is asked to create objects only (`If-None-Match: *`); else it is asked whether the object
    /// is there before each write, which does not decide between writers that race.
    pub conditional_writes: bool,
}

impl Default for S3Options {
    fn default() -> Self {
        Self {
            bucket: String::new(),
            prefix: String::new(),
            region: None,
            endpoint: None,
            path_style: false,
            ca_file: None,
            profile: None,
            storage_class: None,
            kms_key_id: None,
            tags: Vec::new(),
            checksums: true,
            conditional_writes: true,
        }
    }
}

/// A bucket, or what lies below a prefix in it.
#[derive(Debug)]
pub struct S3Storage {
    url: String,
    /// Empty, or ends in a slash.
    prefix: String,
    options: S3Options,
    /// Fixed credentials, instead of the chain's.
    credentials: Option<Credentials>,
    client: OnceCell<Client>,
    /// What this store turned out not to know. See [`put`].
    no_conditions: AtomicBool,
    no_checksums: AtomicBool,
}

impl S3Storage {
    /// Returns the store. Does no I/O: client, connections and credentials come with the first request.
    pub fn new(options: S3Options) -> Self {
        let prefix = options.prefix.trim_matches('/');
        let url = format!("s3://{}/{prefix}", options.bucket).trim_end_matches('/').to_owned();
        let prefix = if prefix.is_empty() { String::new() } else { format!("{prefix}/") };
        Self {
            url,
            prefix,
            no_conditions: AtomicBool::new(!options.conditional_writes),
            no_checksums: AtomicBool::new(!options.checksums),
            options,
            credentials: None,
            client: OnceCell::new(),
        }
    }

    /// Returns the store with fixed credentials, for tests: they cannot change the environment that all share.
    #[doc(hidden)]
    pub fn with_credentials(options: S3Options, access_key: &str, secret_key: &str) -> Self {
        let credentials = Credentials::new(access_key, secret_key, None, None, "test");
        Self { credentials: Some(credentials), ..Self::new(options) }
    }

    fn full(&self, key: &str) -> Result<String> {
        if key.is_empty() || key.split('/').any(|part| part.is_empty() || part == "." || part == "..") {
            return Err(Error::Refused(format!("\"{key}\" is not a key")));
        }
        Ok(format!("{}{key}", self.prefix))
    }

    /// Makes a request on the calling thread, watched, and waits for its answer. `what` names it in errors.
    fn call<T, E, F>(
        &self,
        what: &str,
        deadline: &Deadline,
        request: impl FnOnce(Client) -> F,
    ) -> Result<(T, Arc<Watch>), Failure>
    where
        F: Future<Output = Result<T, SdkError<E>>>,
        E: ProvideErrorMetadata + std::error::Error + 'static,
    {
        let watch = Arc::new(Watch::default());
        let answer = async {
            let client = self
                .client
                .get_or_try_init(|| client::connect(&self.options, self.credentials.as_ref()))
                .await?;
            // The SDK's futures are large.
            let answer: std::pin::Pin<Box<dyn Future<Output = _>>> = Box::pin(request(client.clone()));
            answer.await.map_err(|error| failure(what, &error))
        };
        let answer = Watch::over(&watch, answer);
        let answer = client::runtime()?.block_on(watch.wait(deadline, what, answer))??;
        Ok((answer, watch))
    }

    /// Asks whether an object is there. A missing one is none, although a missing bucket looks the same.
    fn ask(&self, key: &str, deadline: &Deadline) -> Result<Option<Object>> {
        let full = self.full(key)?;
        let what = format!("HeadObject \"{key}\"");
        let head = |with_checksum: bool| {
            self.call(&what, deadline, |client| {
                let mode = with_checksum.then_some(ChecksumMode::Enabled);
                let request = client.head_object().bucket(&self.options.bucket).key(&full);
                request.set_checksum_mode(mode).send()
            })
        };
        let answer = match head(true) {
            // Of an object under KMS the checksum is shown only to those who may decrypt.
            Err(failure) if failure.status == Some(403) => head(false),
            answer => answer,
        };
        match answer {
            Ok((head, _)) => {
                let size = head.content_length().and_then(|size| u64::try_from(size).ok());
                let size =
                    size.ok_or_else(|| Error::Unreachable(format!("{what}: an answer without length")))?;
                Ok(Some(Object {
                    key: key.to_owned(),
                    size,
                    modified: head.last_modified().and_then(timestamp),
                    crc32: head.checksum_crc32().and_then(crc32),
                }))
            }
            Err(failure) if failure.status == Some(404) => Ok(None),
            Err(failure) => Err(failure.error),
        }
    }

    /// Returns [`Error::NotFound`] if the store agrees. An answer to HEAD has no body that could say which of bucket
    /// and object is missing, or that it was S3 who gave it; a listing has.
    fn missing(&self, key: &str, deadline: &Deadline) -> Error {
        match self.list(key, "", 1, deadline) {
            Ok(found) if found.first().is_some_and(|object| object.key == key) => {
                Error::Unreachable(format!("HeadObject \"{key}\": HTTP status 404, although it is listed"))
            }
            Ok(_) => Error::NotFound(key.to_owned()),
            Err(error) => error,
        }
    }

    fn page(&self, what: &str, page: Page<'_>, deadline: &Deadline) -> Result<ListObjectsV2Output> {
        let listed = self.call(what, deadline, |client| {
            let request = client
                .list_objects_v2()
                .bucket(&self.options.bucket)
                .prefix(format!("{}{}", self.prefix, page.prefix))
                .set_delimiter(page.delimiter.map(str::to_owned))
                .set_start_after(page.start_after.map(|key| format!("{}{key}", self.prefix)))
                .set_continuation_token(page.token)
                .max_keys(i32::try_from(page.limit.min(PAGE)).unwrap_or(1000));
            request.send()
        });
        listed.map(|(page, _)| page).map_err(|failure| failure.error)
    }
}

/// One page of a listing.
#[derive(Default)]
struct Page<'a> {
    prefix: &'a str,
    delimiter: Option<&'a str>,
    start_after: Option<&'a str>,
    token: Option<String>,
    limit: usize,
}

fn timestamp(time: &aws_sdk_s3::primitives::DateTime) -> Option<jiff::Timestamp> {
    jiff::Timestamp::new(time.secs(), time.subsec_nanos().cast_signed()).ok()
}

/// Reads a checksum that covers a whole object; one over the checksums of parts ends in `-<parts>`.
fn crc32(text: &str) -> Option<u32> {
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).ok()?;
    Some(u32::from_be_bytes(bytes.try_into().ok()?))
}

/// Returns first byte, last byte and size from a header like `bytes 0-499/1234`.
fn content_range(header: &str) -> Option<(u64, u64, u64)> {
    let (range, size) = header.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    Some((first.parse().ok()?, last.parse().ok()?, size.parse().ok()?))
}

impl Storage for S3Storage {
    fn url(&self) -> &str {
        &self.url
    }

    fn put_new(&self, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
        put::put_new(self, key, body, deadline)
    }

    fn upload_new<'a>(&'a self, key: &str, deadline: &Deadline) -> Result<Box<dyn Upload + 'a>> {
        Ok(Box::new(upload::begin(self, key, deadline)?))
    }

    fn get(&self, key: &str, range: Option<Range<u64>>, deadline: &Deadline) -> Result<Box<dyn Read + Send>> {
        let full = self.full(key)?;
        if let Some(range) = &range
            && range.is_empty()
        {
            // HTTP has no word for no bytes.
            let size = self.head(key, deadline)?.size;
            let beyond = || {
                Error::Refused(format!("object \"{key}\" ends at byte {size}, wanted up to {}", range.end))
            };
            return if range.end > size { Err(beyond()) } else { Ok(Box::new(io::empty())) };
        }
        let what = format!("GetObject \"{key}\"");
        let answer = self.call(&what, deadline, |client| {
            let wanted = range.as_ref().map(|range| format!("bytes={}-{}", range.start, range.end - 1));
            // The SDK verifies the checksum of the whole, where the store has one, at the end of the body.
            let mode = (range.is_none() && self.options.checksums).then_some(ChecksumMode::Enabled);
            let request = client.get_object().bucket(&self.options.bucket).key(&full);
            request.set_range(wanted).set_checksum_mode(mode).send()
        });
        let (object, watch) = match answer {
            Ok(answer) => answer,
            Err(failure) if failure.is_no_such_key() => return Err(Error::NotFound(key.to_owned())),
            Err(failure) => return Err(failure.error),
        };
        let size = object.content_length().and_then(|size| u64::try_from(size).ok());
        let size = size.ok_or_else(|| Error::Unreachable(format!("{what}: an answer without length")))?;
        if let Some(range) = &range {
            let given = object.content_range().and_then(content_range);
            let (first, last, whole) =
                given.ok_or_else(|| Error::Refused(format!("{what}: the store does not serve ranges")))?;
            if (first, last.saturating_add(1)) != (range.start, range.end) || size != range.end - range.start
            {
                return Err(Error::Refused(format!(
                    "object \"{key}\" ends at byte {whole}, wanted {} up to {}",
                    range.start, range.end
                )));
            }
        }
        let (deadline, chunk) = (deadline.clone(), Bytes::new());
        Ok(Box::new(Body { what, stream: object.body, watch, deadline, left: size, size, chunk }))
    }

    fn head(&self, key: &str, deadline: &Deadline) -> Result<Object> {
        self.ask(key, deadline)?.ok_or_else(|| self.missing(key, deadline))
    }

    fn list(
        &self,
        prefix: &str,
        start_after: &str,
        limit: usize,
        deadline: &Deadline,
    ) -> Result<Vec<Object>> {
        let what = format!("ListObjectsV2 \"{prefix}\"");
        let (mut found, mut token) = (Vec::new(), None);
        while found.len() < limit {
            let page = Page {
                prefix,
                start_after: (!start_after.is_empty()).then_some(start_after),
                token,
                limit: limit - found.len(),
                ..Page::default()
            };
            let page = self.page(&what, page, deadline)?;
            for object in page.contents() {
                let key = object.key().and_then(|key| key.strip_prefix(&self.prefix)).unwrap_or_default();
                // A key that ends in a slash is some console's idea of a folder. The other conditions hold with
                // every store that was tried; a wrong object in a listing would be a wrong answer to PostgreSQL.
                if key.is_empty() || key.ends_with('/') || !key.starts_with(prefix) || key <= start_after {
                    continue;
                }
                found.push(Object {
                    key: key.to_owned(),
                    size: object.size().and_then(|size| u64::try_from(size).ok()).unwrap_or(0),
                    modified: object.last_modified().and_then(timestamp),
                    crc32: None,
                });
            }
            token = next_token(&what, &page)?;
            if token.is_none() {
                break;
            }
        }
        found.truncate(limit);
        Ok(found)
    }

    fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>> {
        let what = format!("ListObjectsV2 \"{prefix}\"");
        let (mut names, mut token) = (Vec::new(), None);
        loop {
            let page = Page { prefix, delimiter: Some("/"), token, limit: PAGE, ..Page::default() };
            let page = self.page(&what, page, deadline)?;
            let folders = page.common_prefixes().iter().filter_map(|folder| folder.prefix());
            let folders =
                folders.filter_map(|folder| folder.strip_prefix(&self.prefix)?.strip_prefix(prefix));
            names.extend(folders.map(|folder| folder.trim_end_matches('/').to_owned()));
            token = next_token(&what, &page)?;
            if token.is_none() {
                break;
            }
        }
        names.retain(|name| !name.is_empty());
        names.sort();
        names.dedup();
        Ok(names)
    }

    fn writes_conditionally(&self) -> bool {
        !self.no_conditions.load(std::sync::atomic::Ordering::Relaxed)
    }

    fn delete(&self, key: &str, deadline: &Deadline) -> Result<()> {
        let full = self.full(key)?;
        let answer = self.call(&format!("DeleteObject \"{key}\""), deadline, |client| {
            let request = client.delete_object().bucket(&self.options.bucket).key(&full);
            request.send()
        });
        match answer {
            Ok(_) => Ok(()),
            // S3 itself does not say so, others do.
            Err(failure) if failure.is_no_such_key() => Ok(()),
            Err(failure) => Err(failure.error),
        }
    }

    fn probe(&self, deadline: &Deadline) -> Result<()> {
        // A listing, not HeadBucket: it asks for the right that everything else needs, and its answer has a body
        // that says what is wrong.
        let what = format!("ListObjectsV2 of bucket \"{}\"", self.options.bucket);
        self.page(&what, Page { limit: 1, ..Page::default() }, deadline).map(drop)
    }
}

/// Returns where a listing goes on. One that is cut without saying where is no listing.
fn next_token(what: &str, page: &ListObjectsV2Output) -> Result<Option<String>> {
    if !page.is_truncated().unwrap_or(false) {
        return Ok(None);
    }
    let token = page.next_continuation_token().filter(|token| !token.is_empty());
    token.map(|token| Some(token.to_owned())).ok_or_else(|| {
        Error::Refused(format!("{what}: the store cuts the listing and does not say where it goes on"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_and_keys_have_no_doubled_slashes() {
        let storage = |prefix: &str| {
            S3Storage::new(S3Options {
                bucket: "acme".to_owned(),
                prefix: prefix.to_owned(),
                ..S3Options::default()
            })
        };
        for (prefix, url, key) in [
            ("", "s3://acme", "main/1"),
            ("prod", "s3://acme/prod", "prod/main/1"),
            ("/prod/wal/", "s3://acme/prod/wal", "prod/wal/main/1"),
        ] {
            assert_eq!(storage(prefix).url(), url);
            assert_eq!(storage(prefix).full("main/1").unwrap(), key);
        }
        for key in ["", "/", "a//b", "a/", "/a", "a/../b", "."] {
            assert!(storage("prod").full(key).is_err(), "{key}");
        }
    }

    #[test]
    fn headers_are_read_strictly() {
        assert_eq!(content_range("bytes 5-9/100"), Some((5, 9, 100)));
        for header in ["bytes */100", "bytes 5-9/*", "5-9/100", "bytes 5/100", ""] {
            assert_eq!(content_range(header), None, "{header}");
        }
        assert_eq!(crc32("y/Q5Jg=="), Some(0xcbf4_3926));
        for header in ["y/Q5Jg==-3", "y/Q5", "", "not base64"] {
            assert_eq!(crc32(header), None, "{header}");
        }
    }

    #[test]
    fn what_has_no_server_fails_without_one() {
        let deadline = Deadline::stall(std::time::Duration::from_secs(5));
        let options = S3Options {
            bucket: "acme".to_owned(),
            endpoint: Some("localhost:9000".to_owned()),
            ..S3Options::default()
        };
        let error = S3Storage::with_credentials(options, "access", "secret").probe(&deadline).unwrap_err();
        assert!(matches!(&error, Error::Refused(text) if text.contains("localhost:9000")), "{error}");
    }
}
