//! The log of requests, and faults that are put between a request and its answer.

use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use hyper::header::{CONTENT_LENGTH, CONTENT_TYPE, IF_NONE_MATCH, RANGE};
use hyper::{Method, StatusCode};
use s3s::service::S3Service;
use s3s::{Body, HttpError, HttpResponse};

use super::{Shared, cut, lock};

/// The largest body that is held back to be spoiled.
const BODY_LIMIT: usize = 2 << 30;

/// What a request asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Operation {
    PutObject,
    GetObject,
    HeadObject,
    DeleteObject,
    DeleteObjects,
    ListObjectsV2,
    CreateMultipartUpload,
    UploadPart,
    CompleteMultipartUpload,
    AbortMultipartUpload,
    ListMultipartUploads,
    HeadBucket,
    CreateBucket,
    Other,
}

/// One request as the log keeps it.
#[derive(Debug, Clone)]
pub struct Request {
    pub operation: Operation,
    pub bucket: String,
    /// Empty for requests on a bucket.
    pub key: String,
    pub query: String,
    pub range: Option<String>,
    /// Whether it asked for the object not to exist yet.
    pub create_only: bool,
    /// The answer's status; none when there was no answer.
    pub status: Option<u16>,
}

/// What goes wrong.
#[derive(Debug, Clone)]
pub enum Fault {
    /// An error is answered and nothing is done: status and S3's code (`SlowDown`, `InternalError`, `AccessDenied`).
    Status(u16, &'static str),
    /// The connection is cut before anything is done.
    Reset,
    /// The request is carried out, and the connection is cut before the answer.
    ResetAfter,
    /// The answer's body breaks off after so many bytes; its `Content-Length` is the whole's.
    Truncate(usize),
    /// The answer's body ends after so many bytes as if that were all of it.
    Shorten(usize),
    /// The answer's body stalls for ever after so many bytes.
    Stall(usize),
    /// One bit in the middle of the answer's body is wrong.
    WrongBytes,
    /// No answer comes.
    Hang,
    /// The answer comes late.
    Delay(Duration),
}

/// When something goes wrong. `Rule::new(fault)` acts on every request, for ever.
#[derive(Debug, Clone)]
pub struct Rule {
    fault: Fault,
    operation: Option<Operation>,
    key_part: String,
    skip: usize,
    times: usize,
}

impl Rule {
    pub fn new(fault: Fault) -> Self {
        Self { fault, operation: None, key_part: String::new(), skip: 0, times: usize::MAX }
    }

    /// Restricts it to one kind of request.
    #[must_use]
    pub fn on(mut self, operation: Operation) -> Self {
        self.operation = Some(operation);
        self
    }

    /// Restricts it to keys (in listings and the like: queries) that contain a string.
    #[must_use]
    pub fn key(mut self, part: &str) -> Self {
        part.clone_into(&mut self.key_part);
        self
    }

    /// Lets so many matching requests pass first.
    #[must_use]
    pub fn after(mut self, requests: usize) -> Self {
        self.skip = requests;
        self
    }

    /// Ends after so many requests were spoiled.
    #[must_use]
    pub fn times(mut self, times: usize) -> Self {
        self.times = times;
        self
    }

    fn matches(&self, request: &Request) -> bool {
        let text = if request.key.is_empty() { &request.query } else { &request.key };
        self.operation.is_none_or(|operation| operation == request.operation) && text.contains(&self.key_part)
    }
}

/// Reads off a request what it asks for, as the S3 API lays it into method, path and query.
fn describe(request: &hyper::Request<hyper::body::Incoming>) -> Request {
    let path = percent_decode(request.uri().path().trim_start_matches('/'));
    let (bucket, key) = path.split_once('/').unwrap_or((&path, ""));
    let query = percent_decode(request.uri().query().unwrap_or_default());
    let has = |name: &str| query.split('&').any(|pair| pair.split('=').next() == Some(name));
    let operation = match (request.method(), key.is_empty()) {
        (&Method::PUT, false) if has("uploadId") => Operation::UploadPart,
        (&Method::PUT, false) => Operation::PutObject,
        (&Method::GET, false) if !has("uploadId") => Operation::GetObject,
        (&Method::HEAD, false) => Operation::HeadObject,
        (&Method::DELETE, false) if has("uploadId") => Operation::AbortMultipartUpload,
        (&Method::DELETE, false) => Operation::DeleteObject,
        (&Method::POST, false) if has("uploads") => Operation::CreateMultipartUpload,
        (&Method::POST, false) if has("uploadId") => Operation::CompleteMultipartUpload,
        (&Method::POST, true) if has("delete") => Operation::DeleteObjects,
        (&Method::GET, true) if has("list-type") => Operation::ListObjectsV2,
        (&Method::GET, true) if has("uploads") => Operation::ListMultipartUploads,
        (&Method::HEAD, true) => Operation::HeadBucket,
        (&Method::PUT, true) => Operation::CreateBucket,
        _ => Operation::Other,
    };
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok()).map(str::to_owned);
    Request {
        operation,
        bucket: bucket.to_owned(),
        key: key.to_owned(),
        query,
        range: header(RANGE),
        create_only: header(IF_NONE_MATCH).is_some(),
        status: None,
    }
}

