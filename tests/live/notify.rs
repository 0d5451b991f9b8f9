//! Notifications: they arrive, or wait and are tried again; what hangs is killed; archiving never waits for one.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::support::certificates::Certificates;
use crate::support::{Ledger, Site, live_test, wait_until};

/// What a hook does with a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Answer {
    Status(u16),
    /// The request is read and never answered.
    Hang,
}

/// A server on 127.0.0.1 that takes webhooks, over TLS.
struct Hook {
    port: u16,
    answer: Arc<Mutex<Answer>>,
    bodies: Arc<Mutex<Vec<serde_json::Value>>>,
}

impl Hook {
    fn start(certificates: &Certificates) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("listen");
        let port = listener.local_addr().expect("an address").port();
        let chain = CertificateDer::pem_file_iter(&certificates.certificate)
            .expect("a certificate")
            .collect::<Result<Vec<_>, _>>()
            .expect("certificates");
        let key = PrivateKeyDer::from_pem_file(&certificates.key).expect("a key");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(chain, key)
            .expect("a server");
        let config = Arc::new(config);
        let hook = Self { port, answer: Arc::new(Mutex::new(Answer::Status(200))), bodies: Arc::default() };
        let (answer, bodies) = (Arc::clone(&hook.answer), Arc::clone(&hook.bodies));
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (config, answer, bodies) =
                    (Arc::clone(&config), Arc::clone(&answer), Arc::clone(&bodies));
                // A client that hangs up is no failure of the test.
                std::thread::spawn(move || serve(stream, config, &answer, &bodies).ok());
            }
        });
        hook
    }

    fn url(&self) -> String {
        format!("https://127.0.0.1:{}/services/T0/B0", self.port)
    }

    fn answers(&self, answer: Answer) {
        *self.answer.lock().expect("lock") = answer;
    }

    /// Returns the events that came and were answered with 200, by their names.
    fn events(&self) -> Vec<String> {
        let bodies = self.bodies.lock().expect("lock");
        bodies.iter().filter_map(|body| body["event"].as_str().map(str::to_owned)).collect()
    }
}

fn serve(
    stream: TcpStream,
    config: Arc<rustls::ServerConfig>,
    answer: &Mutex<Answer>,
    bodies: &Mutex<Vec<serde_json::Value>>,
) -> std::io::Result<()> {
    let connection = rustls::ServerConnection::new(config).map_err(std::io::Error::other)?;
    let mut tls = rustls::StreamOwned::new(connection, stream);
    let mut request = Vec::new();
    let mut buffer = [0; 4096];
    let body = loop {
        let read = tls.read(&mut buffer)?;
        if read == 0 {
            return Ok(());
        }
        request.extend_from_slice(&buffer[..read]);
        let text = String::from_utf8_lossy(&request).into_owned();
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        assert!(head.starts_with("POST /services/T0/B0 HTTP/1.1"), "{head}");
        let length = head
            .lines()
            .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
        if length.is_some_and(|length: usize| body.len() >= length) {
            break body.to_owned();
        }
    };
    let answer = *answer.lock().expect("lock");
    match answer {
        Answer::Hang => std::thread::sleep(Duration::from_mins(10)),
        Answer::Status(status) => {
            if status == 200 {
                bodies.lock().expect("lock").push(serde_json::from_str(&body).expect("JSON"));
            }
            write!(tls, "HTTP/1.1 {status} X\r\nContent-Length: 2\r\nConnection: close\r\n\r\nok")?;
            tls.flush()?;
        }
    }
    Ok(())
}

fn notify(site: &Site, section: &str) {
    const MARK: &str = "\n# of the test\n";
    let text = fs::read_to_string(&site.config).expect("read");
    let text = text.split(MARK).next().expect("a part");
    let quiet = "[status]\nfree_warning = 0\nfree_critical = 0\n";
    fs::write(&site.config, format!("{text}{MARK}{quiet}[notify]\n{section}\n")).expect("write");
}

fn certificates(site: &Site, name: &str) -> Certificates {
    let dir = site.work.create_dir(name);
    let made = Certificates::create(&dir);
    crate::support::user::give_tree(&dir);
    made
}

fn webhook(hook: &Hook, ca_file: &Path) -> String {
    format!("webhook = \"{}\"\nca_file = \"{}\"", hook.url(), ca_file.display())
}

fn lines(path: &PathBuf) -> Vec<serde_json::Value> {
    let text = fs::read_to_string(path).unwrap_or_default();
    text.lines()
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect()
}

