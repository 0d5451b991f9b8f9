//! The AWS SDK's client, pointed at one of the test servers: the second opinion on a store, beside Walden's own.

use std::path::Path;

use aws_sdk_s3::Client;
use aws_sdk_s3::config::{
    BehaviorVersion, Credentials, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    retry::RetryConfig,
};
use aws_smithy_http_client::tls::rustls_provider::CryptoMode;
use aws_smithy_http_client::tls::{Provider, TlsContext, TrustStore};

/// A client and the runtime that it needs, for tests that are not asynchronous.
#[derive(Debug)]
pub struct S3Client {
    pub client: Client,
    runtime: tokio::runtime::Runtime,
}

impl S3Client {
    /// Returns a client with path-style addresses. It never retries, so that each fault is seen.
    pub fn new(endpoint: &str, access_key: &str, secret_key: &str, ca_file: Option<&Path>) -> Self {
        let mut http =
            aws_smithy_http_client::Builder::new().tls_provider(Provider::Rustls(CryptoMode::Ring));
        if let Some(file) = ca_file {
            let pem = std::fs::read(file).expect("read the authority's certificate");
            let trust = TrustStore::empty().with_pem_certificate(pem);
            http =
                http.tls_context(TlsContext::builder().with_trust_store(trust).build().expect("TLS context"));
        }
        let config = aws_sdk_s3::Config::builder()
            .behavior_version(BehaviorVersion::latest())
            .region(Region::new("us-east-1"))
            .endpoint_url(endpoint)
            .force_path_style(true)
            .credentials_provider(Credentials::new(access_key, secret_key, None, None, "test"))
            .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
            // What comes is compared by the test; a client that does it first would hide what the store sent.
            .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
            .retry_config(RetryConfig::disabled())
            .http_client(http.build_https())
            .build();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        Self { client: Client::from_conf(config), runtime: runtime.expect("build a runtime") }
    }

    /// Runs a request of the SDK to its end.
    pub fn wait<T>(&self, future: impl Future<Output = T>) -> T {
        self.runtime.block_on(future)
    }
}
