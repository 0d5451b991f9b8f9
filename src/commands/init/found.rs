//! The clusters of this machine: servers that run, and those that Debian's `pg_lsclusters` knows.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::super::setup;

/// A cluster that was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Its data directory.
    pub data_dir: PathBuf,
    /// Its port.
    pub port: u16,
    /// The directory of the socket of a server that runs and has one.
    pub socket_dir: Option<PathBuf>,
    /// Debian's names for it: version and name.
    pub debian: Option<(String, String)>,
    /// Whether its server runs.
    pub running: bool,
}

impl Found {
    /// Returns how to reach the server.
    pub fn connection(&self) -> String {
        let host = self.socket_dir.clone().unwrap_or_else(|| "/var/run/postgresql".into());
        let port = if self.port == 5432 { String::new() } else { format!(" port={}", self.port) };
        format!("host={}{port} user=postgres", host.display())
    }

    /// Returns the command that restarts the server.
    pub fn restart(&self) -> String {
        match &self.debian {
            Some((version, name)) => format!("sudo pg_ctlcluster {version} {name} restart"),
            None => format!("pg_ctl -D {} restart", setup::shell_word(&self.data_dir.to_string_lossy())),
        }
    }

    /// Returns a line that tells it from others.
    pub fn describe(&self) -> String {
        let version = setup::control_file(&self.data_dir).ok().and_then(|control| control.major_version());
        let version = version.map_or_else(|| "PostgreSQL".to_owned(), |major| format!("PostgreSQL {major}"));
        let state = if self.running { "runs" } else { "is down" };
        format!("{version}, port {}, {} ({state})", self.port, self.data_dir.display())
    }
}

/// Returns the clusters, those that run first.
pub fn clusters() -> Vec<Found> {
    let mut found = running(Path::new("/proc"));
    let listed = Command::new("pg_lsclusters").arg("--no-header").output();
    let listed =
        listed.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    for cluster in listed.lines().filter_map(debian_line) {
        match found.iter_mut().find(|known| known.data_dir == cluster.data_dir) {
            Some(known) => known.debian = cluster.debian,
            None => found.push(cluster),
        }
    }
    found.sort_by_key(|cluster| (!cluster.running, cluster.port));
    found
}

/// Reads a line of `pg_lsclusters`: version, name, port, status, owner, data directory, log file.
fn debian_line(line: &str) -> Option<Found> {
    let words: Vec<&str> = line.split_whitespace().collect();
    let [version, name, port, status, _owner, data_dir, ..] = words[..] else { return None };
    Some(Found {
        data_dir: data_dir.into(),
        port: port.parse().ok()?,
        socket_dir: None,
        debian: Some((version.to_owned(), name.to_owned())),
        running: status.starts_with("online"),
    })
}

/// Returns the servers that run: a postmaster works in its data directory, whose `postmaster.pid` names it.
fn running(proc: &Path) -> Vec<Found> {
    let processes = fs::read_dir(proc).into_iter().flatten().flatten();
    let mut found: Vec<Found> = processes
        .filter_map(|entry| {
            let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
            let data_dir = fs::read_link(entry.path().join("cwd")).ok()?;
            let lines = fs::read_to_string(data_dir.join("postmaster.pid")).ok()?;
            postmaster(pid, &lines)
        })
        .collect();
    found.sort_by_key(|cluster| cluster.port);
    found
}

/// Reads a `postmaster.pid`: the process, the data directory, the time, the port, the first socket directory.
fn postmaster(pid: u32, text: &str) -> Option<Found> {
    let lines: Vec<&str> = text.lines().collect();
    let [first, data_dir, _time, port, socket_dir, ..] = lines[..] else { return None };
    if first.trim().parse() != Ok(pid) {
        return None;
    }
    Some(Found {
        data_dir: data_dir.into(),
        port: port.trim().parse().ok()?,
        socket_dir: Some(socket_dir.trim()).filter(|dir| !dir.is_empty()).map(PathBuf::from),
        debian: None,
        running: true,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_pg_lsclusters_are_read() {
        let line =
            "15  main    5433 down   postgres /var/lib/postgresql/15/main /var/log/postgresql/15-main.log";
        let found = debian_line(line).unwrap();
        assert_eq!((found.port, found.running), (5433, false));
        assert_eq!(found.restart(), "sudo pg_ctlcluster 15 main restart");
        assert_eq!(found.connection(), "host=/var/run/postgresql port=5433 user=postgres");
        assert!(debian_line("15 main 5432 online,recovery postgres /d /l").unwrap().running);
        assert!(debian_line("").is_none() && debian_line("15 main x down postgres /d /l").is_none());
    }

    #[test]
    fn a_postmaster_is_told_from_its_children() {
        let text = "4711\n/srv/data\n1763700000\n5432\n/tmp\nlocalhost\n  12 34\nready   \n";
        let found = postmaster(4711, text).unwrap();
        assert_eq!(found.connection(), "host=/tmp user=postgres");
        assert_eq!(found.restart(), "pg_ctl -D /srv/data restart");
        assert!(postmaster(4712, text).is_none() && postmaster(4711, "4711\n").is_none());
    }
}
