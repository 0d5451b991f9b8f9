//! What S3 and the way to it answer, told apart: absent, refused, or worth trying again.

use super::http::TlsSetup;
use crate::storage::Error;
use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use std::error::Error as StdError;
use std::fmt::Display;
use std::io;

/// The longest message of a store that is passed on.
const MESSAGE_LIMIT: usize = 300;

/// A call that failed.
#[derive(Debug)]
pub(super) struct Failure {
    /// The answer's status; none when there was no answer.
    pub(super) status: Option<u16>,
    /// S3's error code; none where the answer had no body (HEAD) or was not S3's.
    pub(super) code: Option<String>,
    /// What the caller of the store is told. Never [`Error::NotFound`]: that takes more than one answer to say.
    pub(super) error: Error,
}

impl Failure {
    /// Returns whether S3 said that the object, and not the bucket, is missing.
    pub(super) fn is_no_such_key(&self) -> bool {
        self.status == Some(404) && self.code.as_deref() == Some("NoSuchKey")
    }

    /// Returns whether the store may have been put off by a header that it does not know. What is wrong with the
    /// bytes (`BadDigest`) or with the credentials must not lead to a request without checksum or condition.
    pub(super) fn may_be_unknown_header(&self) -> bool {
        match self.status {
            Some(501) => true,
            Some(400) => matches!(
                self.code.as_deref(),
                None | Some("NotImplemented" | "InvalidArgument" | "InvalidRequest" | "BadRequest")
            ),
            _ => false,
        }
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self { status: None, code: None, error }
    }
}

/// Returns what became of the call that `what` names (`PutObject "key"`).
pub(super) fn failure<E>(what: &str, error: &SdkError<E>) -> Failure
where
    E: ProvideErrorMetadata + StdError + 'static,
{
    let (status, header) = error.raw_response().map_or((None, None), |response| {
        let region = response.headers().get("x-amz-bucket-region").map(str::to_owned);
        (Some(response.status().as_u16()), region)
    });
    let Some(status) = status else {
        return Failure { status: None, code: None, error: unanswered(what, error) };
    };
    let meta = error.as_service_error().map(ProvideErrorMetadata::meta);
    let code = meta.and_then(|meta| meta.code()).map(one_line);
    let mut text = format!("{what}: HTTP status {status}");
    if let Some(code) = &code {
        text = format!("{text} {code}");
    }
    if let Some(message) = meta.and_then(|meta| meta.message()) {
        text = format!("{text}: {}", one_line(&message));
    }
    if let SdkError::ResponseError(_) = error {
        text = format!("{text}: {}", chain(error));
    }
    if let (301 | 307 | 400, Some(region)) = (status, header) {
        text = format!("{text} (the bucket is in region {})", one_line(&region));
    }
    let error = classify(status, code.as_deref(), text);
    Failure { status: Some(status), code, error }
}

fn classify(status: u16, code: Option<&str>, text: String) -> Error {
    let retryable = match status {
        // Sent whole or not at all: what arrived was not what was sent.
        400 => matches!(
            code,
            Some("BadDigest" | "RequestTimeout" | "IncompleteBody" | "XAmzContentChecksumMismatch")
        ),
        409 => matches!(code, Some("ConditionalRequestConflict" | "OperationAborted")),
        501 | 505 | 507 => false,
        _ => matches!(status, 200..=299 | 307 | 408 | 425 | 429 | 500..),
    };
    if retryable { Error::Unreachable(text) } else { Error::Refused(explain(status, code, text)) }
}

/// Adds what the codes leave unsaid.
fn explain(status: u16, code: Option<&str>, text: String) -> String {
    let hint = match (status, code) {
        (_, Some("ExpiredToken" | "ExpiredTokenException")) => "the session's credentials have expired",
        (_, Some("InvalidAccessKeyId")) => "the access key is not known to this store",
        (_, Some("SignatureDoesNotMatch")) => "the secret key does not belong to the access key",
        (_, Some("RequestTimeTooSkewed")) => "this machine's clock differs from the store's",
        (404, None | Some("NotFound")) => "the answer is not one of S3 for a missing object",
        (507, _) => "the store has no space left",
        _ => return text,
    };
    format!("{text} ({hint})")
}

