//! From the configuration to what the engines take.

use crate::archive::Origin;
use crate::codec::{Opener, Sealer};
use crate::config::{Config, Encryption, Location, RepositoryConfig};
use crate::durable;
use crate::index::IndexHandle;
use crate::kind::{Context, Error, Result};
use crate::postgres::{ControlFile, SystemIdentifier};
use crate::repository::Repository;
use crate::storage::{FsStorage, Retry, S3Options, S3Storage, Storage};
use std::path::Path;
use std::sync::Arc;

/// How often a call to a store is tried.
const ATTEMPTS: u32 = 4;

/// Returns the repositories of the configuration. Does no I/O.
pub fn repositories(config: &Config) -> Result<Vec<Repository>> {
    config.repositories.iter().map(|entry| repository(entry, config)).collect()
}

fn repository(entry: &RepositoryConfig, config: &Config) -> Result<Repository> {
    let storage: Arc<dyn Storage> = match entry.location()? {
        Location::Directory(root) => Arc::new(Retry::new(FsStorage::new(root), ATTEMPTS)),
        Location::S3 { bucket, prefix } => {
            Arc::new(Retry::new(S3Storage::new(s3_options(entry, bucket, prefix)), ATTEMPTS))
        }
    };
    Ok(Repository::new(&entry.name, storage, config.archive.deadline))
}

fn s3_options(entry: &RepositoryConfig, bucket: String, prefix: String) -> S3Options {
    S3Options {
        bucket,
        prefix,
        region: entry.region.clone(),
        endpoint: entry.endpoint.clone(),
        path_style: entry.path_style,
        ca_file: entry.ca_file.clone(),
        profile: entry.profile.clone(),
        storage_class: entry.storage_class.clone(),
        kms_key_id: entry.kms_key_id.clone(),
        tags: entry.tags.clone().into_iter().collect(),
        checksums: entry.checksums.unwrap_or(true),
        conditional_writes: entry.conditional_writes.unwrap_or(true),
    }
}

/// Returns the repositories without those that the operator left out. Fails for a name that is not configured, and
/// when none is left.
pub fn repositories_without(config: &Config, without: &[String]) -> Result<Vec<Repository>> {
    let all = repositories(config)?;
    for name in without {
        check_name(&all, "--without", name)?;
    }
    let left: Vec<Repository> =
        all.into_iter().filter(|r| !without.iter().any(|name| name == r.name())).collect();
    if left.is_empty() {
        return Err(Error::usage("--without leaves no repository"));
    }
    Ok(left)
}

/// Fails where no repository has the name that was given with `flag`.
pub fn check_name(repositories: &[Repository], flag: &str, name: &str) -> Result<()> {
    if repositories.iter().any(|repository| repository.name() == name) {
        return Ok(());
    }
    let known: Vec<&str> = repositories.iter().map(Repository::name).collect();
    Err(Error::usage(format!("{flag} {name}: no repository has that name"))
        .with_hint(format!("configured are {}", known.join(", "))))
}

/// Returns what encrypts, or does not, as configured.
pub fn sealer(config: &Config) -> Result<Sealer> {
    match &config.encryption {
        Encryption::None => Ok(Sealer::unencrypted()),
        Encryption::Age { recipients, .. } => Sealer::for_recipients(recipients),
    }
}

/// Returns what decrypts; without a configured identity one that reads unencrypted objects only.
pub fn opener(config: &Config) -> Result<Opener> {
    match &config.encryption {
        Encryption::Age { identity_file: Some(path), .. } => Opener::from_identity_file(path),
        _ => Ok(Opener::without_identity()),
    }
}

/// Opens the index, or goes on without.
pub fn index(config: &Config) -> IndexHandle {
    let index = IndexHandle::open(&config.index_path());
    // What root makes here the server's user must be able to write.
    if let Err(error) = give_to(&config.cluster_state_dir(), owner_for(&config.data_dir)) {
        tracing::warn!("{error}");
    }
    index
}

/// Opens the index for a command that only reports. On a machine that has none, or whose index is of no use, one in memory
/// takes its place, which is filled from the repositories: nothing is left behind.
pub fn index_or_memory(config: &Config) -> IndexHandle {
    if config.index_path().exists() {
        let index = index(config);
        if index.is_present() {
            return index;
        }
    }
    IndexHandle::in_memory()
}

/// Returns where system identifiers come from.
pub fn origin(config: &Config, given: Option<SystemIdentifier>) -> Origin {
    Origin { data_dir: config.data_dir.clone(), system_identifier: given }
}

