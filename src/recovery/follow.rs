//! Following a started server to its target.
//!
//! `pg_ctl -w start` says 0 as soon as the server is consistent, before a later FATAL (facts: "Recovery
//! configuration"); so the truth is asked from the server itself, until it has done what the plan says or is gone: then
//! its control file and its log tell.

use super::places::running_server;
use super::settings::Action;
use super::start::StartOptions;
use crate::kind::{Error, Kind, Result};
use crate::postgres::{ClusterState, ControlFile, Lsn, WalSegmentName};
use crate::progress::Progress;
use crate::server::Server;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

/// How often the server is asked.
const POLL: Duration = Duration::from_millis(200);
/// How long a server may take until it has written its postmaster.pid.
const BEGIN: Duration = Duration::from_secs(2);
/// How much is read of the end of a log that the server's own collector writes.
const LOG_END: u64 = 1 << 20;

/// What the server says at the end.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Reached {
    /// The time of the last commit or abort that was replayed, as the server shows it in UTC.
    pub last_transaction: Option<String>,
    /// Where replay ended.
    pub lsn: Option<String>,
    /// Why replay ended there, as the server's log has it; none where that is in another language.
    pub stopped: Option<String>,
    /// How to connect.
    pub connection: Option<String>,
    /// The server's log.
    pub log: PathBuf,
}

/// What the server logs from its start on.
#[derive(Debug)]
pub struct ServerLog {
    data_dir: PathBuf,
    path: PathBuf,
    /// Where in the file the start is.
    began_at: u64,
    began: SystemTime,
}

impl ServerLog {
    /// Returns the log that `pg_ctl` is told to write to `path`, which had `began_at` bytes before.
    pub fn new(data_dir: &Path, path: PathBuf, began_at: u64) -> Self {
        Self { data_dir: data_dir.to_path_buf(), path, began_at, began: SystemTime::now() }
    }

    /// Returns the lines since the start; with a logging collector also what that has written.
    fn lines(&self) -> Vec<String> {
        let whole = std::fs::read(&self.path).unwrap_or_default();
        let mut text =
            String::from_utf8_lossy(whole.get(self.began_at as usize..).unwrap_or_default()).into_owned();
        let files = std::fs::read_to_string(self.data_dir.join("current_logfiles")).unwrap_or_default();
        for file in files.lines().filter_map(|line| line.strip_prefix("stderr ")) {
            let path = self.data_dir.join(file);
            let is_new =
                path.metadata().and_then(|meta| meta.modified()).is_ok_and(|time| time >= self.began);
            if is_new {
                let bytes = std::fs::read(&path).unwrap_or_default();
                let end = &bytes[bytes.len().saturating_sub(LOG_END as usize)..];
                text.push('\n');
                text += &String::from_utf8_lossy(end);
            }
        }
        text.lines().map(str::to_owned).collect()
    }

    /// Returns the server's own words for where replay stopped.
    fn stopped(&self) -> Option<String> {
        let lines = self.lines();
        let says = |line: &str| line.split_once("LOG:  recovery stopping ").map(|(_, rest)| rest.to_owned());
        lines.iter().rev().find_map(|line| says(line)).map(|rest| format!("recovery stopping {rest}"))
    }
}

/// Follows one server.
pub struct Follower<'a> {
    options: &'a StartOptions,
    connection: String,
    log: ServerLog,
    progress: &'a Progress,
    server: Option<Server>,
    reached: Reached,
}

impl<'a> Follower<'a> {
    /// Returns the follower of a server that was just started. Does no I/O.
    pub fn new(
        options: &'a StartOptions,
        connection: String,
        log: ServerLog,
        progress: &'a Progress,
    ) -> Self {
        let reached = Reached {
            last_transaction: None,
            lsn: None,
            stopped: None,
            connection: None,
            log: log.path.clone(),
        };
        progress.set_total(options.way.segments as u64 * options.way.segment_size.bytes());
        progress.set_phase("start the server");
        Self { options, connection, log, progress, server: None, reached }
    }

