//! What surrounds the work of an operating command: its entry in the log of operations, and who is told of it.

use crate::config::Config;
use crate::error::exit_code;
use crate::index::{IndexHandle, host};
use crate::kind::Result;
use crate::upkeep::notify::{self, Event, EventKind};
use jiff::Timestamp;
use serde_json::{Map, Value};
use std::cell::RefCell;

/// What an operation has to say beyond its outcome.
#[derive(Debug)]
pub struct Details<'a> {
    index: &'a IndexHandle,
    operation: Option<i64>,
    subject: RefCell<String>,
    values: RefCell<Map<String, Value>>,
}

impl Details<'_> {
    /// Notes a value.
    pub fn note(&self, key: &str, value: impl Into<Value>) {
        self.values.borrow_mut().insert(key.to_owned(), value.into());
    }

    /// Says what it is about, once that is known.
    pub fn subject(&self, subject: &str) {
        if let Some(operation) = self.operation {
            self.index.run(|index| index.log_subject(operation, subject));
        }
        subject.clone_into(&mut self.subject.borrow_mut());
    }

    fn value(&self) -> Value {
        Value::Object(self.values.borrow().clone())
    }
}

/// Does `work` as the operation `command`: writes it into the log, with its outcome, and tells whoever wants to hear of it.
/// Nothing of that fails the work.
pub fn run<T>(
    config: &Config,
    index: &IndexHandle,
    command: &str,
    subject: &str,
    work: impl FnOnce(&Details<'_>) -> Result<T>,
) -> Result<T> {
    let operation = index.log_start(command, subject);
    let details =
        Details { index, operation, subject: RefCell::new(subject.to_owned()), values: RefCell::default() };
    let result = work(&details);
    index.log_end_with(operation, &result, exit_code, &details.value().to_string());
    let what = format!("{command} {}", details.subject.borrow()).trim_end().to_owned();
    let ended = match &result {
        Ok(_) => (done_event(command), "ok", format!("{what}: done")),
        Err(error) => (failed_event(command), "critical", format!("{what}: FAILED: {error}")),
    };
    if let (Some(kind), level, text) = ended {
        details.note("exit_code", result.as_ref().err().map_or(0, |error| exit_code(error.kind())));
        event(config, index, kind, level, text, details.value());
    }
    deliver(config, index);
    result
}

fn done_event(command: &str) -> Option<EventKind> {
    match command {
        "base-backup" => Some(EventKind::BackupDone),
        "recover" => Some(EventKind::RestoreDone),
        _ => None,
    }
}

fn failed_event(command: &str) -> Option<EventKind> {
    match command {
        "base-backup" => Some(EventKind::BackupFailed),
        "verify" => Some(EventKind::VerifyFailed),
        "expire" => Some(EventKind::ExpireFailed),
        "recover" => Some(EventKind::RestoreFailed),
        _ => None,
    }
}

/// Queues an event, if somebody wants to hear of it.
pub fn event(
    config: &Config,
    index: &IndexHandle,
    kind: EventKind,
    level: &'static str,
    text: String,
    details: Value,
) {
    if config.notify.want(kind) {
        notify::queue(&config.notify, index, &made(config, kind.name(), level, &text, details));
    }
}

/// Returns an event of this cluster and machine.
pub fn made(config: &Config, name: &str, level: &'static str, text: &str, details: Value) -> Event {
    let host = host();
    Event {
        text: format!("walden: cluster \"{}\" on {host}: {text}", config.cluster),
        event: name.to_owned(),
        level,
        cluster: config.cluster.clone(),
        host,
        time: Timestamp::now(),
        details,
    }
}

/// Delivers the notifications whose time has come, within a bound of time.
pub fn deliver(config: &Config, index: &IndexHandle) {
    if !config.notify.is_empty() {
        notify::deliver(&config.notify, index);
    }
}