fn percent_decode(text: &str) -> String {
    let mut decoded = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let pair = tail.get(..2).filter(|_| *first == b'%').and_then(|pair| std::str::from_utf8(pair).ok());
        if let Some(value) = pair.and_then(|pair| u8::from_str_radix(pair, 16).ok()) {
            decoded.push(value);
            rest = &tail[2..];
        } else {
            decoded.push(*first);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&decoded).into_owned()
}

/// Returns the fault for this request, and counts it against its rule.
fn choose(shared: &Shared, request: &Request) -> Option<Fault> {
    for rule in lock(&shared.rules).iter_mut().filter(|rule| rule.times > 0 && rule.matches(request)) {
        if rule.skip > 0 {
            rule.skip -= 1;
            continue;
        }
        // `usize::MAX` stands for "for ever"; no test makes that many requests.
        rule.times -= 1;
        return Some(rule.fault.clone());
    }
    None
}

/// Answers one request, or spoils the answer.
pub(super) async fn answer(
    shared: &Shared,
    service: &S3Service,
    request: hyper::Request<hyper::body::Incoming>,
) -> Result<HttpResponse, HttpError> {
    let description = describe(&request);
    let number = {
        let mut requests = lock(&shared.requests);
        requests.push(description.clone());
        requests.len() - 1
    };
    let behaviour = *lock(&shared.behaviour);
    if behaviour.down {
        return Err(cut());
    }
    if behaviour.hung {
        std::future::pending::<()>().await;
    }
    // A sleep of nothing takes up to two milliseconds.
    if !behaviour.latency.is_zero() {
        tokio::time::sleep(behaviour.latency).await;
    }

    let mut request = request.map(Body::from);
    let response = match choose(shared, &description) {
        Some(Fault::Reset) => return Err(cut()),
        Some(Fault::Hang) => std::future::pending().await,
        Some(Fault::Status(status, code)) => {
            // Read to its end first: a client that is still sending would see a cut connection instead.
            let _ = request.body_mut().store_all_limited(BODY_LIMIT).await;
            error_response(status, code)
        }
        fault => {
            let response = service.call(request).await?;
            match fault {
                None => response,
                Some(fault) => spoil(response, fault).await?,
            }
        }
    };
    // The test may have forgotten the requests meanwhile.
    if let Some(entry) = lock(&shared.requests).get_mut(number) {
        entry.status = Some(response.status().as_u16());
    }
    Ok(response)
}

fn error_response(status: u16, code: &str) -> HttpResponse {
    let text = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>fault on demand</Message></Error>"
    );
    let mut response = HttpResponse::new(Body::from(text));
    *response.status_mut() = StatusCode::from_u16(status).expect("a status");
    response.headers_mut().insert(CONTENT_TYPE, "application/xml".parse().expect("a header"));
    response
}

/// Spoils an answer whose request was carried out.
async fn spoil(response: HttpResponse, fault: Fault) -> Result<HttpResponse, HttpError> {
    let (mut parts, mut body) = response.into_parts();
    let bytes = body.store_all_limited(BODY_LIMIT).await.map_err(HttpError::new)?;
    let cut_at = |length: usize| bytes.slice(..length.min(bytes.len()));
    let body = match fault {
        Fault::ResetAfter => return Err(cut()),
        Fault::Delay(delay) => {
            tokio::time::sleep(delay).await;
            Body::from(bytes)
        }
        Fault::WrongBytes => {
            let mut wrong = bytes.to_vec();
            let middle = wrong.len() / 2;
            if let Some(byte) = wrong.get_mut(middle) {
                *byte ^= 0x10;
            }
            Body::from(wrong)
        }
        Fault::Shorten(length) => {
            let short = cut_at(length);
            parts.headers.insert(CONTENT_LENGTH, short.len().into());
            Body::from(short)
        }
        Fault::Truncate(length) | Fault::Stall(length) => {
            parts.headers.insert(CONTENT_LENGTH, bytes.len().into());
            let stalls = matches!(fault, Fault::Stall(_));
            let end = futures::stream::once(async move {
                if stalls {
                    std::future::pending::<()>().await;
                }
                // hyper sends what it has and then cuts the connection; without a pause it would send nothing.
                tokio::time::sleep(Duration::from_millis(20)).await;
                Err(std::io::Error::other("body cut on purpose"))
            });
            let begin = futures::stream::iter([Ok::<Bytes, std::io::Error>(cut_at(length))]);
            Body::from(s3s::dto::StreamingBlob::wrap(begin.chain(end)))
        }
        Fault::Status(..) | Fault::Reset | Fault::Hang => unreachable!("acts before the request"),
    };
    Ok(HttpResponse::from_parts(parts, body))
}