live_test!(
    [14, 17]
    fn a_command_and_a_webhook_hear_of_backups_recoveries_and_verdicts(pg: Installation) {
        let site = Site::new(&pg);
        Ledger::create(&site.cluster);
        let certificates = certificates(&site, "tls");
        let hook = Hook::start(&certificates);
        let got = site.work.join("got");
        let command = format!("command = \"cat >> '{0}'; echo >> '{0}'\"", got.display());
        notify(&site, &format!("{command}\n{}", webhook(&hook, &certificates.ca_file)));

        let tested = site.walden.run(&["notify", "test"]).ok();
        assert_eq!(tested.stdout, "command: delivered\nwebhook: delivered\n");
        site.walden.run(&["status", "--monitor"]).expect_code(2);
        site.walden.run(&["status", "--monitor"]).expect_code(2);
        site.walden.run(&["base-backup", "--fast"]).ok();
        site.archive_a_segment();
        site.walden.run(&["metrics"]).ok();
        site.restore("copy", &["--until", "latest"]);
        site.walden.run(&["recover", "--until", "lsn:F/0", "--data-dir", &site.work.join("no").display().to_string()])
            .expect_code(8);
        let expected = ["test", "verdict-changed", "backup-done", "verdict-changed", "restore-done", "restore-failed"];
        assert_eq!(hook.events(), expected);
        let by_command = lines(&got);
        let names: Vec<&str> = by_command.iter().filter_map(|event| event["event"].as_str()).collect();
        assert_eq!(names, expected);
        let bad = &by_command[1];
        assert_eq!((bad["level"].as_str(), bad["cluster"].as_str()), (Some("critical"), Some("main")), "{bad}");
        assert!(bad["text"].as_str().is_some_and(|text| text.contains("there is no base backup")), "{bad}");
        assert_eq!(bad["details"]["reasons"][0]["rule"], "backup-age");
        let good = &by_command[3];
        assert!(good["text"].as_str().is_some_and(|text| text.ends_with("OK (was CRITICAL)")), "{good}");
        assert!(by_command[5]["details"]["exit_code"] == 8, "{}", by_command[5]);

        // Only what was asked for.
        notify(&site, &format!("{command}\nevents = [\"backup-failed\"]"));
        site.walden.run(&["base-backup", "--fast"]).ok();
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        site.walden.run(&["base-backup", "--fast"]).expect_code(4);
        assert_eq!(lines(&got).last().expect("one")["event"], "backup-failed");
        assert_eq!(lines(&got).len(), expected.len() + 1);
    }
);

live_test!(
    [18]
    fn a_webhook_that_fails_is_tried_again_later_and_a_wrong_certificate_is_refused(pg: Installation) {
        let site = Site::new(&pg);
        let good = certificates(&site, "tls");
        let other = certificates(&site, "other");
        let hook = Hook::start(&good);
        notify(&site, &webhook(&hook, &other.ca_file));
        let refused = site.walden.run(&["notify", "test"]).expect_code(1);
        assert!(refused.stdout.contains("webhook: FAILED") && refused.stdout.contains("certificate"), "{refused}");
        assert!(!refused.stderr.contains("/services/"), "the address is a secret: {refused}");

        notify(&site, &webhook(&hook, &good.ca_file));
        hook.answers(Answer::Status(500));
        let failed = site.walden.run(&["base-backup", "--fast"]).ok();
        assert!(failed.stderr.contains("could not notify by webhook: HTTP status 500"), "{failed}");
        assert!(hook.events().is_empty());
        hook.answers(Answer::Status(200));
        wait_until("a later command delivers it", || {
            site.walden.run(&["status", "--monitor"]);
            hook.events().contains(&"backup-done".to_owned())
        });
        assert_eq!(hook.events().iter().filter(|event| *event == "backup-done").count(), 1);
    }
);

live_test!(
    [16]
    fn a_command_that_hangs_is_killed_and_archiving_does_not_wait_for_a_dead_webhook(pg: Installation) {
        let site = Site::new(&pg);
        let certificates = certificates(&site, "tls");
        let hook = Hook::start(&certificates);
        hook.answers(Answer::Hang);
        let pid = site.work.join("pid");
        let command = format!("command = \"sleep 1000 & echo $! > '{}'; wait\"", pid.display());
        notify(&site, &format!("{command}\n{}", webhook(&hook, &certificates.ca_file)));
        let began = Instant::now();
        let mut backup = site.walden.spawn(&["base-backup", "--fast"]);
        wait_until("the command runs", || fs::read_to_string(&pid).is_ok_and(|text| text.ends_with('\n')));
        // Meanwhile archiving goes on.
        let archived = Instant::now();
        site.archive_a_segment();
        assert!(archived.elapsed() < Duration::from_secs(20) && backup.is_running(), "{:?}", archived.elapsed());
        let finished = backup.wait(Duration::from_mins(2)).ok();
        assert!(began.elapsed() < Duration::from_secs(90), "{:?}", began.elapsed());
        assert!(finished.stderr.contains("did not end within 30 s and was killed"), "{finished}");
        let child = fs::read_to_string(&pid).expect("read");
        wait_until("what it started is gone", || {
            let stat = fs::read_to_string(format!("/proc/{}/stat", child.trim())).unwrap_or_default();
            stat.is_empty() || stat.contains(") Z ")
        });
        site.archive_a_segment();
    }
);
