//! The HTTP client below the SDK: HTTP/1.1 over TCP or TLS, with a meter on every connection.
//!
//! The SDK's own client would do but for one thing: it cannot say whether an upload still moves. It counts what it
//! has handed to its buffers, and a slow line takes minutes to empty those. Here the bytes are counted where they
//! enter and leave the kernel, and the kernel is told to take few that it cannot send yet.
//!
//! TLS roots are loaded when the first `https` address is asked for, and never before.

use super::watch::{Meter, Watch};
use aws_smithy_runtime_api::client::http::{
    HttpClient, HttpConnector as SdkConnector, HttpConnectorFuture, HttpConnectorSettings,
    SharedHttpConnector,
};
use aws_smithy_runtime_api::client::orchestrator::{HttpRequest, HttpResponse};
use aws_smithy_runtime_api::client::result::ConnectorError;
use aws_smithy_runtime_api::client::runtime_components::RuntimeComponents;
use aws_smithy_types::body::SdkBody;
use http::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::proxy::Tunnel;
use hyper_util::client::legacy::connect::{Connected, Connection, HttpConnector, capture_connection};
use hyper_util::client::legacy::{Client, connect::Connect};
use hyper_util::client::proxy::matcher::Matcher;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::pki_types::{CertificateDer, pem::PemObject};
use std::io;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tower_service::Service;

type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// The longest wait for a TCP connection; an address that does not answer by then will not.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// The longest wait for an answer to requests that are not watched: those of the credentials' providers, which
/// usually bring a shorter one of their own.
const UNWATCHED_TIMEOUT: Duration = Duration::from_secs(30);

/// How many bytes the kernel takes beyond those under way. What it has taken counts as moved.
const UNSENT_BYTES: u32 = 128 << 10;

/// How long an unused connection is kept: less than servers do, so that a request does not meet a closing one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(15);

/// The client. Clones share their connections.
#[derive(Debug, Clone)]
pub(super) struct Http {
    inner: Arc<Inner>,
    is_watched: bool,
}

struct Inner {
    ca_file: Option<PathBuf>,
    plain: OnceLock<Client<Dial, SdkBody>>,
    tls: OnceLock<Result<Client<HttpsConnector<Dial>, SdkBody>, TlsSetup>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Http").field("ca_file", &self.ca_file).finish_non_exhaustive()
    }
}

/// TLS cannot be set up: there are no usable root certificates.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{0}")]
pub(super) struct TlsSetup(pub(super) String);

impl Http {
    /// Returns a client that trusts the system's root certificates, or only those in `ca_file`. Does no I/O.
    pub(super) fn new(ca_file: Option<PathBuf>) -> Self {
        let inner = Arc::new(Inner { ca_file, plain: OnceLock::new(), tls: OnceLock::new() });
        Self { inner, is_watched: false }
    }

    /// Returns the client for requests to a store: each is followed by the [`Watch`] over its call.
    pub(super) fn watched(self) -> Self {
        Self { is_watched: true, ..self }
    }

    /// Sends a request that is none of the SDK's and returns the status of the answer.
    pub(super) async fn send(&self, mut request: http::Request<SdkBody>) -> Result<u16, BoxError> {
        let response = if request.uri().scheme_str() == Some("https") {
            self.inner.tls()?.request(request).await?
        } else {
            add_proxy_credentials(&mut request);
            self.inner.plain().request(request).await?
        };
        Ok(response.status().as_u16())
    }
}

impl Inner {
    fn plain(&self) -> Client<Dial, SdkBody> {
        self.plain.get_or_init(|| client(Dial::from_env())).clone()
    }

    fn tls(&self) -> Result<Client<HttpsConnector<Dial>, SdkBody>, TlsSetup> {
        let build = || {
            let roots = self.roots()?;
            let provider = Arc::new(rustls::crypto::ring::default_provider());
            let config = rustls::ClientConfig::builder_with_provider(provider)
                .with_safe_default_protocol_versions()
                .map_err(|error| TlsSetup(error.to_string()))?
                .with_root_certificates(roots)
                .with_no_client_auth();
            let connector = HttpsConnectorBuilder::new()
                .with_tls_config(config)
                .https_only()
                .enable_http1()
                .wrap_connector(Dial::from_env());
            Ok(client(connector))
        };
        self.tls.get_or_init(build).clone()
    }

    fn roots(&self) -> Result<rustls::RootCertStore, TlsSetup> {
        let mut roots = rustls::RootCertStore::empty();
        if let Some(path) = &self.ca_file {
            let failed = |error: &dyn std::fmt::Display| {
                TlsSetup(format!("could not read certificates from ca_file \"{}\": {error}", path.display()))
            };
            for certificate in CertificateDer::pem_file_iter(path).map_err(|error| failed(&error))? {
                let certificate = certificate.map_err(|error| failed(&error))?;
                roots.add(certificate).map_err(|error| failed(&error))?;
            }
            if roots.is_empty() {
                return Err(failed(&"none is in it"));
            }
        } else {
            // Some certificates of a system's store are always unusable to somebody; what matters is what is left.
            roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(TlsSetup("no root certificates found on this machine; set ca_file".to_owned()));
            }
        }
        Ok(roots)
    }
}

