//! What the repositories of a site hold of its backups, looked at without Walden's own eyes where that is possible.

use super::*;
use crate::support::site::walk;
use crate::support::tools::run_script;
use crate::support::{Finished, Installation, Site};
use std::collections::BTreeSet;

/// Returns the folders of backups in a repository, by id, whether they are complete or not.
pub fn folders(site: &Site, repository: &str) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    for cluster in list(&site.repository(repository).join("main")) {
        for folder in list(&cluster.join("backup")) {
            found.insert(folder.file_name().unwrap().to_string_lossy().into_owned(), folder);
        }
    }
    found
}

fn list(dir: &Path) -> Vec<PathBuf> {
    let mut found: Vec<PathBuf> =
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect();
    found.sort();
    found
}

/// Returns the complete backups of a repository, oldest first. Panics unless every object that one of them names is
/// there and whole, and nothing else is in its folder that a restore by hand would take along.
#[track_caller]
pub fn complete(site: &Site, repository: &str) -> Vec<(BackupSummary, PathBuf)> {
    let mut found = Vec::new();
    for (id, folder) in folders(site, repository) {
        let Ok(text) = fs::read(folder.join("backup.json")) else { continue };
        let summary: BackupSummary = serde_json::from_slice(&text).expect("backup.json");
        let mut expected = BTreeSet::from([folder.join("backup.json")]);
        for object in summary.objects() {
            let path = folder.join(&object.name);
            let body = fs::read(&path)
                .unwrap_or_else(|error| panic!("{id} in {repository}: {}: {error}", path.display()));
            assert!(object.matches(&body), "{id} in {repository}: {} is not whole", object.name);
            expected.insert(path);
        }
        let mut there = Vec::new();
        walk(&folder, &mut there);
        // Shells leave out hidden files, too.
        there.retain(|path| !path.file_name().unwrap().to_string_lossy().starts_with('.'));
        assert_eq!(there.into_iter().collect::<BTreeSet<_>>(), expected, "{id} in {repository}");
        found.push((summary, folder));
    }
    // Ids of one second are in no order.
    found.sort_by_key(|(summary, _)| summary.start_lsn);
    found
}

/// Unpacks a backup by hand and lets `pg_verifybackup` judge it, where there are programs for that.
#[track_caller]
pub fn verify_by_hand(site: &Site, pg: &Installation, folder: &Path) {
    let (Some(age), Some(_), Some(_)) = (tools::age(), tools::lz4(), tools::tar()) else { return };
    let hand = site.work.create_dir(format!("hand-{}", fastrand::u32(..)));
    let identity = site.work.join("identity.txt");
    run_script(&format!(
        "cd '{}'; for o in '{}'/data/*; do '{}' -d -i '{}' $o || exit; done | lz4 -d | tar x",
        hand.display(),
        folder.display(),
        age.display(),
        identity.display()
    ))
    .ok();
    if let Some(verify) = tools::pg_verifybackup(pg.major) {
        run(user::command(&verify).arg("-n").arg(&hand)).ok();
    }
}

/// Lets amcheck look at every table and every B-tree of a cluster, and the tables' rows be in their indexes.
#[track_caller]
pub fn amcheck(cluster: &Cluster) {
    let mut command = cluster.client("pg_amcheck");
    run(command.args(["--all", "--install-missing", "--heapallindexed", "--jobs=2"])).ok();
}

/// Returns the lines of the journals in the site's state directory: as many pieces are known to be stored, and one more
/// for each journal.
pub fn journal_lines(site: &Site) -> usize {
    journals(site).iter().map(|text| text.split('\n').count() - 1).sum()
}

/// Returns how many bytes of stored pieces the journals in the site's state directory know of.
pub fn journaled_bytes(site: &Site) -> u64 {
    let size = |line: &str| {
        let line: serde_json::Value = serde_json::from_str(line).unwrap_or_default();
        line["object"]["size"].as_u64().unwrap_or(0)
    };
    journals(site).iter().flat_map(|text| text.lines().map(size).collect::<Vec<_>>()).sum()
}

fn journals(site: &Site) -> Vec<String> {
    let mut files = Vec::new();
    walk(&site.work.join("state/main/base-backup"), &mut files);
    files
        .iter()
        .map(|path| String::from_utf8_lossy(&fs::read(path).unwrap_or_default()).into_owned())
        .collect()
}

/// Waits until no session of a backup is left on the server.
#[track_caller]
pub fn wait_for_no_session(cluster: &Cluster) {
    let sessions = "select count(*) from pg_stat_activity where application_name = 'walden'";
    cluster.wait_until("the session of the backup ends", || cluster.psql(sessions) == "0");
}

/// Returns what a command of the site prints as JSON.
#[track_caller]
pub fn json(finished: &Finished) -> serde_json::Value {
    serde_json::from_str(&finished.stdout).unwrap_or_else(|error| panic!("{error}: {finished}"))
}

/// Returns the site's program with another server, role, or data directory in its configuration.
pub fn reconfigured(site: &Site, name: &str, changes: &[(&str, &str)]) -> crate::support::Walden {
    let mut text = fs::read_to_string(&site.config).expect("read");
    for (from, to) in changes {
        assert!(text.contains(from), "{from} is not in {text}");
        text = text.replace(from, to);
    }
    crate::support::Walden::new(&site.work.write(name, text))
}