    /// Follows it to its end.
    pub fn follow(mut self) -> Result<Reached> {
        let began = Instant::now();
        loop {
            std::thread::sleep(POLL);
            let Some(pid) = running_server(&self.options.data_dir) else {
                if began.elapsed() > BEGIN {
                    return self.ended();
                }
                continue;
            };
            let Some(state) = self.ask() else {
                // It does not answer before it is consistent, but its processes say what they do.
                if let Some(segment) = segment_in_titles(pid) {
                    self.show(segment.start(self.options.way.segment_size), None);
                }
                continue;
            };
            if state.last_transaction.is_some() {
                self.reached.last_transaction.clone_from(&state.last_transaction);
            }
            self.reached.lsn.clone_from(&state.lsn);
            if let Some(lsn) = state.lsn.as_deref().and_then(|lsn| lsn.parse().ok()) {
                self.show(lsn, state.last_transaction.as_deref());
            }
            if state.paused {
                self.refuse_early_pause()?;
            }
            let done = match self.options.action {
                Action::Promote => !state.in_recovery,
                Action::Pause => state.paused || !state.in_recovery,
                Action::Shutdown => false,
            };
            if done {
                return self.done(&state);
            }
        }
    }

    /// Asks the server, where it answers.
    fn ask(&mut self) -> Option<State> {
        if self.server.is_none() {
            self.server = Server::connect(&self.connection).ok();
        }
        let server = self.server.as_mut()?;
        // Another server may have that port: what it says is not about this recovery.
        let state = if is_ours(server, &self.options.data_dir) { look(server).ok() } else { None };
        if state.is_none() {
            self.server = None;
        }
        state
    }

    fn show(&self, lsn: Lsn, clock: Option<&str>) {
        let way = &self.options.way;
        let bytes = lsn.0.saturating_sub(way.begin.0).min(self.progress.total());
        self.progress.add(bytes.saturating_sub(self.progress.done()));
        let number = (bytes / way.segment_size.bytes() + 1).min(way.segments as u64);
        let clock = clock.map_or_else(String::new, |clock| format!(", at {clock}"));
        self.progress
            .set_phase(&format!("segment {number} of {}{clock}, target {}", way.segments, way.target));
    }

    fn done(mut self, state: &State) -> Result<Reached> {
        self.reached.stopped = self.log.stopped();
        let lsn: Option<Lsn> = state.lsn.as_deref().and_then(|lsn| lsn.parse().ok());
        if let (Some(must), Some(lsn)) = (self.options.way.must_reach, lsn)
            && lsn < must
        {
            return Err(Error::new(
                Kind::Target,
                format!(
                    "the server has promoted at {lsn}, before the end of the archive in the segment at {must}"
                ),
            )
            .with_hint(format!("it runs with a part of the data; its log is {}", self.log.path.display())));
        }
        self.reached.connection = Some(self.connection);
        Ok(self.reached)
    }

    /// Fails where the server has paused for a setting that is lower than the original's was when it wrote this WAL: it
    /// would wait there for ever, whatever it is to do at the target.
    fn refuse_early_pause(&self) -> Result<()> {
        let lines = self.log.lines();
        let Some(at) = lines.iter().rposition(|line| line.contains("hot standby is not possible because of"))
        else {
            return Ok(());
        };
        let detail =
            lines.get(at + 1).and_then(|line| line.split_once("DETAIL:  ")).map(|(_, detail)| detail);
        Err(Error::new(
            Kind::Server,
            format!("the server paused before the target: {}", detail.unwrap_or(message(&lines[at]))),
        )
        .with_hint(format!(
            "raise the setting in \"{}\" and restart the server; its log is {}",
            self.options.data_dir.join("postgresql.auto.conf").display(),
            self.log.path.display()
        )))
    }

