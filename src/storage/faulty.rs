//! A store that fails on demand, for tests: at I/O call number N, in every way a real one does.

use super::{Deadline, Error, Object, Put, Result, Storage, Upload};
use bytes::Bytes;
use std::collections::BTreeMap;
use std::io::{self, Cursor, Read};
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What goes wrong with a call. The faults of a reader (`Truncate`, `Break`, `BitFlip`) let calls other than `get`
/// pass, and do not count as fired there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// [`Error::Unreachable`].
    Error(Moment),
    /// [`Error::TimedOut`].
    Timeout(Moment),
    /// [`Error::Refused`], without the effect.
    Refusal,
    /// The reader ends half-way as if that were all: the stored object is too short.
    Truncate,
    /// The reader fails half-way.
    Break,
    /// One bit in the middle is wrong.
    BitFlip,
    /// The call is carried out after a pause.
    Slow(Duration),
}

/// Whether a failed call has had its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    /// Nothing was done.
    Before,
    /// It was done, and the answer was lost.
    After,
}

#[derive(Debug, Default)]
struct Plan {
    calls: u64,
    fired: u64,
    at: BTreeMap<u64, Fault>,
    from: Option<(u64, Fault)>,
}

/// The handle that sets faults and reads counters; clones share them.
#[derive(Debug, Clone, Default)]
pub struct Faults(Arc<Mutex<Plan>>);

impl Faults {
    fn plan(&self) -> MutexGuard<'_, Plan> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes call number `call` fail, counted from 1.
    pub fn fail_at(&self, call: u64, fault: Fault) {
        self.plan().at.insert(call, fault);
    }

    /// Makes call number `call` and all after it fail, counted from 1.
    pub fn fail_from(&self, call: u64, fault: Fault) {
        self.plan().from = Some((call, fault));
    }

    /// Returns how many calls there were so far.
    pub fn calls(&self) -> u64 {
        self.plan().calls
    }

    /// Returns how many faults have acted so far.
    pub fn fired(&self) -> u64 {
        self.plan().fired
    }

    /// Forgets faults and counters.
    pub fn reset(&self) {
        *self.plan() = Plan::default();
    }

    /// Counts a call and returns what is to go wrong with it.
    fn next(&self, is_get: bool) -> Option<Fault> {
        let mut plan = self.plan();
        plan.calls += 1;
        let call = plan.calls;
        let later = plan.from.filter(|(from, _)| call >= *from).map(|(_, fault)| fault);
        let fault = plan.at.get(&call).copied().or(later)?;
        if !is_get && matches!(fault, Fault::Truncate | Fault::Break | Fault::BitFlip) {
            return None;
        }
        plan.fired += 1;
        Some(fault)
    }
}

/// A store with faults on demand. Without any it only counts.
#[derive(Debug)]
pub struct Faulty<S> {
    inner: S,
    faults: Faults,
}

impl<S: Storage> Faulty<S> {
    /// Returns the store, without faults yet.
    pub fn new(inner: S) -> Self {
        Self::with(inner, Faults::default())
    }

    /// Returns the store with the faults and counters of a handle, which several stores may share.
    pub fn with(inner: S, faults: Faults) -> Self {
        Self { inner, faults }
    }

    /// Returns the handle that sets faults and reads counters.
    pub fn faults(&self) -> Faults {
        self.faults.clone()
    }

    fn call<T>(&self, what: &str, call: impl FnOnce() -> Result<T>) -> Result<T> {
        let fault = self.faults.next(false);
        act(what, fault, call)
    }
}

fn act<T>(what: &str, fault: Option<Fault>, call: impl FnOnce() -> Result<T>) -> Result<T> {
    let text = format!("{what}: fault on demand");
    match fault {
        Some(Fault::Error(Moment::Before)) => Err(Error::Unreachable(text)),
        Some(Fault::Timeout(Moment::Before)) => Err(Error::TimedOut(text)),
        Some(Fault::Refusal) => Err(Error::Refused(text)),
        Some(Fault::Error(Moment::After)) => call().and(Err(Error::Unreachable(text))),
        Some(Fault::Timeout(Moment::After)) => call().and(Err(Error::TimedOut(text))),
        Some(Fault::Slow(pause)) => {
            std::thread::sleep(pause);
            call()
        }
        Some(Fault::Truncate | Fault::Break | Fault::BitFlip) | None => call(),
    }
}

/// Fails whatever is read from it.
struct Broken;

impl Read for Broken {
    fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
        Err(io::Error::other(Error::Unreachable("get: fault on demand in mid-stream".to_owned())))
    }
}

/// An upload each of whose calls is counted, and fails on demand.
struct FaultyUpload<'a> {
    inner: Box<dyn Upload + 'a>,
    faults: Faults,
}

impl Upload for FaultyUpload<'_> {
    fn part(&mut self, index: u32, bytes: &Bytes) -> Result<()> {
        act("part", self.faults.next(false), || self.inner.part(index, bytes))
    }

    fn complete(&mut self) -> Result<Put> {
        act("complete", self.faults.next(false), || self.inner.complete())
    }
}

