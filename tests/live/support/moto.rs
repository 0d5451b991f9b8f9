//! moto's server: conditional multipart, versioning, Object Lock and KMS as AWS has them, in memory.

use std::time::Duration;

use super::background::Background;
use super::{cached, free_port, http, require, user};

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Moto {
    /// `http://127.0.0.1:<port>`
    pub endpoint: String,
    pub access_key: String,
    pub secret_key: String,
    address: String,
    server: Background,
}

impl Moto {
    /// Starts the server, or says that the test is skipped.
    #[track_caller]
    pub fn start() -> Option<Self> {
        let program = require(cached("python/bin/moto_server"), "moto's server")?;
        for _ in 0..5 {
            let port = free_port();
            let address = format!("127.0.0.1:{port}");
            let mut command = user::command(&program);
            command.args(["-H", "127.0.0.1", "-p", &port.to_string()]);
            let mut server = Background::spawn(command);
            let mut ended = false;
            let up = super::wait_for(Duration::from_mins(1), || {
                ended = !server.is_running();
                ended || std::net::TcpStream::connect(&address).is_ok()
            });
            if up && !ended {
                return Some(Self {
                    endpoint: format!("http://{address}"),
                    access_key: "walden-access".to_owned(),
                    secret_key: "walden-secret".to_owned(),
                    address,
                    server,
                });
            }
            let output = server.stderr();
            assert!(output.contains("already in use"), "moto did not start:\n{output}");
        }
        panic!("no free port found for moto");
    }

    /// Creates a bucket.
    #[track_caller]
    pub fn create_bucket(&self, name: &str) {
        self.put(&format!("/{name}"), &[], "");
    }

    /// Creates a bucket whose objects can be locked; that implies versioning.
    #[track_caller]
    pub fn create_locked_bucket(&self, name: &str) {
        self.put(&format!("/{name}"), &[("x-amz-bucket-object-lock-enabled", "true")], "");
    }

    /// Turns versioning on.
    #[track_caller]
    pub fn enable_versioning(&self, bucket: &str) {
        let body = "<VersioningConfiguration><Status>Enabled</Status></VersioningConfiguration>";
        self.put(&format!("/{bucket}?versioning"), &[], body);
    }

    /// From now on each request has to be signed by a user of the server's IAM whose policies allow it. Conditions are not looked at.
    #[track_caller]
    pub fn enforce_policies(&self) {
        let headers = [("Content-Type", "text/plain")];
        let (status, answer) = http::request(&self.address, "POST", "/moto-api/reset-auth", &headers, "0");
        assert!(status == 200, "moto answered {status}: {answer}");
    }

    #[track_caller]
    fn put(&self, path: &str, headers: &[(&str, &str)], body: &str) {
        // moto reads the service's name from the signature and does not check it.
        let authorization = "AWS4-HMAC-SHA256 Credential=walden-access/20260101/us-east-1/s3/aws4_request, \
                             SignedHeaders=host, Signature=0";
        let mut all = vec![("Authorization", authorization)];
        all.extend_from_slice(headers);
        let (status, answer) = http::request(&self.address, "PUT", path, &all, body);
        assert!(status == 200, "moto answered PUT {path} with {status}: {answer}");
    }

    /// Returns the variables that let the AWS SDK use this server.
    pub fn env(&self) -> Vec<(String, String)> {
        super::s3_store::credentials_env(&self.access_key, &self.secret_key)
    }

    /// Returns what the server has logged.
    pub fn log(&self) -> String {
        self.server.stderr()
    }
}
