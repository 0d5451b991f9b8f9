//! A store in memory whose clock the test sets.

use crate::storage::{Deadline, Error, Object, Put, Result, Storage, Upload};
use bytes::Bytes;
use jiff::Timestamp;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Cursor, Read};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

#[derive(Debug, Default)]
pub(in crate::upkeep) struct Memory {
    state: Mutex<State>,
}

#[derive(Debug, Default, Clone)]
pub(in crate::upkeep) struct State {
    objects: BTreeMap<String, (Bytes, Timestamp)>,
    now: Timestamp,
    /// Keys with this in them cannot be deleted.
    locked: Option<String>,
}

impl Memory {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(in crate::upkeep) fn set_now(&self, now: Timestamp) {
        self.state().now = now;
    }

    pub(in crate::upkeep) fn lock(&self, part: &str) {
        self.state().locked = (!part.is_empty()).then(|| part.to_owned());
    }

    pub(in crate::upkeep) fn keys(&self) -> BTreeSet<String> {
        self.state().objects.keys().cloned().collect()
    }

    pub(in crate::upkeep) fn has(&self, key: &str) -> bool {
        self.state().objects.contains_key(key)
    }

    pub(in crate::upkeep) fn put(&self, key: &str, body: impl Into<Bytes>) {
        let now = self.state().now;
        self.state().objects.insert(key.to_owned(), (body.into(), now));
    }

    pub(in crate::upkeep) fn remove(&self, key: &str) {
        assert!(self.state().objects.remove(key).is_some(), "{key}");
    }

    pub(in crate::upkeep) fn copy(&self) -> Self {
        Self { state: Mutex::new(self.state().clone()) }
    }
}

fn object(key: &str, (body, modified): &(Bytes, Timestamp)) -> Object {
    Object { key: key.to_owned(), size: body.len() as u64, modified: Some(*modified), crc32: None }
}

impl Storage for Memory {
    fn url(&self) -> &'static str {
        "memory:"
    }

    fn put_new(&self, key: &str, body: &Bytes, _: &Deadline) -> Result<Put> {
        if self.state().objects.contains_key(key) {
            return Ok(Put::Existed);
        }
        self.put(key, body.clone());
        Ok(Put::Created)
    }

    fn upload_new<'a>(&'a self, _: &str, _: &Deadline) -> Result<Box<dyn Upload + 'a>> {
        Err(Error::Refused("no uploads".to_owned()))
    }

    fn get(&self, key: &str, range: Option<Range<u64>>, _: &Deadline) -> Result<Box<dyn Read + Send>> {
        let body = self.state().objects.get(key).ok_or_else(|| Error::NotFound(key.to_owned()))?.0.clone();
        let body = range.map_or(body.clone(), |range| body.slice(range.start as usize..range.end as usize));
        Ok(Box::new(Cursor::new(body)))
    }

    fn head(&self, key: &str, _: &Deadline) -> Result<Object> {
        let state = self.state();
        state.objects.get(key).map(|entry| object(key, entry)).ok_or_else(|| Error::NotFound(key.to_owned()))
    }

    fn list(&self, prefix: &str, start_after: &str, limit: usize, _: &Deadline) -> Result<Vec<Object>> {
        let state = self.state();
        let from = state.objects.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        let wanted = from.filter(|(key, _)| key.as_str() > start_after).take(limit);
        Ok(wanted.map(|(key, entry)| object(key, entry)).collect())
    }

    fn list_folders(&self, prefix: &str, deadline: &Deadline) -> Result<Vec<String>> {
        let objects = self.list(prefix, "", usize::MAX, deadline)?;
        let folders = objects.iter().filter_map(|object| Some(object.key[prefix.len()..].split_once('/')?.0));
        Ok(folders.map(str::to_owned).collect::<BTreeSet<_>>().into_iter().collect())
    }

    fn delete(&self, key: &str, _: &Deadline) -> Result<()> {
        let mut state = self.state();
        if state.locked.as_ref().is_some_and(|locked| key.contains(locked)) {
            return Err(Error::Refused("AccessDenied".to_owned()));
        }
        state.objects.remove(key);
        Ok(())
    }

    fn probe(&self, _: &Deadline) -> Result<()> {
        Ok(())
    }
}