impl<S: Storage> Storage for Faulty<S> {
    fn url(&self) -> &str {
        self.inner.url()
    }

    fn put_new(&self, key: &str, body: &Bytes, deadline: &Deadline) -> Result<Put> {
        self.call("put", || self.inner.put_new(key, body, deadline))
    }

    fn upload_new<'a>(&'a self, key: &str, deadline: &Deadline) -> Result<Box<dyn Upload + 'a>> {
        let inner = self.call("begin upload", || self.inner.upload_new(key, deadline))?;
        Ok(Box::new(FaultyUpload { inner, faults: self.faults.clone() }))
    }

    fn get(&self, key: &str, range: Option<Range<u64>>, deadline: &Deadline) -> Result<Box<dyn Read + Send>> {
        let fault = self.faults.next(true);
        let mut reader = act("get", fault, || self.inner.get(key, range, deadline))?;
        let Some(fault @ (Fault::Truncate | Fault::Break | Fault::BitFlip)) = fault else {
            return Ok(reader);
        };
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map_err(|error| Error::Unreachable(error.to_string()))?;
        let middle = content.len() / 2;
        if fault == Fault::BitFlip {
            if let Some(byte) = content.get_mut(middle) {
                *byte ^= 0x10;
            }
            return Ok(Box::new(Cursor::new(content)));
        }
        content.truncate(middle);
        let half = Cursor::new(content);
        Ok(if fault == Fault::Break { Box::new(half.chain(Broken)) } else { Box::new(half) })
    }

    fn head(&self, key: &str, deadline: &Deadline) -> Result<Object> {
        self.call("head", || self.inner.head(key, deadline))
    }

    fn list(
        &self,
        prefix: &str,
        start_after: &str,
        limit: usize,
        deadline: &Deadline,
    ) -> Result<Vec<Object>> {
        self.call("list", || self.inner.list(prefix, start_after, limit, deadline))
    }

    fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>> {
        self.call("list folders", || self.inner.list_folders(prefix, deadline))
    }

    fn delete(&self, key: &str, deadline: &Deadline) -> Result<()> {
        self.call("delete", || self.inner.delete(key, deadline))
    }

    fn confirm(&self, key: &str, deadline: &Deadline) -> Result<()> {
        self.call("confirm", || self.inner.confirm(key, deadline))
    }

    fn tidy(&self, prefix: &str, deadline: &Deadline) -> Result<()> {
        self.call("tidy", || self.inner.tidy(prefix, deadline))
    }

    fn writes_conditionally(&self) -> bool {
        self.inner.writes_conditionally()
    }

    fn free_space(&self) -> Option<u64> {
        self.inner.free_space()
    }

    fn probe(&self, deadline: &Deadline) -> Result<()> {
        self.call("probe", || self.inner.probe(deadline))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{FsStorage, conformance};

    fn store() -> (tempfile::TempDir, Faulty<FsStorage>) {
        let dir = tempfile::tempdir().unwrap();
        let faulty = Faulty::new(FsStorage::new(dir.path().to_owned()));
        (dir, faulty)
    }

    fn deadline() -> Deadline {
        Deadline::stall(Duration::from_secs(10))
    }

    #[test]
    fn conforms_without_faults() {
        let (_dir, store) = store();
        conformance::run(&store);
        assert!(store.faults().calls() > 0);
        assert_eq!(store.faults().fired(), 0);
    }

    #[test]
    fn faults_act_at_their_call_only() {
        let (_dir, store) = store();
        let (faults, body, deadline) = (store.faults(), Bytes::from_static(b"0123456789"), deadline());
        faults.fail_at(1, Fault::Error(Moment::Before));
        faults.fail_at(2, Fault::Error(Moment::After));
        assert!(store.put_new("a", &body, &deadline).is_err());
        assert!(store.put_new("a", &body, &deadline).is_err());
        assert_eq!(store.put_new("a", &body, &deadline).unwrap(), Put::Existed);
        assert_eq!((faults.calls(), faults.fired()), (3, 2));
    }

    #[test]
    fn readers_are_spoiled() {
        let (_dir, store) = store();
        let (faults, body, deadline) = (store.faults(), Bytes::from_static(b"0123456789"), deadline());
        store.put_new("a", &body, &deadline).unwrap();
        let read = |fault| {
            faults.reset();
            faults.fail_at(1, fault);
            let mut content = Vec::new();
            let result = store.get("a", None, &deadline).unwrap().read_to_end(&mut content);
            (result.is_ok(), content)
        };
        assert_eq!(read(Fault::Truncate), (true, b"01234".to_vec()));
        assert_eq!(read(Fault::Break), (false, b"01234".to_vec()));
        assert_eq!(read(Fault::BitFlip), (true, b"01234%6789".to_vec()));
    }
}
