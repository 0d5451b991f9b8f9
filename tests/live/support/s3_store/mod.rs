//! An S3 server in memory, on 127.0.0.1, with faults on demand.
//!
//! What the published servers get wrong is right here: of racing create-only puts exactly one succeeds, and an object
//! whose checksum does not match never becomes visible. `contents.rs` holds the objects, `objects.rs` answers the requests, `faults.rs` spoils the answers.

mod contents;
mod faults;
mod objects;

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, mpsc};
use std::thread::JoinHandle;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo};
use s3s::HttpError;
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use tokio::net::TcpListener;
use tokio::sync::oneshot;

use contents::Contents;
pub use faults::{Fault, Operation, Request, Rule};
use objects::Objects;

/// The name of the bucket that every store starts with.
pub const BUCKET: &str = "walden";

/// What the store makes of `If-None-Match: *`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Conditions {
    /// As AWS: 412 when the object exists.
    #[default]
    Enforced,
    /// As stores that do not know the header: the object is overwritten.
    Ignored,
    /// As stores that say so: 501 `NotImplemented`.
    Refused,
}

/// How the store as a whole behaves.
#[derive(Debug, Clone, Copy, Default)]
struct Behaviour {
    conditions: Conditions,
    /// Connections are dropped as soon as they come.
    down: bool,
    /// Requests are taken and never answered.
    hung: bool,
    latency: Duration,
    /// The most keys in one page of a listing.
    page_limit: Option<usize>,
    /// A missing key is answered with 403, as AWS does for those who may not list.
    hide_missing: bool,
}

/// What the server's thread and the test share.
#[derive(Debug, Default)]
struct Shared {
    contents: Mutex<Contents>,
    behaviour: Mutex<Behaviour>,
    rules: Mutex<Vec<Rule>>,
    requests: Mutex<Vec<Request>>,
}

/// Locks, also after a panic of another thread: the test that panicked reports itself.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

/// A running store. Dropping it stops it.
#[derive(Debug)]
pub struct S3Store {
    /// `http://127.0.0.1:<port>`
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    pub region: String,
    shared: Arc<Shared>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// All that a store holds at one moment.
#[derive(Debug)]
pub struct Snapshot(std::collections::BTreeMap<String, std::collections::BTreeMap<String, contents::Object>>);

impl S3Store {
    /// Starts a store with the empty bucket [`BUCKET`], on a port that the kernel chooses.
    pub fn start() -> Self {
        let shared = Arc::new(Shared::default());
        let (access_key, secret_key) = ("walden-access".to_owned(), "walden-secret".to_owned());
        let mut builder = S3ServiceBuilder::new(Objects::new(Arc::clone(&shared)));
        builder.set_auth(SimpleAuth::from_single(access_key.clone(), secret_key.clone()));
        let service = builder.build();

        let (stop, stopped) = oneshot::channel();
        let (ready, address) = mpsc::channel();
        let thread = std::thread::spawn({
            let shared = Arc::clone(&shared);
            move || {
                // Two workers, so that requests really race.
                let runtime =
                    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
                let runtime = runtime.expect("build a runtime");
                runtime.block_on(serve(shared, service, ready, stopped));
                runtime.shutdown_background();
            }
        });
        let address: SocketAddr = address.recv().expect("the store's address");
        let store = Self {
            endpoint: format!("http://{address}"),
            access_key,
            secret_key,
            region: "us-east-1".to_owned(),
            shared,
            stop: Some(stop),
            thread: Some(thread),
        };
        store.create_bucket(BUCKET);
        store
    }

    /// Returns the URL of a repository below a prefix of [`BUCKET`].
    #[allow(clippy::unused_self)] // Asked like the other servers, whose bucket is their own.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{BUCKET}/{prefix}")
    }

    /// Returns the variables that let the AWS SDK use this store.
    pub fn env(&self) -> Vec<(String, String)> {
        credentials_env(&self.access_key, &self.secret_key)
    }

    /// Creates another bucket.
    pub fn create_bucket(&self, name: &str) {
        lock(&self.shared.contents).create_bucket(name);
    }

    /// Returns the content of an object in [`BUCKET`].
    pub fn object(&self, key: &str) -> Option<Vec<u8>> {
        lock(&self.shared.contents).object(BUCKET, key).map(|object| object.data.to_vec())
    }

    /// Returns all keys in [`BUCKET`], in the order of a listing.
    pub fn objects(&self) -> Vec<String> {
        lock(&self.shared.contents).keys(BUCKET)
    }

    /// Returns the keys in [`BUCKET`] that contain a string.
    pub fn objects_matching(&self, part: &str) -> Vec<String> {
        self.objects().into_iter().filter(|key| key.contains(part)).collect()
    }

    /// Puts an object behind the server's back; it may replace one.
    pub fn put_raw(&self, key: &str, data: impl Into<Vec<u8>>) {
        lock(&self.shared.contents).put(BUCKET, key, data.into());
    }

