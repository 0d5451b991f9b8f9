//! Faults of a server, by kind: never a wrong success, never "absent", and retries where they help.

use std::io::Read;
use std::time::{Duration, Instant};

use bytes::Bytes;
use walden::storage::{Deadline, Error, Put, Result, Retry, S3Storage, Storage};

use super::{deadline, one_line, options, storage};
use crate::support::S3Store;
use crate::support::s3_store::{Fault, Operation, Rule};

fn read(storage: &dyn Storage, key: &str, deadline: &Deadline) -> std::io::Result<Vec<u8>> {
    let mut content = Vec::new();
    storage.get(key, None, deadline).map_err(std::io::Error::other)?.read_to_end(&mut content)?;
    Ok(content)
}

/// Makes every kind of call.
fn calls(storage: &dyn Storage) -> Vec<Result<()>> {
    let deadline = deadline();
    vec![
        storage.put_new("new", &Bytes::from_static(b"x"), &deadline).map(drop),
        storage.get("key", None, &deadline).map(drop),
        storage.head("key", &deadline).map(drop),
        storage.list("", "", 10, &deadline).map(drop),
        storage.list_folders("", &deadline).map(drop),
        storage.delete("key", &deadline),
        storage.probe(&deadline),
    ]
}

#[test]
fn answers_are_told_apart() {
    let store = S3Store::start();
    let storage = storage(&store, "");
    let statuses = [
        (503, "SlowDown", true),
        (500, "InternalError", true),
        (429, "TooManyRequests", true),
        (408, "RequestTimeout", true),
        (403, "AccessDenied", false),
        (403, "RequestTimeTooSkewed", false),
        (401, "Unauthorized", false),
        (400, "ExpiredToken", false),
        (404, "NoSuchBucket", false),
        (404, "SomethingElse", false),
        (405, "MethodNotAllowed", false),
        (507, "StorageFull", false),
    ];
    for (status, code, retryable) in statuses {
        store.heal();
        store.fail(Rule::new(Fault::Status(status, code)));
        for result in calls(&storage) {
            let error = one_line(result);
            assert!(!error.is_not_found(), "{status} {code} proves absence: {error}");
            assert_eq!(error.is_retryable(), retryable, "{status} {code}: {error}");
            assert!(error.to_string().contains(&status.to_string()), "{status} {code}: {error}");
        }
    }
}

#[test]
fn what_arrived_incomplete_is_sent_again() {
    let store = S3Store::start();
    let storage = storage(&store, "");
    for code in ["RequestTimeout", "IncompleteBody", "BadDigest"] {
        store.heal();
        store.fail(Rule::new(Fault::Status(400, code)));
        let error = one_line(storage.put_new("new", &Bytes::from_static(b"x"), &deadline()));
        assert!(matches!(&error, Error::Unreachable(text) if text.contains(code)), "{error}");
        assert_eq!(store.count(Operation::PutObject), 1, "sent without checksum or condition");
        store.forget_requests();
    }
}

#[test]
fn a_server_that_is_down_is_unreachable() {
    let store = S3Store::start();
    let live = storage(&store, "");
    live.probe(&deadline()).unwrap();
    store.set_down(true);
    for result in calls(&live) {
        assert!(matches!(one_line(result), Error::Unreachable(_)));
    }
    store.heal();
    live.probe(&deadline()).unwrap();

    // Nobody listens there.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let nobody = S3Storage::with_credentials(options(&endpoint, "bucket", ""), "a", "b");
    for result in calls(&nobody) {
        assert!(matches!(one_line(result), Error::Unreachable(_)));
    }
    let nowhere = options("http://no-such-host.invalid:9000", "bucket", "");
    let error = one_line(S3Storage::with_credentials(nowhere, "a", "b").probe(&deadline()));
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
}

#[test]
fn throttling_is_waited_out() {
    let store = S3Store::start();
    store.fail(Rule::new(Fault::Status(503, "SlowDown")).times(2));
    let storage = Retry::new(storage(&store, ""), 4);
    assert_eq!(storage.put_new("key", &Bytes::from_static(b"x"), &deadline()).unwrap(), Put::Created);
    store.fail(Rule::new(Fault::Status(503, "SlowDown")));
    let error = one_line(storage.probe(&deadline()));
    assert!(error.to_string().ends_with(", after 4 attempts"), "{error}");
}

#[test]
fn a_put_whose_answer_was_lost_is_found() {
    let store = S3Store::start();
    store.fail(Rule::new(Fault::ResetAfter).on(Operation::PutObject).times(1));
    let storage = Retry::new(storage(&store, ""), 4);
    assert_eq!(storage.put_new("key", &Bytes::from_static(b"x"), &deadline()).unwrap(), Put::Existed);
    assert_eq!(store.object("key").unwrap(), b"x");
}

#[test]
fn damage_on_the_way_or_in_the_store_is_noticed() {
    let store = S3Store::start();
    let storage = storage(&store, "");
    let body = Bytes::from((0..1_000_000_u32).flat_map(u32::to_le_bytes).collect::<Vec<u8>>());
    storage.put_new("key", &body, &deadline()).unwrap();
    for fault in [Fault::Truncate(500_000), Fault::Shorten(500_000), Fault::Shorten(0), Fault::WrongBytes] {
        store.fail(Rule::new(fault.clone()).times(1));
        let error = read(&storage, "key", &deadline()).expect_err(&format!("{fault:?} went unnoticed"));
        let carried = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
        assert!(carried.is_some(), "{fault:?}: {error:?}");
        assert!(!error.to_string().contains('\n'), "{fault:?}: {error}");
    }
    store.damage("key", 123_456);
    assert!(read(&storage, "key", &deadline()).is_err());
}

#[test]
fn a_server_that_does_not_answer_is_given_up() {
    let store = S3Store::start();
    store.set_hung(true);
    let storage = storage(&store, "");
    let started = Instant::now();
    let brief = Deadline::stall(Duration::from_millis(600));
    let error = one_line(storage.put_new("key", &Bytes::from(vec![1; 3_000_000]), &brief));
    assert!(matches!(&error, Error::TimedOut(text) if text.contains("no byte moved")), "{error}");
    assert!(matches!(one_line(storage.probe(&brief)), Error::TimedOut(_)));
    assert!(matches!(one_line(storage.get("key", None, &brief).map(drop)), Error::TimedOut(_)));
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_body_that_stalls_is_given_up() {
    let store = S3Store::start();
    let storage = storage(&store, "");
    storage.put_new("key", &Bytes::from(vec![1; 3_000_000]), &deadline()).unwrap();
    store.fail(Rule::new(Fault::Stall(1_000_000)));
    let started = Instant::now();
    let error = read(&storage, "key", &Deadline::stall(Duration::from_millis(600))).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
}

#[test]
fn a_cut_ends_calls_that_wait() {
    let store = S3Store::start();
    store.set_hung(true);
    let storage = Retry::new(storage(&store, ""), 10);
    let deadline = deadline();
    let started = Instant::now();
    std::thread::scope(|scope| {
        let call = scope.spawn(|| storage.probe(&deadline));
        std::thread::sleep(Duration::from_millis(200));
        deadline.cut_after(Duration::from_millis(200));
        assert!(matches!(one_line(call.join().unwrap()), Error::TimedOut(_)));
    });
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}