    /// The server is gone: by the plan, or by a failure that its log tells.
    fn ended(mut self) -> Result<Reached> {
        let lines = self.log.lines();
        let control =
            std::fs::read(self.options.data_dir.join(super::layout::CONTROL_FILE)).unwrap_or_default();
        // After a FATAL of the startup process the file says "in archive recovery".
        let shut_down = ControlFile::parse(&control)
            .is_ok_and(|control| control.state == ClusterState::ShutDownInRecovery);
        let at_target = lines.iter().any(|line| line.contains("shutdown at recovery target"));
        if self.options.action == Action::Shutdown && shut_down && at_target {
            self.reached.stopped = self.log.stopped();
            if let Some(time) = last_log_time(&lines) {
                self.reached.last_transaction = Some(time);
            }
            return Ok(self.reached);
        }
        let fatal: Vec<&str> = lines
            .iter()
            .map(String::as_str)
            .filter(|line| line.contains("FATAL:") || line.contains("PANIC:") || line.starts_with("ERROR:"))
            // What the server told this process while it was asked too early.
            .filter(|line| !line.contains("FATAL:  the database system is "))
            .collect();
        let last = match fatal.last() {
            Some(line) => line,
            None if shut_down => "somebody shut it down",
            None => "it ended without an error in its log",
        };
        let kind = if last.contains("before configured recovery target was reached") {
            Kind::Target
        } else {
            Kind::Server
        };
        // The reason of archive-get has a hint of its own, which comes behind all that is said.
        let (last, hint) =
            last.split_once("; hint: ").map_or((last, None), |(says, hint)| (says, Some(hint)));
        let first = fatal.first().copied().unwrap_or(last);
        let (first, first_hint) =
            first.split_once("; hint: ").map_or((first, None), |(says, hint)| (says, Some(hint)));
        let says = if message(first) == message(last) {
            message(last).to_owned()
        } else {
            format!("{}; {}", message(first), message(last))
        };
        let so_far = last_log_time(&lines)
            .or(self.reached.last_transaction)
            .map_or_else(String::new, |time| format!("; the last transaction replayed ended at {time}"));
        let mut error = Error::new(kind, format!("the server did not reach the target: {says}{so_far}"));
        if let Some(hint) = first_hint.or(hint) {
            error = error.with_hint(hint);
        }
        Err(error.with_hint(format!("its log is {}", self.log.path.display())))
    }
}

/// Returns a line of the log without what `log_line_prefix` puts before it.
fn message(line: &str) -> &str {
    ["FATAL:", "PANIC:", "LOG:", "ERROR:", "WARNING:"]
        .iter()
        .filter_map(|word| line.find(word))
        .min()
        .map_or(line, |at| &line[at..])
}

fn last_log_time(lines: &[String]) -> Option<String> {
    let last = lines.iter().rev().find(|line| line.contains("last completed transaction was at log time"))?;
    Some(last.split("log time ").nth(1)?.trim().to_owned())
}

/// Returns the segment that a startup process below the postmaster names in its title ("startup recovering …").
fn segment_in_titles(postmaster: i32) -> Option<WalSegmentName> {
    let children = std::fs::read_to_string(format!("/proc/{postmaster}/task/{postmaster}/children")).ok()?;
    children.split_whitespace().find_map(|child| {
        let title = std::fs::read(format!("/proc/{child}/cmdline")).ok()?;
        let title = String::from_utf8_lossy(&title).into_owned();
        let (_, name) = title.trim_end_matches('\0').rsplit_once("startup recovering ")?;
        name.trim().parse().ok()
    })
}

struct State {
    in_recovery: bool,
    paused: bool,
    lsn: Option<String>,
    last_transaction: Option<String>,
}

