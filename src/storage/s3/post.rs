//! One POST of JSON, over the same kind of connections as requests to a store: proxies and certificates are looked after
//! in one place.

use super::client::runtime;
use super::errors::chain;
use super::http::Http;
use aws_smithy_types::body::SdkBody;
use std::path::PathBuf;
use std::time::Duration;

/// Sends `body` to `url` and waits for the answer, both together no longer than `limit`. Certificates are checked against
/// those in `ca_file`, or the system's. Returns the status of HTTP; fails with one line of text where no answer came.
pub fn post_json(url: &str, ca_file: Option<PathBuf>, body: &str, limit: Duration) -> Result<u16, String> {
    let request = http::Request::post(url)
        .header(http::header::CONTENT_TYPE, "application/json")
        .header(http::header::USER_AGENT, concat!("walden/", env!("CARGO_PKG_VERSION")))
        .body(SdkBody::from(body))
        .map_err(|error| error.to_string())?;
    let http = Http::new(ca_file);
    let runtime = runtime().map_err(|error| error.to_string())?;
    runtime.block_on(async {
        match tokio::time::timeout(limit, http.send(request)).await {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(error)) => Err(chain(error.as_ref())),
            Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
        }
    })
}
