//! The SDK's client, and the runtime it runs on: both made at the first request.

use super::S3Options;
use super::errors::one_line;
use super::http::Http;
use crate::storage::{Error, Result};
use aws_config::environment::region::EnvironmentVariableRegionProvider;
use aws_config::meta::region::RegionProviderChain;
use aws_config::profile::{ProfileFileCredentialsProvider, ProfileFileRegionProvider};
use aws_config::provider_config::ProviderConfig;
use aws_config::timeout::TimeoutConfig;
use aws_config::{BehaviorVersion, Region};
use aws_credential_types::Credentials;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::{
    AppName, RequestChecksumCalculation, ResponseChecksumValidation, StalledStreamProtectionConfig,
};
use std::sync::OnceLock;
use tokio::runtime::Runtime;

/// Returns the runtime that drives the connections of all stores of the process. The calls themselves run on the
/// threads that make them, any number at a time.
pub(super) fn runtime() -> Result<&'static Runtime> {
    static RUNTIME: OnceLock<std::result::Result<Runtime, String>> = OnceLock::new();
    RUNTIME
        .get_or_init(|| {
            tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .thread_name("walden-s3")
                .enable_io()
                .enable_time()
                .build()
                .map_err(|error| format!("could not start threads for S3: {error}"))
        })
        .as_ref()
        .map_err(|message| Error::Unreachable(message.clone()))
}

/// Returns a client for the options. Reads the environment and the profile files; credentials are looked up by the
/// first request. Only where the region is nowhere to be found is the instance's metadata service asked.
pub(super) async fn connect(options: &S3Options, credentials: Option<&Credentials>) -> Result<Client> {
    if let Some(endpoint) = &options.endpoint {
        check_endpoint(endpoint)?;
    }
    // An own authority vouches for the store; whoever issues credentials is still known to the system's.
    let chain_http = Http::new(None);
    let http =
        options.ca_file.as_ref().map_or_else(|| chain_http.clone(), |path| Http::new(Some(path.clone())));

    let behaviour = BehaviorVersion::v2026_01_12();
    let region = region(options, &chain_http).await;
    let Some(region) = region else {
        return Err(Error::Refused(
            "no AWS region is known: set region in the configuration, or AWS_REGION".to_owned(),
        ));
    };
    let mut loader = aws_config::defaults(behaviour)
        .http_client(chain_http.clone())
        .region(region.clone())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled());
    if let Some(endpoint) = &options.endpoint {
        loader = loader.endpoint_url(endpoint);
    }
    if let Some(credentials) = credentials {
        loader = loader.credentials_provider(credentials.clone());
    } else if let Some(profile) = &options.profile {
        // A profile that the configuration names comes before credentials that happen to be in the environment.
        let config = ProviderConfig::without_region().with_region(Some(region)).with_http_client(chain_http);
        let credentials =
            ProfileFileCredentialsProvider::builder().configure(&config).profile_name(profile).build();
        loader = loader.profile_name(profile).credentials_provider(credentials);
    }
    let shared = loader.load().await;

    let config = aws_sdk_s3::config::Builder::from(&shared)
        .http_client(http.watched())
        .force_path_style(options.path_style)
        // Attempts and deadlines are this crate's own: see `Retry` and `watch`.
        .retry_config(RetryConfig::disabled())
        .timeout_config(TimeoutConfig::disabled())
        .stalled_stream_protection(StalledStreamProtectionConfig::disabled())
        // Checksums are given and asked for by the calls. The SDK's own would send bodies in chunks with a trailer,
        // which many stores do not understand.
        .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
        .response_checksum_validation(ResponseChecksumValidation::WhenRequired)
        .app_name(AppName::new("walden").map_err(|error| Error::Refused(one_line(&error)))?)
        .build();
    Ok(Client::from_conf(config))
}

/// The SDK would find out too, with an error that looks like one of the network.
fn check_endpoint(endpoint: &str) -> Result<()> {
    let uri = endpoint.parse::<http::Uri>().ok();
    let is_url = |uri: &http::Uri| matches!(uri.scheme_str(), Some("http" | "https")) && uri.host().is_some();
    if uri.as_ref().is_some_and(is_url) {
        return Ok(());
    }
    Err(Error::Refused(format!("endpoint \"{endpoint}\" is not a URL like https://host:9000")))
}

/// Returns the region from the options, the environment or the profile; then that of the machine, but for a store
/// with an own endpoint, to which regions mean nothing, the name that most of those accept.
async fn region(options: &S3Options, http: &Http) -> Option<Region> {
    if let Some(region) = &options.region {
        return Some(Region::new(region.clone()));
    }
    let config = ProviderConfig::without_region().with_http_client(http.clone());
    let mut profile = ProfileFileRegionProvider::builder().configure(&config);
    if let Some(name) = &options.profile {
        profile = profile.profile_name(name);
    }
    let chain =
        RegionProviderChain::first_try(EnvironmentVariableRegionProvider::new()).or_else(profile.build());
    if options.endpoint.is_some() {
        return chain.or_else(Region::new("us-east-1")).region().await;
    }
    if let Some(region) = chain.region().await {
        return Some(region);
    }
    aws_config::imds::region::ImdsRegionProvider::builder().configure(&config).build().region().await
}
