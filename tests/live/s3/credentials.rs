//! Credentials from every place of AWS's standard chain that users have them in.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::sync::{Arc, Mutex};

use crate::support::user::{self, WorkDir};
use crate::support::walden::Config;
use crate::support::{Moto, S3Store, Walden};

/// A server that hands out the credentials of a store, as an instance's or a container's does. It never ends; its thread
/// ends with the test.
struct Issuer {
    address: String,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Issuer {
    fn start(access_key: &str, secret_key: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("listen");
        let address = listener.local_addr().expect("an address").to_string();
        let credentials = format!(
            r#"{{"Code":"Success","Type":"AWS-HMAC","LastUpdated":"2026-01-01T00:00:00Z","AccessKeyId":"{access_key}","SecretAccessKey":"{secret_key}","Token":"t","Expiration":"2099-01-01T00:00:00Z"}}"#
        );
        let asked = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&asked);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
                let request = lines.next().unwrap_or_default();
                lines.find(String::is_empty);
                let body = match request.split(' ').nth(1).unwrap_or_default() {
                    "/latest/api/token" => "token",
                    "/latest/meta-data/iam/security-credentials/"
                    | "/latest/meta-data/iam/security-credentials" => "the-role",
                    _ => credentials.as_str(),
                };
                log.lock().expect("the log").push(request);
                let _ = write!(
                    &stream,
                    "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nConnection: close\r\n\
                     x-aws-ec2-metadata-token-ttl-seconds: 21600\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len()
                );
            }
        });
        Self { address, asked }
    }

    fn asked(&self) -> Vec<String> {
        self.asked.lock().expect("the log").clone()
    }
}

/// Runs a command that lists a bucket, in an environment with these variables and no others of AWS's.
#[track_caller]
fn list(
    work: &WorkDir,
    url: &str,
    endpoint: &str,
    more: &str,
    env: &[(&str, &str)],
) -> crate::support::Finished {
    let more = format!("endpoint = {endpoint:?}\npath_style = true\nregion = \"us-east-1\"\n{more}");
    let config =
        Config::new(&work.join("data"), &work.join("state")).unencrypted().repository("bucket", url, &more);
    let mut walden = Walden::new(&config.write(work));
    for (name, value) in
        [("AWS_CONFIG_FILE", "/nowhere"), ("AWS_SHARED_CREDENTIALS_FILE", "/nowhere"), ("HOME", "/")]
    {
        if !env.iter().any(|(given, _)| *given == name) {
            walden = walden.env(name, value);
        }
    }
    for (name, value) in env {
        walden = walden.env(name, value);
    }
    walden.run(&["list", "wal"])
}

/// The store took the request: the bucket is empty.
#[track_caller]
fn answered(finished: &crate::support::Finished) {
    assert!(finished.stderr.contains("no repository holds a cluster"), "{finished}");
}

#[test]
fn a_profile_of_the_configuration_comes_before_the_environment() {
    let store = S3Store::start();
    let work = WorkDir::new();
    let file = work.write(
        "credentials",
        format!(
            "[archiver]\naws_access_key_id = {}\naws_secret_access_key = {}\n",
            store.access_key, store.secret_key
        ),
    );
    let file = file.display().to_string();
    let env = [
        ("AWS_SHARED_CREDENTIALS_FILE", file.as_str()),
        ("AWS_ACCESS_KEY_ID", "somebody"),
        ("AWS_SECRET_ACCESS_KEY", "else"),
    ];
    answered(&list(&work, &store.url(""), &store.endpoint, "profile = \"archiver\"", &env));
    let refused = list(&work, &store.url(""), &store.endpoint, "", &env);
    assert!(refused.stderr.contains("NotSignedUp"), "{refused}");
    let unknown = list(&work, &store.url(""), &store.endpoint, "profile = \"nobody\"", &env);
    assert_eq!(unknown.code, 4, "{unknown}");
    assert!(unknown.stderr.contains("nobody"), "{unknown}");
}

#[test]
fn a_machine_hands_out_the_credentials_of_its_role() {
    let store = S3Store::start();
    let issuer = Issuer::start(&store.access_key, &store.secret_key);
    let endpoint = format!("http://{}", issuer.address);
    let work = WorkDir::new();
    answered(&list(
        &work,
        &store.url(""),
        &store.endpoint,
        "",
        &[("AWS_EC2_METADATA_SERVICE_ENDPOINT", &endpoint)],
    ));
    let asked = issuer.asked();
    assert!(asked.iter().any(|request| request.contains("security-credentials/the-role")), "{asked:?}");
}

#[test]
fn a_container_hands_out_the_credentials_of_its_role() {
    let store = S3Store::start();
    let issuer = Issuer::start(&store.access_key, &store.secret_key);
    let uri = format!("http://{}/role", issuer.address);
    let work = WorkDir::new();
    answered(&list(
        &work,
        &store.url(""),
        &store.endpoint,
        "",
        &[("AWS_CONTAINER_CREDENTIALS_FULL_URI", &uri)],
    ));
    assert!(issuer.asked()[0].starts_with("GET /role "), "{:?}", issuer.asked());
}

#[test]
fn a_web_identity_is_turned_into_credentials() {
    let Some(moto) = Moto::start() else { return };
    moto.create_bucket("walden");
    let work = WorkDir::new();
    let token = work.write("token", "a token of the cluster's own");
    user::give(&token);
    let token = token.display().to_string();
    let env = [
        ("AWS_WEB_IDENTITY_TOKEN_FILE", token.as_str()),
        ("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/archiver"),
        ("AWS_ENDPOINT_URL_STS", moto.endpoint.as_str()),
    ];
    answered(&list(&work, "s3://walden/prefix", &moto.endpoint, "", &env));
    // Nothing else gave it credentials.
    let without =
        list(&work, "s3://walden/prefix", &moto.endpoint, "", &[("AWS_EC2_METADATA_DISABLED", "true")]);
    assert!(without.stderr.contains("credentials"), "{without}");
}
