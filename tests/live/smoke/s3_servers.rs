//! rclone over TLS and moto's server start and take objects.

use aws_sdk_s3::primitives::ByteStream;

use crate::support::{Moto, Rclone, S3Client, wait_until};

#[test]
fn rclone_serves_s3_over_tls() {
    let Some(rclone) = Rclone::start() else { return };
    let connect = |ca_file| S3Client::new(&rclone.endpoint, &rclone.access_key, &rclone.secret_key, ca_file);
    let client = connect(Some(rclone.ca_file.as_path()));
    let put = client
        .client
        .put_object()
        .bucket(&rclone.bucket)
        .key("deep/down/a")
        .body(ByteStream::from_static(b"x"));
    client.wait(put.send()).unwrap();
    assert_eq!(rclone.object("deep/down/a").as_deref(), Some(b"x".as_slice()));
    // What a test puts into the directory is served as soon as rclone looks again.
    std::fs::write(rclone.bucket_dir().join("b"), "y").unwrap();
    wait_until("both objects are listed", || {
        let list = client.wait(client.client.list_objects_v2().bucket(&rclone.bucket).send()).unwrap();
        let keys: Vec<_> = list.contents().iter().map(|object| object.key().unwrap().to_owned()).collect();
        keys == ["b", "deep/down/a"]
    });

    let distrustful = connect(None);
    assert!(distrustful.wait(distrustful.client.list_buckets().send()).is_err());
}

#[test]
fn moto_has_versions_and_locks() {
    let Some(moto) = Moto::start() else { return };
    moto.create_bucket("plain");
    moto.enable_versioning("plain");
    moto.create_locked_bucket("locked");
    let client = S3Client::new(&moto.endpoint, &moto.access_key, &moto.secret_key, None);
    let put = |bucket: &str| {
        let put = client.client.put_object().bucket(bucket).key("a").if_none_match("*");
        client.wait(put.body(ByteStream::from_static(b"x")).send())
    };
    assert!(put("plain").unwrap().version_id().is_some());
    assert_eq!(put("plain").unwrap_err().raw_response().unwrap().status().as_u16(), 412);
    let locked = client.wait(client.client.get_object_lock_configuration().bucket("locked").send()).unwrap();
    assert!(locked.object_lock_configuration().is_some());
}
