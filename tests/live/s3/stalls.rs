//! Slow is not stalled: what moves is let go on, what does not is given up. And what is sent on the wire.

use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use walden::storage::{Deadline, Error, Put, S3Storage, Storage};

use super::scripted::{Exchange, Scripted};
use super::{deadline, one_line, options};

fn connect(server: &Scripted) -> S3Storage {
    S3Storage::with_credentials(options(&server.endpoint, "bucket", ""), "access", "secret")
}

/// Reads a body in steps with a pause before each, `steps` of them or to the end. Returns whether that came.
fn read_slowly(exchange: &mut Exchange<'_>, step: usize, pause: Duration, steps: usize) -> bool {
    let mut left = usize::try_from(exchange.length()).unwrap();
    let mut buffer = vec![0; step];
    for _ in 0..steps {
        std::thread::sleep(pause);
        let count = step.min(left);
        if exchange.reader.read_exact(&mut buffer[..count]).is_err() {
            return false;
        }
        left -= count;
        if left == 0 {
            return true;
        }
    }
    false
}

#[test]
fn a_slow_upload_goes_on() {
    // 4 MB at 400 KB/s. The kernels of both sides would take most of it at once and then be silent for longer than
    // the stall that is allowed, if the store let them.
    let server = Scripted::start_with_buffer(64 << 10, |mut exchange| {
        assert!(read_slowly(&mut exchange, 100_000, Duration::from_millis(250), usize::MAX));
        exchange.answer(200, "", "");
    });
    let storage = connect(&server);
    let (stall, started) = (Duration::from_millis(2500), Instant::now());
    let put = storage.put_new("key", &Bytes::from(vec![7; 4_000_000]), &Deadline::stall(stall)).unwrap();
    assert_eq!(put, Put::Created);
    assert!(started.elapsed() > 3 * stall, "too quick to show anything: {:?}", started.elapsed());
}

#[test]
fn an_upload_that_stops_is_given_up() {
    let server = Scripted::start(|mut exchange| {
        read_slowly(&mut exchange, 200_000, Duration::from_millis(50), 10);
        std::thread::sleep(Duration::from_mins(1));
    });
    let started = Instant::now();
    let brief = Deadline::stall(Duration::from_millis(1500));
    let error = one_line(connect(&server).put_new("key", &Bytes::from(vec![7; 8_000_000]), &brief));
    assert!(matches!(&error, Error::TimedOut(text) if text.contains("no byte moved for 1.5s")), "{error}");
    assert!(started.elapsed() < Duration::from_secs(6), "{:?}", started.elapsed());
}

#[test]
fn a_slow_download_goes_on() {
    let server = Scripted::start(|mut exchange| {
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\n");
        for _ in 0..40 {
            std::thread::sleep(Duration::from_millis(100));
            exchange.write(&[5; 10_000]);
        }
    });
    let mut content = Vec::new();
    let storage = connect(&server);
    let brief = Deadline::stall(Duration::from_secs(1));
    storage.get("key", None, &brief).unwrap().read_to_end(&mut content).unwrap();
    assert_eq!(content, vec![5; 400_000]);
}

#[test]
fn a_body_without_its_end_is_no_object() {
    let server = Scripted::start(|mut exchange| {
        exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 400000\r\n\r\nbegin");
        let _ = exchange.reader.get_mut().shutdown(std::net::Shutdown::Both);
    });
    let mut content = Vec::new();
    let error =
        connect(&server).get("key", None, &deadline()).unwrap().read_to_end(&mut content).unwrap_err();
    assert!(error.to_string().contains("broke off after 5 of 400000 bytes"), "{error}");
}

#[test]
fn connections_are_used_again() {
    let server = Scripted::start(|mut exchange| {
        exchange.read_body();
        exchange.answer(200, "", "");
    });
    let storage = connect(&server);
    for index in 0..20 {
        storage.put_new(&format!("key{index}"), &Bytes::from(vec![7; 100_000]), &deadline()).unwrap();
    }
    // The next request may come before the last connection is back in the pool.
    assert!(server.connections() <= 3, "{} connections", server.connections());
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let storage = &storage;
            scope.spawn(move || {
                for index in 0..10 {
                    let key = format!("key{thread}-{index}");
                    storage.put_new(&key, &Bytes::from(vec![7; 100_000]), &deadline()).unwrap();
                }
            });
        }
    });
    assert!(server.connections() <= 8, "{} connections", server.connections());
}