fn look(server: &mut Server) -> Result<State> {
    let rows = server.rows(
        "SELECT pg_is_in_recovery()::text,
                CASE WHEN pg_is_in_recovery() THEN pg_get_wal_replay_pause_state() ELSE '' END,
                pg_last_wal_replay_lsn()::text,
                to_char(pg_last_xact_replay_timestamp() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US+00')",
    )?;
    let row = rows.into_iter().next().ok_or_else(|| Error::other("no row"))?;
    let mut row = row.into_iter();
    let mut next = || row.next().flatten();
    Ok(State {
        in_recovery: next().is_some_and(|text| text == "true" || text == "t"),
        paused: next().is_some_and(|text| text == "paused"),
        lsn: next(),
        last_transaction: next(),
    })
}

/// Returns whether the server runs on `data_dir`. One that does not say where it runs is taken for it: its process was
/// seen there.
fn is_ours(server: &mut Server, data_dir: &Path) -> bool {
    let Ok(says) = server.query_one_text("SELECT coalesce(current_setting('data_directory', true), '')")
    else {
        return true;
    };
    let resolved = |path: &Path| std::fs::canonicalize(path).unwrap_or_else(|_| path.to_path_buf());
    says.is_empty() || resolved(Path::new(&says)) == resolved(data_dir)
}

#[cfg(test)]
mod tests {
    use super::super::start::Way;
    use super::*;
    use crate::postgres::WalSegmentSize;

    fn options(must_reach: Option<Lsn>) -> StartOptions {
        let way = Way {
            begin: Lsn(0x0300_0000),
            segments: 4,
            segment_size: WalSegmentSize::DEFAULT,
            target: "latest".into(),
            must_reach,
        };
        StartOptions {
            data_dir: "/nowhere".into(),
            bin_dir: "/nowhere".into(),
            owner: None,
            user: "postgres".into(),
            action: Action::Promote,
            way,
        }
    }

    fn follower<'a>(options: &'a StartOptions, progress: &'a Progress) -> Follower<'a> {
        let log = ServerLog::new(Path::new("/nowhere"), "/nowhere/log".into(), 0);
        Follower::new(options, String::new(), log, progress)
    }

    #[test]
    fn a_server_that_promoted_before_the_end_of_the_archive_has_not_reached_it() {
        let options = options(Some(Lsn(0x0600_0000)));
        let ends_at = |lsn: &str| {
            let state =
                State { in_recovery: false, paused: false, lsn: Some(lsn.into()), last_transaction: None };
            follower(&options, &Progress::new()).done(&state)
        };
        assert!(ends_at("0/6000100").is_ok());
        let error = ends_at("0/5FFFFF8").unwrap_err();
        assert_eq!(error.kind(), Kind::Target);
        assert!(error.to_string().contains("before the end of the archive"), "{error}");
    }

    #[test]
    fn progress_is_told_in_segments_and_bytes() {
        let (options, progress) = (options(None), Progress::new());
        let follower = follower(&options, &progress);
        follower.show(Lsn(0x0200_0000), None);
        assert_eq!((progress.done(), progress.phase()), (0, "segment 1 of 4, target latest".into()));
        follower.show(Lsn(0x0480_0000), Some("2026-11-20 13:30:00.000000+00"));
        assert_eq!(progress.done(), 0x0180_0000);
        assert_eq!(progress.phase(), "segment 2 of 4, at 2026-11-20 13:30:00.000000+00, target latest");
        // Titles are behind what the server says itself, and an end may lie beyond the plan.
        follower.show(Lsn(0x0400_0000), None);
        follower.show(Lsn(0x1000_0000), None);
        assert_eq!((progress.done(), progress.total()), (64 << 20, 64 << 20));
        assert!(progress.phase().starts_with("segment 4 of 4"));
    }

    #[test]
    fn a_log_line_loses_its_prefix() {
        assert_eq!(message("2026-11-20 13:30:00 UTC [1] FATAL:  no"), "FATAL:  no");
        assert_eq!(message("ERROR: could not get"), "ERROR: could not get");
        assert_eq!(message("nothing"), "nothing");
        let lines = ["x LOG:  last completed transaction was at log time 2026-11-20 13:30:00+00".to_owned()];
        assert_eq!(last_log_time(&lines).as_deref(), Some("2026-11-20 13:30:00+00"));
    }
}
