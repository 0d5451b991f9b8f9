//! `walden pin` and `walden unpin`: a backup that no retention removes.

use super::{Global, operation, setup};
use crate::config::Config;
use crate::kind::{Error, Result};
use crate::postgres::SystemIdentifier;
use crate::repository::{self, ClusterKeys, Repository, ask_all, list_backups};
use crate::storage;
use jiff::Timestamp;

/// Keep a backup whatever the retention says
///
/// A pin is an object in each repository. It keeps the backup and the WAL that makes it consistent, until unpin.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  walden pin 20261120T133000Z-00000001-5f0c2a91")]
pub struct Args {
    /// The id of the backup, as list shows it
    id: String,
    /// The system identifier, where the data directory is not here
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

/// Runs `pin`.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    change(global, args, "pin", |repositories, keys| {
        known(repositories, keys, &args.id)?;
        pin(repositories, keys, &args.id)
    })
}

/// Fails unless a repository holds the backup.
fn known(repositories: &[Repository], keys: &ClusterKeys, id: &str) -> Result<()> {
    let known = ask_all(
        &repositories.iter().collect::<Vec<_>>(),
        usize::MAX,
        |repository, _| list_backups(repository, keys).is_ok_and(|ids| ids.iter().any(|held| held == id)),
        |_| false,
    );
    if known.contains(&true) {
        return Ok(());
    }
    Err(Error::usage(format!("no repository that can be asked holds a backup \"{id}\""))
        .with_hint("walden list shows them"))
}

/// Runs `unpin`.
pub fn run_unpin(global: &Global, args: &Args) -> Result<()> {
    change(global, args, "unpin", |repositories, keys| {
        let changed = each(repositories, "unpin in", |repository, deadline| {
            repository::unpin(repository, keys, &args.id, deadline)
        })?;
        // A pin may outlive its backup; an id that nobody knows is mistyped.
        if changed == 0 {
            known(repositories, keys, &args.id)?;
        }
        Ok(changed)
    })
}

fn change(
    global: &Global,
    args: &Args,
    command: &str,
    work: impl FnOnce(&[Repository], &ClusterKeys) -> Result<usize>,
) -> Result<()> {
    let id = &args.id;
    if id.is_empty() || !id.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-') {
        return Err(
            Error::usage(format!("\"{id}\" is not the id of a backup")).with_hint("walden list shows them")
        );
    }
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    let sysid = setup::cluster_identifier(&config, &repositories, args.system_identifier)?;
    let index = setup::index(&config);
    let changed = operation::run(&config, &index, command, id, |details| {
        let changed = work(&repositories, &ClusterKeys::new(&config.cluster, sysid))?;
        details.note("repositories", changed);
        Ok(changed)
    })?;
    let done = if command == "pin" { "pinned" } else { "no longer pinned" };
    if changed == 0 {
        println!("Backup {id} was {done} already.");
    } else {
        println!("Backup {id} is {done}.");
    }
    Ok(())
}

/// Pins a backup in every repository; returns in how many it was not pinned before. Tries all before it fails.
pub fn pin(repositories: &[Repository], keys: &ClusterKeys, id: &str) -> Result<usize> {
    let now = Timestamp::now();
    each(repositories, "pin in", |repository, deadline| {
        // Where the cluster was never set up nothing is written: it may be another disk.
        repository.storage().head(&keys.cluster_file(), deadline)?;
        repository::pin(repository, keys, id, now, deadline)
    })
}

fn each(
    repositories: &[Repository],
    what: &str,
    work: impl Fn(&Repository, &storage::Deadline) -> storage::Result<bool> + Sync,
) -> Result<usize> {
    let all: Vec<&Repository> = repositories.iter().collect();
    let answers =
        ask_all(&all, usize::MAX, |repository, deadline| (repository, work(repository, deadline)), |_| false);
    let mut changed = 0;
    let mut failed = None;
    for (repository, answer) in answers {
        match answer {
            Ok(was_changed) => changed += usize::from(was_changed),
            Err(error) => {
                let error = repository.error(what, &error);
                if let Some(earlier) = failed.replace(error) {
                    tracing::warn!("{earlier}");
                }
            }
        }
    }
    match failed {
        Some(error) => Err(error.with_hint("in the other repositories it is done; run it again later")),
        None => Ok(changed),
    }
}
