//! The in-memory store keeps what it promises: asked by the AWS SDK over HTTP.

use std::time::Duration;

use aws_sdk_s3::config::RequestChecksumCalculation;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::put_object::{PutObjectError, PutObjectOutput};
use aws_sdk_s3::primitives::{AggregatedBytes, ByteStream};
use aws_sdk_s3::types::{
    ChecksumAlgorithm, ChecksumMode, CompletedMultipartUpload, CompletedPart, Delete, ObjectIdentifier,
};
use base64::Engine;

use crate::support::s3_store::{BUCKET, Conditions, Fault, Operation, Rule};
use crate::support::{S3Client, S3Store};

fn client(store: &S3Store) -> S3Client {
    S3Client::new(&store.endpoint, &store.access_key, &store.secret_key, None)
}

fn crc(data: &[u8]) -> String {
    base64::engine::general_purpose::STANDARD.encode(crc32fast::hash(data).to_be_bytes())
}

type Put = Result<PutObjectOutput, SdkError<PutObjectError>>;

fn create(client: &S3Client, key: &str, data: &[u8]) -> Put {
    let put = client.client.put_object().bucket(BUCKET).key(key).if_none_match("*").checksum_crc32(crc(data));
    client.wait(put.body(ByteStream::from(data.to_vec())).send())
}

fn get(client: &S3Client, key: &str) -> Result<Vec<u8>, String> {
    client.wait(async {
        let output = client
            .client
            .get_object()
            .bucket(BUCKET)
            .key(key)
            .send()
            .await
            .map_err(|e| e.into_service_error().to_string())?;
        output.body.collect().await.map(AggregatedBytes::to_vec).map_err(|error| error.to_string())
    })
}

/// The status of an answer, and the error code in it.
fn refusal<T: std::fmt::Debug, E: ProvideErrorMetadata>(result: Result<T, SdkError<E>>) -> (u16, String) {
    let error = result.expect_err("a refusal");
    let status = error.raw_response().map_or(0, |response| response.status().as_u16());
    (status, error.code().unwrap_or_default().to_owned())
}

#[test]
fn of_racing_create_only_puts_one_succeeds() {
    let store = S3Store::start();
    let client = client(&store);
    for round in 0..20 {
        let key = format!("race/{round}");
        let bodies: Vec<_> = (0..8_u8).map(|writer| vec![writer; 100_000]).collect();
        let puts = bodies.iter().map(|body| {
            let put = client.client.put_object().bucket(BUCKET).key(&key).if_none_match("*");
            put.body(ByteStream::from(body.clone())).send()
        });
        let results = client.wait(futures::future::join_all(puts));
        let winners: Vec<_> = results.iter().enumerate().filter(|(_, result)| result.is_ok()).collect();
        assert_eq!(winners.len(), 1);
        assert_eq!(store.object(&key).as_ref(), bodies.get(winners[0].0));
    }
    assert_eq!(refusal(create(&client, "race/0", b"x")), (412, "PreconditionFailed".to_owned()));
    store.set_conditions(Conditions::Refused);
    assert_eq!(refusal(create(&client, "race/0", b"x")), (501, "NotImplemented".to_owned()));
    store.set_conditions(Conditions::Ignored);
    create(&client, "race/0", b"x").unwrap();
    assert_eq!(store.object("race/0").as_deref(), Some(b"x".as_slice()));
}

#[test]
fn a_wrong_checksum_leaves_no_object() {
    let store = S3Store::start();
    let client = client(&store);
    let put = || client.client.put_object().bucket(BUCKET).key("a").body(ByteStream::from_static(b"content"));
    let wrong = client.wait(put().checksum_crc32(crc(b"other")).send());
    assert_eq!(refusal(wrong), (400, "BadDigest".to_owned()));
    let wrong = client.wait(put().content_md5("1B2M2Y8AsgTpgAmY7PhCfg==").send());
    assert_eq!(refusal(wrong), (400, "BadDigest".to_owned()));
    assert_eq!(store.objects(), Vec::<String>::new());

    client.wait(put().checksum_crc32(crc(b"content")).send()).unwrap();
    let head = client.client.head_object().bucket(BUCKET).key("a").checksum_mode(ChecksumMode::Enabled);
    assert_eq!(client.wait(head.send()).unwrap().checksum_crc32(), Some(crc(b"content").as_str()));
    // A checksum in the trailer, as the SDK sends it by itself.
    let config = aws_sdk_s3::config::Builder::new()
        .request_checksum_calculation(RequestChecksumCalculation::WhenSupported);
    let put = put().checksum_algorithm(ChecksumAlgorithm::Sha256).customize().config_override(config);
    client.wait(put.send()).unwrap();
    let head = client.client.head_object().bucket(BUCKET).key("a").checksum_mode(ChecksumMode::Enabled);
    assert!(client.wait(head.send()).unwrap().checksum_sha256().is_some());
    store.damage("a", 3);
    let read = client.client.get_object().bucket(BUCKET).key("a").checksum_mode(ChecksumMode::Enabled);
    let body = client.wait(async { read.send().await.unwrap().body.collect().await.map(|_| ()) });
    assert!(format!("{:?}", body.unwrap_err()).contains("hecksum"));
}

