//! Uploads in parts: faults at every request, and never an object that is not whole, nor a part that stays behind.

use std::io::Read;

use bytes::Bytes;
use walden::storage::{Error, PART_SIZE, Put, Result, Retry, Storage};

use super::{deadline, storage};
use crate::support::S3Store;
use crate::support::s3_store::{Conditions, Fault, Operation, Rule};

fn parts() -> Vec<Bytes> {
    (0..3_u8).map(|part| Bytes::from(vec![part; if part < 2 { PART_SIZE } else { 1000 }])).collect()
}

fn upload(storage: &dyn Storage) -> Result<Put> {
    let mut upload = storage.upload_new("key", &deadline())?;
    for (index, part) in (0..).zip(parts()) {
        upload.part(index, &part)?;
    }
    upload.complete()
}

#[track_caller]
fn is_whole(storage: &dyn Storage) {
    let mut content = Vec::new();
    storage.get("key", None, &deadline()).unwrap().read_to_end(&mut content).unwrap();
    assert!(content == parts().concat());
}

#[test]
fn a_fault_at_any_request_is_mended_or_leaves_nothing() {
    let store = S3Store::start();
    let operations =
        [Operation::CreateMultipartUpload, Operation::UploadPart, Operation::CompleteMultipartUpload];
    for operation in operations {
        for fault in [Fault::Status(503, "SlowDown"), Fault::Reset, Fault::ResetAfter] {
            store.heal();
            store.remove("key");
            store.fail(Rule::new(fault.clone()).on(operation).times(1));
            let retry = Retry::new(storage(&store, ""), 4);
            // An answer that was lost may have been that of the completion.
            let put = upload(&retry).unwrap_or_else(|error| panic!("{operation:?} {fault:?}: {error}"));
            let lost = operation == Operation::CompleteMultipartUpload && matches!(fault, Fault::ResetAfter);
            assert_eq!(put == Put::Existed, lost, "{operation:?} {fault:?}");
            is_whole(&retry);
            // Nobody knows of an upload whose first answer was lost: a lifecycle rule is what removes those.
            let unknown = operation == Operation::CreateMultipartUpload && matches!(fault, Fault::ResetAfter);
            if !unknown {
                continue;
            }
            assert_eq!(store.open_uploads(), 1);
        }
    }
    assert_eq!(store.open_uploads(), 1);
    for operation in operations {
        store.heal();
        store.remove("key");
        store.fail(Rule::new(Fault::Status(403, "AccessDenied")).on(operation));
        assert!(matches!(upload(&storage(&store, "")), Err(Error::Refused(_))));
        assert!(store.objects().is_empty());
        assert_eq!(store.open_uploads(), 1, "{operation:?} leaves parts");
    }
}

#[test]
fn the_completion_bears_the_condition_and_the_checksum_of_the_whole() {
    let store = S3Store::start();
    let storage = storage(&store, "");
    assert_eq!(upload(&storage).unwrap(), Put::Created);
    assert!(store.requests().last().is_some_and(|request| request.create_only));
    assert_eq!(storage.head("key", &deadline()).unwrap().crc32, Some(crc32fast::hash(&parts().concat())));
    // Another writer came first.
    store.put_raw("key", b"other".to_vec());
    assert_eq!(upload(&storage).unwrap(), Put::Existed);
    assert_eq!(store.object("key").unwrap(), b"other");
    assert_eq!(store.open_uploads(), 0);
}

#[test]
fn a_store_that_refuses_conditions_is_asked_before_the_completion() {
    let store = S3Store::start();
    store.set_conditions(Conditions::Refused);
    let storage = storage(&store, "");
    assert_eq!(upload(&storage).unwrap(), Put::Created);
    is_whole(&storage);
    assert_eq!(upload(&storage).unwrap(), Put::Existed);
    assert_eq!(store.requests().iter().filter(|request| request.create_only).count(), 1);
    assert_eq!(store.open_uploads(), 0);
}
