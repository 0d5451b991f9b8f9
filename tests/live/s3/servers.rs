//! The suite against each server, and what those do differently.

use walden::storage::conformance::{self, Extent};
use walden::storage::{Error, Retry, S3Options, S3Storage, Storage};

use super::{deadline, missing_file, one_line, options, storage};
use crate::support::s3_store::{BUCKET, Conditions, Operation};
use crate::support::{Moto, Rclone, S3Store};

#[test]
fn the_in_memory_store_conforms() {
    let store = S3Store::start();
    conformance::run(&storage(&store, "some/prefix"));
    assert!(store.objects().is_empty());
}

#[test]
fn a_bucket_without_prefix_conforms_behind_retries() {
    let store = S3Store::start();
    store.set_page_limit(7);
    let few = Extent { keys: 60, ..Extent::default() };
    conformance::run_extent(&Retry::new(storage(&store, ""), 3), few);
    assert!(store.objects().is_empty());
}

#[test]
fn a_missing_bucket_proves_nothing_absent() {
    let store = S3Store::start();
    let options = options(&store.endpoint, "no-such-bucket", "prefix");
    let storage = S3Storage::with_credentials(options, &store.access_key, &store.secret_key);
    conformance::run_without_root(&storage);
    assert!(
        matches!(one_line(storage.probe(&deadline())), Error::Refused(text) if text.contains("NoSuchBucket"))
    );
}

#[test]
fn a_missing_key_behind_403_is_not_proven_absent() {
    let store = S3Store::start();
    store.set_hide_missing(true);
    let storage = storage(&store, "");
    assert!(matches!(one_line(storage.get("key", None, &deadline()).map(drop)), Error::Refused(_)));
    assert!(matches!(one_line(storage.head("key", &deadline())), Error::Refused(_)));
}

#[test]
fn a_store_that_refuses_conditions_is_asked_before_each_put() {
    let store = S3Store::start();
    store.set_conditions(Conditions::Refused);
    let storage = storage(&store, "");
    conformance::run_extent(&storage, Extent { keys: 10, races: false });
    // Found out once, by one put that was refused.
    let refused = store.requests().iter().filter(|request| request.create_only).count();
    assert_eq!(refused, 1);
}

#[test]
fn a_store_without_conditions_is_configured_so() {
    let store = S3Store::start();
    store.set_conditions(Conditions::Ignored);
    let mut options = options(&store.endpoint, BUCKET, "");
    (options.conditional_writes, options.checksums) = (false, false);
    let storage = S3Storage::with_credentials(options, &store.access_key, &store.secret_key);
    conformance::run_extent(&storage, Extent { keys: 10, races: false });
    assert!(store.requests().iter().all(|request| !request.create_only));
}

#[test]
fn a_put_is_one_request() {
    let store = S3Store::start();
    let storage = storage(&store, "");
    storage.put_new("key", &vec![1; 5_000_000].into(), &deadline()).unwrap();
    let requests = store.requests();
    assert_eq!(requests.len(), 1, "{requests:?}");
    assert_eq!(requests[0].operation, Operation::PutObject);
    assert!(requests[0].create_only);
    assert_eq!(storage.head("key", &deadline()).unwrap().crc32, Some(crc32fast::hash(&vec![1; 5_000_000])));
}

#[test]
fn wrong_keys_are_refused_in_one_line() {
    let store = S3Store::start();
    let options = options(&store.endpoint, BUCKET, "");
    let wrong_secret = S3Storage::with_credentials(options.clone(), &store.access_key, "wrong");
    let error = one_line(wrong_secret.probe(&deadline()));
    assert!(matches!(&error, Error::Refused(text) if text.contains("SignatureDoesNotMatch")), "{error}");
    let wrong_key = S3Storage::with_credentials(options, "nobody", "wrong");
    assert!(matches!(one_line(wrong_key.head("key", &deadline())), Error::Refused(_)));
    assert!(matches!(one_line(wrong_key.get("key", None, &deadline()).map(drop)), Error::Refused(_)));
    assert!(matches!(one_line(wrong_key.put_new("key", &"x".into(), &deadline())), Error::Refused(_)));
}

#[test]
fn moto_conforms() {
    let Some(moto) = Moto::start() else { return };
    moto.create_bucket("walden");
    let options = S3Options {
        storage_class: Some("STANDARD_IA".to_owned()),
        tags: vec![("cluster".to_owned(), "main @ home".to_owned())],
        ..options(&moto.endpoint, "walden", "prefix")
    };
    let storage = S3Storage::with_credentials(options, &moto.access_key, &moto.secret_key);
    // Nothing in moto makes the check and the write one step, so a race may come out wrong (though rarely).
    conformance::run_extent(&storage, Extent { races: false, ..Extent::default() });
    let nowhere = super::options(&moto.endpoint, "nowhere", "prefix");
    conformance::run_without_root(&S3Storage::with_credentials(nowhere, &moto.access_key, &moto.secret_key));
}

#[test]
fn rclone_conforms_over_tls() {
    let Some(rclone) = Rclone::start() else { return };
    let connect =
        |options: S3Options| S3Storage::with_credentials(options, &rclone.access_key, &rclone.secret_key);
    let trusting = S3Options {
        ca_file: Some(rclone.ca_file.clone()),
        conditional_writes: false,
        ..options(&rclone.endpoint, &rclone.bucket, "prefix")
    };
    conformance::run_extent(&connect(trusting.clone()), Extent { races: false, ..Extent::default() });
    let nowhere = S3Options { bucket: "nowhere".to_owned(), ..trusting.clone() };
    conformance::run_without_root(&connect(nowhere));

    // Without its authority the server is not spoken to.
    let system = S3Options { ca_file: None, ..trusting.clone() };
    let error = one_line(connect(system).probe(&deadline()));
    assert!(matches!(&error, Error::Refused(text) if text.contains("ca_file")), "{error}");
    let missing = S3Options { ca_file: Some(missing_file()), ..trusting };
    let error = one_line(connect(missing).probe(&deadline()));
    assert!(matches!(&error, Error::Refused(text) if text.contains("/nowhere/authority.pem")), "{error}");
}