    /// Returns all that is stored, as it is.
    pub fn snapshot(&self) -> Snapshot {
        Snapshot(lock(&self.shared.contents).buckets.clone())
    }

    /// Makes everything as it was.
    pub fn restore(&self, snapshot: &Snapshot) {
        lock(&self.shared.contents).buckets.clone_from(&snapshot.0);
    }

    /// Removes an object behind the server's back; returns whether it was there.
    pub fn remove(&self, key: &str) -> bool {
        lock(&self.shared.contents).remove(BUCKET, key)
    }

    /// Flips one bit of a stored object. The checksum that the store reports stays as it was, as after bit rot.
    #[track_caller]
    pub fn damage(&self, key: &str, offset: usize) {
        assert!(lock(&self.shared.contents).damage(BUCKET, key, offset), "no byte {offset} in {key}");
    }

    /// Returns how many multipart uploads were begun and neither completed nor aborted.
    pub fn open_uploads(&self) -> usize {
        lock(&self.shared.contents).open_uploads()
    }

    /// Returns the requests so far, in the order in which they came.
    pub fn requests(&self) -> Vec<Request> {
        lock(&self.shared.requests).clone()
    }

    /// Returns how many requests of a kind there were so far.
    pub fn count(&self, operation: Operation) -> usize {
        lock(&self.shared.requests).iter().filter(|request| request.operation == operation).count()
    }

    /// Forgets the requests so far.
    pub fn forget_requests(&self) {
        lock(&self.shared.requests).clear();
    }

    /// Adds a fault. Of several rules that match a request, the one added first acts.
    pub fn fail(&self, rule: Rule) {
        lock(&self.shared.rules).push(rule);
    }

    /// Removes all faults, and whatever the store as a whole was told to do.
    pub fn heal(&self) {
        lock(&self.shared.rules).clear();
        *lock(&self.shared.behaviour) = Behaviour::default();
    }

    /// Takes the store down, or up again: connections are dropped without an answer.
    pub fn set_down(&self, down: bool) {
        lock(&self.shared.behaviour).down = down;
    }

    /// Makes the store take requests and never answer them.
    pub fn set_hung(&self, hung: bool) {
        lock(&self.shared.behaviour).hung = hung;
    }

    /// Delays each answer.
    pub fn set_latency(&self, latency: Duration) {
        lock(&self.shared.behaviour).latency = latency;
    }

    /// Sets what the store makes of `If-None-Match: *`.
    pub fn set_conditions(&self, conditions: Conditions) {
        lock(&self.shared.behaviour).conditions = conditions;
    }

    /// Sets the store's clock back, for all objects.
    pub fn set_clock_behind(&self, by: Duration) {
        lock(&self.shared.contents).behind = by;
    }

    /// Limits the pages of listings, so that a few objects already need several.
    pub fn set_page_limit(&self, keys: usize) {
        lock(&self.shared.behaviour).page_limit = Some(keys);
    }

    /// Makes the store answer 403 for missing keys, as AWS does for those who may not list the bucket.
    pub fn set_hide_missing(&self, hide: bool) {
        lock(&self.shared.behaviour).hide_missing = hide;
    }
}

impl Drop for S3Store {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Returns the variables with which the AWS SDK finds static credentials and looks nowhere else.
pub fn credentials_env(access_key: &str, secret_key: &str) -> Vec<(String, String)> {
    [
        ("AWS_ACCESS_KEY_ID", access_key),
        ("AWS_SECRET_ACCESS_KEY", secret_key),
        ("AWS_REGION", "us-east-1"),
        ("AWS_EC2_METADATA_DISABLED", "true"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// Serves until the sender of `stopped` is gone.
async fn serve(
    shared: Arc<Shared>,
    service: S3Service,
    ready: mpsc::Sender<SocketAddr>,
    stopped: oneshot::Receiver<()>,
) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("listen on 127.0.0.1");
    ready.send(listener.local_addr().expect("local address")).expect("tell the address");
    // It ends with the runtime, as its connections do.
    tokio::spawn(accept(shared, service, listener));
    let _ = stopped.await;
}

async fn accept(shared: Arc<Shared>, service: S3Service, listener: TcpListener) {
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        if lock(&shared.behaviour).down {
            continue;
        }
        let (shared, service) = (Arc::clone(&shared), service.clone());
        tokio::spawn(async move {
            let handler = hyper::service::service_fn(move |request| {
                let (shared, service) = (Arc::clone(&shared), service.clone());
                async move { faults::answer(&shared, &service, request).await }
            });
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A connection that was cut on purpose ends with an error; the client is the one to notice.
            let _ = server.serve_connection(TokioIo::new(stream), handler).await;
        });
    }
}

/// Returns the error that makes hyper drop a connection.
fn cut() -> HttpError {
    HttpError::new("connection cut on purpose".into())
}