#[test]
fn ranges_and_missing_keys() {
    let store = S3Store::start();
    let client = client(&store);
    store.put_raw("a", b"0123456789".to_vec());
    let range =
        |range: &str| client.wait(client.client.get_object().bucket(BUCKET).key("a").range(range).send());
    let part = range("bytes=2-4").unwrap();
    assert_eq!(part.content_range(), Some("bytes 2-4/10"));
    assert_eq!(client.wait(part.body.collect()).unwrap().to_vec(), b"234");
    let tail = range("bytes=-3").unwrap();
    assert_eq!(client.wait(tail.body.collect()).unwrap().to_vec(), b"789");
    assert_eq!(refusal(range("bytes=10-")).0, 416);

    let missing = || client.wait(client.client.get_object().bucket(BUCKET).key("b").send());
    assert_eq!(refusal(missing()), (404, "NoSuchKey".to_owned()));
    store.set_hide_missing(true);
    assert_eq!(refusal(missing()), (403, "AccessDenied".to_owned()));
    let stranger = S3Client::new(&store.endpoint, &store.access_key, "wrong", None);
    assert_eq!(refusal(stranger.wait(stranger.client.get_object().bucket(BUCKET).key("a").send())).0, 403);
}

#[test]
fn listings_go_by_pages() {
    let store = S3Store::start();
    let client = client(&store);
    for key in ["w/1/a", "w/1/b", "w/2/a", "w/2/b", "w/3", "w/4/a", "x"] {
        store.put_raw(key, b"".to_vec());
    }
    store.set_page_limit(2);
    let list = |delimiter: Option<&str>, after: Option<&str>| {
        let (mut found, mut token) = (Vec::new(), None);
        loop {
            let request = client.client.list_objects_v2().bucket(BUCKET).prefix("w/");
            let request =
                request.set_delimiter(delimiter.map(str::to_owned)).set_start_after(after.map(str::to_owned));
            let page = client.wait(request.set_continuation_token(token).send()).unwrap();
            found.extend(page.contents().iter().map(|object| object.key().unwrap().to_owned()));
            found.extend(page.common_prefixes().iter().map(|prefix| prefix.prefix().unwrap().to_owned()));
            token = page.next_continuation_token().map(str::to_owned);
            assert_eq!(token.is_some(), page.is_truncated() == Some(true));
            if token.is_none() {
                found.sort();
                return found;
            }
        }
    };
    assert_eq!(list(None, None), ["w/1/a", "w/1/b", "w/2/a", "w/2/b", "w/3", "w/4/a"]);
    assert_eq!(list(None, Some("w/2/a")), ["w/2/b", "w/3", "w/4/a"]);
    assert_eq!(list(Some("/"), None), ["w/1/", "w/2/", "w/3", "w/4/"]);
    assert_eq!(store.count(Operation::ListObjectsV2), 3 + 2 + 2);

    let doomed = ["w/3", "x", "absent"].map(|key| ObjectIdentifier::builder().key(key).build().unwrap());
    let delete = Delete::builder().set_objects(Some(doomed.to_vec())).build().unwrap();
    client.wait(client.client.delete_objects().bucket(BUCKET).delete(delete).send()).unwrap();
    client.wait(client.client.delete_object().bucket(BUCKET).key("w/1/a").send()).unwrap();
    assert_eq!(store.objects(), ["w/1/b", "w/2/a", "w/2/b", "w/4/a"]);
}