/// Reads the control file of a data directory.
pub fn control_file(data_dir: &Path) -> Result<ControlFile> {
    crate::backup::read_control_file(data_dir).map(|(_, control)| control)
}

/// Returns the absolute path of this program.
pub fn program() -> Result<String> {
    let path = std::env::current_exe().context("find this program")?;
    path.to_str().map(str::to_owned).ok_or_else(|| Error::other("the path of this program is not text"))
}

/// Returns the command line with which the server is to run `arguments`: absolute paths, quoted for the shell, `%` of
/// the paths doubled for the server.
pub fn server_command(config_path: &Path, arguments: &str) -> Result<String> {
    let config =
        config_path.to_str().ok_or_else(|| Error::config("the path of the configuration is not text"))?;
    let mut command = shell_word(&program()?);
    if config_path != Path::new(crate::config::DEFAULT_PATH) {
        command = format!("{command} --config {}", shell_word(config));
    }
    Ok(format!("{} {arguments}", command.replace('%', "%%")))
}

/// Quotes a word for the shell where it needs it.
pub fn shell_word(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-:=+,@%".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Gives a file or a tree to `owner`, where this process is root.
pub fn give_to(path: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    let Some((uid, gid)) = owner else { return Ok(()) };
    let chown = |path: &Path| {
        std::os::unix::fs::lchown(path, Some(uid), Some(gid)).map_err(durable::at(path)).context("chown")
    };
    chown(path)?;
    if path.is_dir() && !path.is_symlink() {
        for entry in std::fs::read_dir(path).map_err(durable::at(path)).context("chown")?.flatten() {
            give_to(&entry.path(), owner)?;
        }
    }
    Ok(())
}

/// Returns who owns `path` where this process is root and the owner is not: files that the server must read are
/// given to that user.
pub fn owner_for(path: &Path) -> Option<(u32, u32)> {
    use std::os::unix::fs::MetadataExt;
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let meta = std::fs::metadata(path).ok()?;
    (meta.uid() != 0).then_some((meta.uid(), meta.gid()))
}

/// Returns the system identifier to report on: the one given, else that of the data directory, else the only one that
/// the repositories know.
pub fn cluster_identifier(
    config: &Config,
    repositories: &[Repository],
    given: Option<SystemIdentifier>,
) -> Result<SystemIdentifier> {
    if let Some(sysid) = given {
        return Ok(sysid);
    }
    let here = control_file(&config.data_dir);
    if let Ok(control) = &here {
        return Ok(control.system_identifier);
    }
    let mut known = std::collections::BTreeSet::new();
    let mut problem = None;
    for repository in repositories {
        match crate::repository::clusters(repository, &config.cluster, &repository.deadline()) {
            Ok(found) => known.extend(found),
            Err(error) => problem = Some(repository.error("look into", &error)),
        }
    }
    let mut list = known.iter();
    match (list.next(), list.next()) {
        (Some(only), None) => Ok(*only),
        (None, _) => Err(problem.unwrap_or_else(|| {
            Error::new(
                crate::kind::Kind::Repository,
                format!("no repository holds a cluster \"{}\"", config.cluster),
            )
            .with_hint("walden init sets it up")
        })),
        _ => {
            let list: Vec<String> = known.iter().map(ToString::to_string).collect();
            Err(Error::usage(format!("the cluster has several system identifiers: {}", list.join(", ")))
                .with_hint("choose one with --system-identifier"))
        }
    }
}

/// Returns a lock that `expire` and `sync` hold while they work on this host: one must not copy what the other removes.
/// Waits for it; where it cannot be had at all, none.
pub fn upkeep_lock(config: &Config) -> Option<std::fs::File> {
    let path = config.cluster_state_dir().join("upkeep.lock");
    let open = || -> std::io::Result<std::fs::File> {
        std::fs::create_dir_all(config.cluster_state_dir())?;
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&path)?;
        if file.try_lock().is_err() {
            tracing::info!("waiting for another walden sync or walden expire to end");
            file.lock()?;
        }
        Ok(file)
    };
    match open().map_err(durable::at(&path)) {
        Ok(file) => Some(file),
        Err(error) => {
            tracing::warn!("{error}; going on without the lock");
            None
        }
    }
}

/// Returns the ids of the backups of which this host has a journal: they are being taken, or may be continued.
pub fn backups_in_progress(config: &Config) -> std::collections::BTreeSet<String> {
    let names = |dir: &Path| -> Vec<std::path::PathBuf> {
        std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let journals =
        names(&config.cluster_state_dir().join("base-backup")).into_iter().flat_map(|dir| names(&dir));
    journals.filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned())).collect()
}