fn client<C: Connect + Clone>(connector: C) -> Client<C, SdkBody> {
    Client::builder(TokioExecutor::new())
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(IDLE_TIMEOUT)
        .build(connector)
}

impl HttpClient for Http {
    fn http_connector(&self, settings: &HttpConnectorSettings, _: &RuntimeComponents) -> SharedHttpConnector {
        let timeout = settings
            .read_timeout()
            .map_or(UNWATCHED_TIMEOUT, |read| read + settings.connect_timeout().unwrap_or(CONNECT_TIMEOUT));
        SharedHttpConnector::new(Connector {
            http: Arc::clone(&self.inner),
            is_watched: self.is_watched,
            timeout,
        })
    }
}

/// What the SDK sends its requests through.
#[derive(Debug)]
struct Connector {
    http: Arc<Inner>,
    is_watched: bool,
    timeout: Duration,
}

impl SdkConnector for Connector {
    fn call(&self, request: HttpRequest) -> HttpConnectorFuture {
        let watch = self.is_watched.then(Watch::current).flatten();
        let mut request = match request.try_into_http1x() {
            Ok(request) => request,
            Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
        };
        let captured = capture_connection(&mut request);
        let response = if request.uri().scheme_str() == Some("https") {
            match self.http.tls() {
                Ok(client) => client.request(request),
                Err(error) => return HttpConnectorFuture::ready(Err(ConnectorError::user(error.into()))),
            }
        } else {
            let client = self.http.plain();
            add_proxy_credentials(&mut request);
            client.request(request)
        };
        let timeout = self.timeout;
        HttpConnectorFuture::new(async move {
            let result = if let Some(watch) = watch {
                watch.follow(captured);
                response.await
            } else {
                tokio::time::timeout(timeout, response)
                    .await
                    .map_err(|_| ConnectorError::timeout("no answer in time".into()))?
            };
            let response = result.map_err(|error| ConnectorError::io(error.into()))?;
            HttpResponse::try_from(response.map(SdkBody::from_body_1_x))
                .map_err(|error| ConnectorError::other(error.into(), None))
        })
    }
}

/// A proxy sees plain requests themselves; for TLS it gets the credentials with the tunnel.
fn add_proxy_credentials(request: &mut http::Request<SdkBody>) {
    if let Some(proxy) = proxies().intercept(request.uri())
        && let Some(credentials) = proxy.basic_auth()
    {
        request.headers_mut().insert(http::header::PROXY_AUTHORIZATION, credentials.clone());
    }
}

/// Returns what `HTTPS_PROXY`, `HTTP_PROXY`, `ALL_PROXY` and `NO_PROXY` say.
fn proxies() -> &'static Matcher {
    static PROXIES: OnceLock<Matcher> = OnceLock::new();
    PROXIES.get_or_init(Matcher::from_env)
}

/// Opens metered TCP connections, through a proxy where the environment names one.
#[derive(Debug, Clone)]
struct Dial {
    tcp: HttpConnector,
}

impl Dial {
    fn from_env() -> Self {
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_nodelay(true);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        // Routers forget idle connections; a connection that was forgotten fails only when it is used next.
        tcp.set_keepalive(Some(Duration::from_secs(30)));
        Self { tcp }
    }
}

impl Service<Uri> for Dial {
    type Response = TokioIo<Metered>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, BoxError>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        self.tcp.poll_ready(context).map_err(Into::into)
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let mut tcp = self.tcp.clone();
        Box::pin(async move {
            let proxy = proxies().intercept(&uri);
            let is_tls = uri.scheme_str() == Some("https");
            let is_proxied = proxy.is_some() && !is_tls;
            let stream = match proxy {
                None => tcp.call(uri).await?,
                Some(proxy) if is_tls => {
                    let mut tunnel = Tunnel::new(proxy.uri().clone(), tcp);
                    if let Some(credentials) = proxy.basic_auth() {
                        tunnel = tunnel.with_auth(credentials.clone());
                    }
                    tunnel.call(uri).await?
                }
                Some(proxy) => tcp.call(proxy.uri().clone()).await?,
            };
            let stream = stream.into_inner();
            // Without it a stall is noticed later, and a slow line is taken for one; the transfer itself works.
            let _ = socket2::SockRef::from(&stream).set_tcp_notsent_lowat(UNSENT_BYTES);
            Ok(TokioIo::new(Metered { stream, meter: Meter::default(), is_proxied }))
        })
    }
}

/// A TCP connection that counts the bytes it moves.
#[derive(Debug)]
struct Metered {
    stream: TcpStream,
    meter: Meter,
    is_proxied: bool,
}

impl Connection for Metered {
    fn connected(&self) -> Connected {
        Connected::new().proxy(self.is_proxied).extra(self.meter.clone())
    }
}

impl AsyncRead for Metered {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let result = Pin::new(&mut self.stream).poll_read(context, buffer);
        self.meter.add(buffer.filled().len() - before);
        result
    }
}

impl Metered {
    fn count(&self, result: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if let Poll::Ready(Ok(written)) = &result {
            self.meter.add(*written);
        }
        result
    }
}

impl AsyncWrite for Metered {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.count(result)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let result = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.count(result)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}