#[test]
fn multipart_completes_under_a_condition() {
    let store = S3Store::start();
    let client = client(&store);
    let parts = [vec![1_u8; 5 << 20], vec![2_u8; 1000]];
    let upload = || {
        client.wait(async {
            let s3 = &client.client;
            let id = s3.create_multipart_upload().bucket(BUCKET).key("big").send().await.unwrap();
            let id = id.upload_id().unwrap().to_owned();
            let mut done = Vec::new();
            for (number, part) in (1..).zip(&parts) {
                let request = s3.upload_part().bucket(BUCKET).key("big").upload_id(&id).part_number(number);
                let sent = request
                    .checksum_crc32(crc(part))
                    .body(ByteStream::from(part.clone()))
                    .send()
                    .await
                    .unwrap();
                done.push(CompletedPart::builder().part_number(number).set_e_tag(sent.e_tag).build());
            }
            let list = CompletedMultipartUpload::builder().set_parts(Some(done)).build();
            let request = s3.complete_multipart_upload().bucket(BUCKET).key("big").upload_id(&id);
            let result = request.if_none_match("*").multipart_upload(list).send().await;
            if result.is_err() {
                s3.abort_multipart_upload().bucket(BUCKET).key("big").upload_id(&id).send().await.unwrap();
            }
            result
        })
    };
    let output = upload().unwrap();
    assert!(output.e_tag().is_some_and(|tag| tag.ends_with("-2\"")));
    assert_eq!(store.object("big"), Some(parts.concat()));
    assert_eq!(refusal(upload()), (412, "PreconditionFailed".to_owned()));
    assert_eq!(store.open_uploads(), 0);
    assert_eq!(store.count(Operation::UploadPart), 4);
    assert_eq!(store.count(Operation::AbortMultipartUpload), 1);
}

#[test]
fn faults_come_on_demand() {
    let store = S3Store::start();
    let client = client(&store);
    let content: Vec<u8> = (0..100_000_u32).map(|i| i.to_le_bytes()[0]).collect();
    store.put_raw("a", content.clone());

    store.fail(Rule::new(Fault::Status(503, "SlowDown")).on(Operation::PutObject).key("b").after(1).times(2));
    assert!(create(&client, "b1", b"1").is_ok());
    assert_eq!(refusal(create(&client, "b2", b"2")), (503, "SlowDown".to_owned()));
    assert!(create(&client, "c", b"3").is_ok());
    assert_eq!(refusal(create(&client, "b3", b"4")), (503, "SlowDown".to_owned()));
    assert!(create(&client, "b4", b"5").is_ok());
    assert_eq!(store.objects(), ["a", "b1", "b4", "c"]);
    let requests = store.requests();
    let statuses: Vec<_> = requests.iter().map(|request| request.status.unwrap()).collect();
    assert_eq!(statuses, [200, 503, 200, 503, 200]);
    assert!(requests.iter().all(|request| request.create_only && request.bucket == BUCKET));

    store.fail(Rule::new(Fault::ResetAfter).key("d").times(1));
    assert!(matches!(create(&client, "d", b"d"), Err(SdkError::DispatchFailure(_))));
    assert_eq!(store.object("d").as_deref(), Some(b"d".as_slice()));
    store.fail(Rule::new(Fault::Reset).key("e").times(1));
    assert!(matches!(create(&client, "e", b"e"), Err(SdkError::DispatchFailure(_))));
    assert_eq!(store.object("e"), None);

    store.fail(Rule::new(Fault::Truncate(5000)).times(1));
    assert!(get(&client, "a").is_err());
    store.fail(Rule::new(Fault::Shorten(5000)).times(1));
    assert_eq!(get(&client, "a").unwrap(), content[..5000]);
    store.fail(Rule::new(Fault::WrongBytes).times(1));
    let wrong = get(&client, "a").unwrap();
    assert_eq!(wrong.iter().zip(&content).filter(|(a, b)| a != b).count(), 1);
    assert_eq!(get(&client, "a").unwrap(), content);

    let impatient = |key: &str| {
        client.wait(async {
            tokio::time::timeout(Duration::from_millis(300), async { get_async(&client, key).await }).await
        })
    };
    for fault in [Fault::Hang, Fault::Stall(5000), Fault::Delay(Duration::from_secs(5))] {
        store.fail(Rule::new(fault).times(1));
        assert!(impatient("a").is_err());
    }
    assert_eq!(impatient("a").unwrap(), 100_000);
}

async fn get_async(client: &S3Client, key: &str) -> usize {
    let output = client.client.get_object().bucket(BUCKET).key(key).send().await.unwrap();
    output.body.collect().await.unwrap().to_vec().len()
}

#[test]
fn a_store_goes_down_and_comes_back() {
    let store = S3Store::start();
    let client = client(&store);
    store.put_raw("a", b"a".to_vec());
    assert_eq!(get(&client, "a").unwrap(), b"a");
    store.set_down(true);
    assert!(get(&client, "a").is_err());
    assert!(get(&client, "a").is_err());
    store.set_down(false);
    assert_eq!(get(&client, "a").unwrap(), b"a");
}
