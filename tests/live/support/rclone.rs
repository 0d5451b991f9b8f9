//! `rclone serve s3` over TLS: an S3 server that takes single PUTs only and ignores `If-None-Match`.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use super::background::Background;
use super::certificates::Certificates;
use super::user::WorkDir;
use super::{cached, free_port, require, user};

/// A running server whose buckets are directories. Dropping it stops the server and removes them.
#[derive(Debug)]
pub struct Rclone {
    /// `https://127.0.0.1:<port>`
    pub endpoint: String,
    /// What a client has to trust.
    pub ca_file: PathBuf,
    pub access_key: String,
    pub secret_key: String,
    /// The bucket that is there from the start.
    pub bucket: String,
    server: Background,
    dir: WorkDir,
}

impl Rclone {
    /// Starts the server, or says that the test is skipped.
    #[track_caller]
    pub fn start() -> Option<Self> {
        let program = require(cached("bin/rclone"), "rclone")?;
        let dir = WorkDir::new();
        let tls = Certificates::create(dir.path());
        for file in [&tls.certificate, &tls.key] {
            user::give(file);
        }
        dir.create_dir("buckets");
        dir.create_dir("buckets/walden");
        let (access_key, secret_key) = ("walden-access", "walden-secret");
        for _ in 0..5 {
            let port = free_port();
            let mut command: Command = user::command(&program);
            command.args(["serve", "s3", "--config", "", "--addr", &format!("127.0.0.1:{port}")]);
            command.args(["--auth-key", &format!("{access_key},{secret_key}")]);
            command.arg("--cert").arg(&tls.certificate).arg("--key").arg(&tls.key);
            // Otherwise objects written by others, such as a test, would be seen minutes later.
            command.args(["--dir-cache-time", "100ms", "--poll-interval", "0"]).arg(dir.join("buckets"));
            command.env("RCLONE_CACHE_DIR", dir.path());
            let mut server = Background::spawn(command);
            let mut ended = false;
            let up = super::wait_for(Duration::from_secs(30), || {
                ended = !server.is_running();
                ended || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok()
            });
            if up && !ended {
                return Some(Self {
                    endpoint: format!("https://127.0.0.1:{port}"),
                    ca_file: tls.ca_file,
                    access_key: access_key.to_owned(),
                    secret_key: secret_key.to_owned(),
                    bucket: "walden".to_owned(),
                    server,
                    dir,
                });
            }
            let output = server.stderr();
            assert!(output.contains("address already in use"), "rclone did not start:\n{output}");
        }
        panic!("no free port found for rclone");
    }

    /// Returns the URL of a repository below a prefix.
    pub fn url(&self, prefix: &str) -> String {
        format!("s3://{}/{prefix}", self.bucket)
    }

    /// Returns the variables that let the AWS SDK use this server.
    pub fn env(&self) -> Vec<(String, String)> {
        super::s3_store::credentials_env(&self.access_key, &self.secret_key)
    }

    /// Returns the directory that is the bucket.
    pub fn bucket_dir(&self) -> PathBuf {
        self.dir.join("buckets").join(&self.bucket)
    }

    /// Returns what the server has logged.
    pub fn log(&self) -> String {
        self.server.stderr()
    }

    /// Returns the content of an object, as its file has it.
    pub fn object(&self, key: impl AsRef<Path>) -> Option<Vec<u8>> {
        std::fs::read(self.bucket_dir().join(key)).ok()
    }
}