/// Explains a call to which there was no answer.
fn unanswered<E>(what: &str, error: &SdkError<E>) -> Error
where
    E: StdError + 'static,
{
    if let Some(error) = find::<CredentialsError>(error) {
        return credentials(what, error);
    }
    let text = match error {
        // The SDK's own words for it ("dispatch failure", "io error") say nothing.
        SdkError::DispatchFailure(failure) => {
            failure.as_connector_error().and_then(StdError::source).map(chain)
        }
        _ => None,
    };
    let text = format!("{what}: {}", text.unwrap_or_else(|| chain(error)));
    if find::<TlsSetup>(error).is_some() || matches!(error, SdkError::ConstructionFailure(_)) {
        return Error::Refused(text);
    }
    if let Some(rustls::Error::InvalidCertificate(_)) = find::<rustls::Error>(error) {
        return Error::Refused(format!("{text} (is ca_file the authority of this store?)"));
    }
    let timed_out = matches!(error, SdkError::TimeoutError(_))
        || matches!(error, SdkError::DispatchFailure(failure) if failure.is_timeout())
        || find::<io::Error>(error).is_some_and(|error| error.kind() == io::ErrorKind::TimedOut);
    if timed_out { Error::TimedOut(text) } else { Error::Unreachable(text) }
}

fn credentials(what: &str, error: &CredentialsError) -> Error {
    let io = find::<io::Error>(error).map(io::Error::kind);
    let text = format!("{what}: looking up AWS credentials: {}", chain(error));
    match error {
        // The end of the standard chain, with nothing to say but that.
        CredentialsError::CredentialsNotLoaded(_) if text.contains("credentials found in chain") => {
            Error::Refused(format!(
                "{what}: no AWS credentials found in environment, profile, web identity, container or instance role"
            ))
        }
        CredentialsError::ProviderTimedOut(_) => Error::TimedOut(text),
        // A token's file is missing, or a service that issues credentials did not answer.
        CredentialsError::ProviderError(_) => match io {
            Some(io::ErrorKind::NotFound | io::ErrorKind::PermissionDenied) | None => Error::Refused(text),
            Some(_) => Error::Unreachable(text),
        },
        _ => Error::Refused(text),
    }
}

/// Returns the first error of a type in a chain of causes.
pub(super) fn find<'a, T: StdError + 'static>(error: &'a (dyn StdError + 'static)) -> Option<&'a T> {
    let mut current = Some(error);
    while let Some(error) = current {
        if let Some(found) = error.downcast_ref::<T>() {
            return Some(found);
        }
        // An I/O error shows the cause of what it wraps, not that itself.
        if let Some(inner) = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref)
            && let Some(found) = find::<T>(inner)
        {
            return Some(found);
        }
        current = error.source();
    }
    None
}

/// Returns an error and its causes on one line, without what only repeats.
pub(super) fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = String::new();
    let mut current = Some(error);
    while let Some(error) = current {
        let part = one_line(error);
        if !text.contains(&part) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&part);
        }
        current = error.source();
    }
    text
}

/// Returns a text without line breaks and control characters, and not too much of it.
pub(super) fn one_line<T: Display + ?Sized>(text: &T) -> String {
    let text = text.to_string();
    let words: Vec<&str> =
        text.split(|c: char| c.is_control() || c == ' ').filter(|word| !word.is_empty()).collect();
    let mut line = words.join(" ");
    if line.len() > MESSAGE_LIMIT {
        line.truncate(line.floor_char_boundary(MESSAGE_LIMIT));
        line.push('…');
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_others_become_one_short_line() {
        assert_eq!(one_line("  a\r\n\tb\u{1b}[31m  c\n"), "a b [31m c");
        let long = one_line(&"ä".repeat(1000));
        assert!(long.len() <= MESSAGE_LIMIT + '…'.len_utf8() && long.ends_with('…'), "{long}");
    }

    #[test]
    fn causes_are_found_inside_of_io_errors() {
        let inner = io::Error::new(io::ErrorKind::TimedOut, TlsSetup("no roots".to_owned()));
        let outer = io::Error::other(inner);
        assert!(find::<TlsSetup>(&outer).is_some());
        assert!(find::<CredentialsError>(&outer).is_none());
        assert_eq!(chain(&outer), "no roots");
    }
}