#[test]
fn a_body_goes_in_one_piece_with_its_checksum() {
    let server = Scripted::start(|mut exchange| {
        let body = exchange.read_body();
        assert_eq!(body.len(), 100_000);
        assert_eq!(exchange.headers["if-none-match"], "*");
        assert_eq!(exchange.headers["x-amz-content-sha256"], "UNSIGNED-PAYLOAD");
        assert!(
            exchange.headers["authorization"].contains("x-amz-checksum-crc32"),
            "the checksum is not signed"
        );
        for header in ["transfer-encoding", "content-encoding", "x-amz-trailer", "expect"] {
            assert!(!exchange.has(header), "{header}");
        }
        exchange.answer(200, "", "");
    });
    connect(&server).put_new("key", &Bytes::from(vec![7; 100_000]), &deadline()).unwrap();
}

#[test]
fn a_store_that_does_not_know_the_checksum_gets_the_older_one() {
    let refused = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&refused);
    let server = Scripted::start(move |mut exchange| {
        exchange.read_body();
        if exchange.has("x-amz-checksum-crc32") {
            counter.fetch_add(1, Ordering::SeqCst);
            return exchange.refuse(400, "InvalidArgument");
        }
        assert!(exchange.has("content-md5") && exchange.has("if-none-match"));
        exchange.answer(200, "", "");
    });
    let storage = connect(&server);
    for key in ["a", "b", "c"] {
        assert_eq!(storage.put_new(key, &Bytes::from_static(b"x"), &deadline()).unwrap(), Put::Created);
    }
    assert_eq!(refused.load(Ordering::SeqCst), 1);
}

#[test]
fn what_is_wrong_with_the_bytes_is_not_taken_for_an_unknown_header() {
    let server = Scripted::start(|mut exchange| {
        exchange.read_body();
        assert!(exchange.has("x-amz-checksum-crc32") && exchange.has("if-none-match"));
        exchange.refuse(400, "BadDigest");
    });
    let error = one_line(connect(&server).put_new("key", &Bytes::from_static(b"x"), &deadline()));
    assert!(matches!(error, Error::Unreachable(_)), "{error}");
}

#[test]
fn a_conflict_with_another_write_ends_with_its_object() {
    let puts = AtomicUsize::new(0);
    let server = Scripted::start(move |mut exchange| {
        exchange.read_body();
        match exchange.method.as_str() {
            "PUT" if puts.fetch_add(1, Ordering::SeqCst) == 0 => {
                exchange.refuse(409, "ConditionalRequestConflict");
            }
            "PUT" => exchange.refuse(412, "PreconditionFailed"),
            "HEAD" if puts.load(Ordering::SeqCst) < 2 => exchange.write(b"HTTP/1.1 404 X\r\n\r\n"),
            _ => exchange.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1\r\n\r\n"),
        }
    });
    assert_eq!(
        connect(&server).put_new("key", &Bytes::from_static(b"x"), &deadline()).unwrap(),
        Put::Existed
    );
}

#[test]
fn answers_of_something_else_than_s3_prove_nothing() {
    // A web server or a proxy between us and the store.
    let server = Scripted::start(|mut exchange| {
        if exchange.method == "HEAD" {
            exchange.write(b"HTTP/1.1 404 Not Found\r\n\r\n");
        } else {
            exchange.answer(404, "content-type: text/html\r\n", "<html><body>Not\n\nFound</body></html>");
        }
    });
    let storage = connect(&server);
    assert!(matches!(one_line(storage.head("key", &deadline())), Error::Refused(_)));
    assert!(matches!(one_line(storage.get("key", None, &deadline()).map(drop)), Error::Refused(_)));
    assert!(matches!(one_line(storage.delete("key", &deadline())), Error::Refused(_)));
    // A page that says 200 to everything is no listing.
    let server = Scripted::start(|mut exchange| exchange.answer(200, "", "<html>Welcome!</html>"));
    let error = one_line(connect(&server).list("", "", 10, &deadline()));
    assert!(!error.is_not_found(), "{error}");
}
