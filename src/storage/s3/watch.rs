//! Waiting with a deadline: for as long as bytes move, and no longer than the caller lets it.

use crate::storage::{Deadline, Error, Result};
use hyper_util::client::legacy::connect::CaptureConnection;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How often it is looked whether bytes have moved and whether the deadline was cut.
const TICK: Duration = Duration::from_millis(50);

/// The bytes that a connection has moved, in both directions, since it was opened.
#[derive(Debug, Clone, Default)]
pub(super) struct Meter(Arc<AtomicU64>);

impl Meter {
    pub(super) fn add(&self, bytes: usize) {
        self.0.fetch_add(bytes as u64, Ordering::Relaxed);
    }
}

/// Follows one request: which connection carries it, and what that has moved.
#[derive(Debug, Default)]
pub(super) struct Watch {
    connection: Mutex<Option<CaptureConnection>>,
}

tokio::task_local! {
    /// What watches the call that is being made. Handed over beside the SDK: an interceptor for each call would make it
    /// put the whole configuration together anew.
    static CURRENT: Arc<Watch>;
}

impl Watch {
    /// Returns the future with the watch over it: the client below the SDK finds it by [`Watch::current`].
    pub(super) fn over<F: Future>(watch: &Arc<Self>, future: F) -> impl Future<Output = F::Output> {
        CURRENT.scope(Arc::clone(watch), future)
    }

    /// Returns the watch over the call that is being made.
    pub(super) fn current() -> Option<Arc<Self>> {
        CURRENT.try_with(Arc::clone).ok()
    }

    /// Follows the request whose connection is captured there.
    pub(super) fn follow(&self, connection: CaptureConnection) {
        *self.connection.lock().unwrap_or_else(PoisonError::into_inner) = Some(connection);
    }

    /// Returns what the request's connection has moved; none while it has no connection.
    fn moved(&self) -> Option<u64> {
        let connection = self.connection.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = connection.as_ref()?;
        let mut extras = http::Extensions::new();
        connection.connection_metadata().as_ref()?.get_extras(&mut extras);
        extras.get::<Meter>().map(|meter| meter.0.load(Ordering::Relaxed))
    }

    /// Waits for the future, until no byte has moved for [`Deadline::stall`] or the deadline is cut. `what` names
    /// the call in the error.
    pub(super) async fn wait<T>(
        &self,
        deadline: &Deadline,
        what: &str,
        future: impl Future<Output = T>,
    ) -> Result<T> {
        deadline.check(what)?;
        let mut future = pin!(future);
        let mut moved = self.moved();
        let mut since = Instant::now();
        loop {
            let rest = deadline.patience().clamp(Duration::from_millis(1), TICK);
            if let Ok(value) = tokio::time::timeout(rest, future.as_mut()).await {
                return Ok(value);
            }
            if deadline.is_over() {
                return Err(Error::TimedOut(what.to_owned()));
            }
            let now = self.moved();
            if now != moved {
                moved = now;
                since = Instant::now();
            } else if since.elapsed() >= deadline.stall {
                let stalled = if now.is_none() { "no connection" } else { "no byte moved" };
                return Err(Error::TimedOut(format!("{what}: {stalled} for {:?}", deadline.stall)));
            }
        }
    }
}
