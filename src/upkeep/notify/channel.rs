//! The ways out: a command of the operator, run by the shell, and a webhook.

use super::EventKind;
use crate::kind::{Error, Result};
use crate::storage::post_json;
use std::collections::BTreeSet;
use std::io::Write;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// How long a command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(30);
/// How long a webhook may take to answer.
const WEBHOOK_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks whether a command has ended.
const POLL: Duration = Duration::from_millis(20);

/// Where events go.
#[derive(Debug, Clone, Default)]
pub struct Channels {
    /// What the shell runs, with the event on its standard input.
    pub command: Option<String>,
    /// What is sent the event.
    pub webhook: Option<Webhook>,
    /// The events that somebody wants to hear of.
    pub events: BTreeSet<EventKind>,
}

/// A URL that takes events.
#[derive(Debug, Clone)]
pub struct Webhook {
    url: String,
    /// The certificates of those that vouch for it, instead of the system's.
    pub ca_file: Option<PathBuf>,
}

impl Webhook {
    /// Returns the webhook. Fails unless it is `https://`, or `http://` to this machine: an event is nobody else's business.
    pub fn new(url: String, ca_file: Option<PathBuf>) -> Result<Self> {
        let uri = url.parse::<http::Uri>().ok();
        let host =
            uri.as_ref().and_then(http::Uri::host).map(|host| host.trim_matches(['[', ']']).to_owned());
        let is_here = |host: &str| {
            host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
        };
        match (uri.as_ref().and_then(http::Uri::scheme_str), host) {
            (Some("https"), Some(_)) => Ok(Self { url, ca_file }),
            (Some("http"), Some(host)) if is_here(&host) => Ok(Self { url, ca_file }),
            // The URL of a webhook is a secret: it is not repeated.
            _ => Err(Error::config("notify.webhook is not a URL like https://hooks.example.com/walden")
                .with_hint("http:// is for this machine only")),
        }
    }
}

impl Channels {
    /// Returns whether nobody is to be told anything.
    pub fn is_empty(&self) -> bool {
        self.names().is_empty()
    }

    /// Returns whether somebody wants to hear of it.
    pub fn want(&self, kind: EventKind) -> bool {
        !self.is_empty() && self.events.contains(&kind)
    }

    /// Returns the names of the channels that are configured.
    pub fn names(&self) -> Vec<&'static str> {
        let command = self.command.as_ref().map(|_| "command");
        command.into_iter().chain(self.webhook.as_ref().map(|_| "webhook")).collect()
    }
}

/// Sends an event through one channel. Fails with one line of text.
pub fn send(channels: &Channels, channel: &str, body: &str) -> Result<(), String> {
    match (channel, &channels.command, &channels.webhook) {
        ("command", Some(command), _) => run(command, body, COMMAND_LIMIT),
        ("webhook", _, Some(webhook)) => {
            match post_json(&webhook.url, webhook.ca_file.clone(), body, WEBHOOK_LIMIT)? {
                200..=299 => Ok(()),
                status => Err(format!("HTTP status {status}")),
            }
        }
        _ => Err("it is not configured any more".to_owned()),
    }
}

/// Runs the command in a process group of its own, which is killed as a whole when the time is over.
fn run(command: &str, body: &str, limit: Duration) -> Result<(), String> {
    let mut child = Command::new("/bin/sh")
        .args(["-c", command])
        .process_group(0)
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .map_err(|error| format!("could not run the command: {error}"))?;
    let group = nix::unistd::Pid::from_raw(child.id().cast_signed());
    if let Some(mut stdin) = child.stdin.take() {
        let body = body.to_owned();
        // A command that does not read it must not hold this one up, and one that closes it has its reasons.
        std::thread::spawn(move || stdin.write_all(body.as_bytes()));
    }
    let began = Instant::now();
    loop {
        match child.try_wait() {
            Ok(Some(status)) if status.success() => return Ok(()),
            Ok(Some(status)) => return Err(format!("the command ended with {status}")),
            Ok(None) if began.elapsed() < limit => std::thread::sleep(POLL),
            Ok(None) => {
                let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
                let _ = child.wait();
                return Err(format!("the command did not end within {} s and was killed", limit.as_secs()));
            }
            Err(error) => return Err(format!("could not wait for the command: {error}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_command_gets_the_event_and_its_failure_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("got");
        let limit = Duration::from_secs(30);
        run(&format!("cat > '{}'", file.display()), "{\"a\":1}", limit).unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "{\"a\":1}");
        assert!(run("exit 7", "{}", limit).unwrap_err().contains('7'));
        run("exec 0<&-; true", &"x".repeat(1 << 20), limit).unwrap();
    }

    #[test]
    fn a_command_that_hangs_is_killed_with_what_it_started() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("pid");
        let command = format!("sleep 1000 & echo $! > '{}'; wait", file.display());
        let error = run(&command, "{}", Duration::from_secs(1)).unwrap_err();
        assert!(error.contains("killed"), "{error}");
        let pid: i32 = std::fs::read_to_string(&file).unwrap().trim().parse().unwrap();
        let stat = || std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        let state = |stat: &str| stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
        // Whoever takes over orphans may not have waited for it yet.
        while !matches!(state(&stat()), None | Some('Z' | 'X')) {
            std::thread::yield_now();
        }
    }
}
