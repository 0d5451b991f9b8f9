//! `walden base-backup`: a base backup of the local data directory into every repository.

use super::output::{Format, bytes, json};
use super::{Global, operation, setup};
use crate::backup::{
    Attempt, BackupOptions, BrokenOff, Completed, Destinations, Head, Journal, Journals, Preflight, Taken,
    check_arrival, check_space, fill_up_histories, leftovers, preflight, run as run_backup,
};
use crate::config::{Config, Encryption};
use crate::index::{BadPagesRow, IndexHandle};
use crate::kind::{Error, Kind, Result};
use crate::postgres::SystemIdentifier;
use crate::progress::Progress;
use crate::repository::backup::new_backup_id;
use crate::repository::{ClusterKeys, ClusterState, Repository, ask_all};
use crate::server::Server;
use crate::upkeep::digest::write_digest;
use crate::upkeep::names::take_names;
use jiff::Timestamp;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The label of a backup that is given none.
const LABEL: &str = "walden";

/// A wait for WAL that is longer is told to people.
const WAIT_WORTH_SAYING: Duration = Duration::from_secs(1);

/// Take a base backup of the local data directory
///
/// Reads the files while the server runs, compresses and encrypts them, and sends them to every repository. The backup
/// counts, in each repository by itself, once the WAL that it needs is archived there.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  walden base-backup --fast --note 'before the migration'\n  walden base-backup --resume"
)]
pub struct Args {
    /// The label that the server notes for the backup [default: walden]
    #[arg(long)]
    label: Option<String>,
    /// A remark, shown by list
    #[arg(long)]
    note: Option<String>,
    /// Make the checkpoint at the start at once instead of spreading it
    #[arg(long)]
    fast: bool,
    /// Pin the backup: no retention removes it, until unpin
    #[arg(long)]
    keep: bool,
    /// How many pieces are built and sent at once [default: the number of processors, at least 4]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: Option<u16>,
    /// Read at most this many bytes per second; k, M and G are understood
    #[arg(long, value_name = "RATE", value_parser = parse_rate)]
    max_rate: Option<u64>,
    /// Go on with the newest backup that broke off, as far as its files have not changed; where there is none, begin anew
    #[arg(long)]
    resume: bool,
    /// How long to wait for the WAL of the backup to be archived, at most a day
    #[arg(long, value_name = "TIME", default_value = "10m", value_parser = parse_wait)]
    wait: Duration,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

fn parse_wait(text: &str) -> Result<Duration, String> {
    let limit = |wait: &Duration| *wait <= Duration::from_hours(24);
    humantime::parse_duration(text).ok().filter(limit).ok_or_else(|| "write it as 30s, 10m or 2h".to_owned())
}

fn parse_rate(text: &str) -> Result<u64, String> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" => 1,
        "k" | "kB" => 1 << 10,
        "M" | "MB" => 1 << 20,
        "G" | "GB" => 1 << 30,
        _ => return Err("write it as 500k, 50M or 1G".to_owned()),
    };
    number
        .parse::<u64>()
        .ok()
        .and_then(|n| n.checked_mul(factor))
        .filter(|rate| *rate > 0)
        .ok_or_else(|| "write it as 500k, 50M or 1G".to_owned())
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let index = setup::index(&config);
    operation::run(&config, &index, "base-backup", "", |details| take(args, &config, &index, details))
}

fn take(args: &Args, config: &Config, index: &IndexHandle, details: &operation::Details<'_>) -> Result<()> {
    let repositories = setup::repositories(config)?;
    let sealer = setup::sealer(config)?;
    let control = setup::control_file(&config.data_dir)?;
    let sysid = control.system_identifier;
    let (ready, mut failed) = ready(&repositories, config, sysid)?;
    let mut server = Server::connect(&config.server.connection)?;
    let mut options = options(args, config);
    let found = preflight(&options, &mut server)?;
    let keys = ClusterKeys::new(&config.cluster, sysid);
    if failed.is_empty() {
        check_arrival(&ready, &keys, &found)?;
    }
    let ready = with_space(ready, &mut failed, &keys, &found)?;
    fill_up_histories(&found.data_dir, &keys, &ready, &sealer);

    let mut attempt = prepare(args, config, &found, &ready, &keys, failed.is_empty(), &mut options);
    let destinations = Destinations::new(keys.clone(), &options.id, ready, failed);
    details.subject(&options.id);
    let began = Instant::now();
    let progress = Progress::new();
    let result: Result<_> = super::progress::while_shown(&progress, "base backup", || {
        let taken =
            run_backup(&options, found, &mut server, &sealer, &destinations, &progress, &mut attempt)?;
        progress.set_phase("wait for WAL");
        let completed = std::thread::scope(|scope| {
            // There is nothing else to do meanwhile.
            scope.spawn(|| take_names(&server, sysid, index));
            destinations.complete(&taken.summary, args.wait)
        })?;
        Ok((taken, completed))
    });
    let (taken, completed) = match result {
        Ok(done) => done,
        Err(error) if attempt.journal.is_some() => {
            return Err(error.with_hint("walden base-backup --resume goes on where this one broke off"));
        }
        Err(error) => return Err(error),
    };
    if let Some(journal) = attempt.journal.take() {
        journal.finish();
    }
    note_bad_pages(index, &taken);
    write_digest(&keys, sysid, &completed.repositories, &sealer, index, true);
    let pinned =
        if args.keep { super::pin::pin(&repositories, &keys, &taken.summary.id).map(drop) } else { Ok(()) };
    details.note("size", taken.summary.size);
    details.note("stored_size", taken.summary.stored_size);
    details.note("bad_pages", taken.summary.bad_pages);
    let held_by: Vec<&str> = completed.repositories.iter().map(|repository| repository.name()).collect();
    details.note("repositories", held_by);
    report(args, &taken, &completed, began.elapsed())?;
    let id = &taken.summary.id;
    if let Some((repository, error)) = completed.failed.into_iter().next() {
        return Err(error
            .context(format!("backup {id} is complete, but not in repository \"{}\"", repository.name()))
            .with_hint("the next backup goes there again"));
    }
    pinned.map_err(|error| error.context(format!("backup {id} is complete, but not pinned everywhere")))?;
    if taken.summary.bad_pages > 0 {
        let first = taken.bad_files.first().map(|bad| format!(": {bad}")).unwrap_or_default();
        return Err(Error::corrupt(format!("{} pages have wrong checksums{first}", taken.summary.bad_pages))
            .with_hint(
                "the backup is kept; the damage is in the database itself: look at it with pg_amcheck before older \
                 backups expire",
            ));
    }
    Ok(())
}

fn options(args: &Args, config: &Config) -> BackupOptions {
    let processors = std::thread::available_parallelism().map_or(2, usize::from);
    BackupOptions {
        id: String::new(),
        cluster: config.cluster.clone(),
        data_dir: config.data_dir.clone(),
        label: args.label.clone().unwrap_or_else(|| LABEL.to_owned()),
        note: args.note.clone(),
        fast: args.fast,
        parallel: args.parallel.map_or(processors.max(4), usize::from),
        max_rate: args.max_rate,
        temp_dir: temp_dir(config),
    }
}

/// Returns the repositories into which the backup will fit; the others fail. Fails when it fits into none.
fn with_space<'r>(
    ready: Vec<&'r Repository>,
    failed: &mut Failed<'r>,
    keys: &ClusterKeys,
    found: &Preflight,
) -> Result<Vec<&'r Repository>> {
    let mut left = Vec::new();
    for repository in ready {
        match check_space(repository, keys, found.size) {
            Ok(()) => left.push(repository),
            Err(error) => failed.push((repository, error)),
        }
    }
    match failed.last() {
        Some((_, error)) if left.is_empty() => Err(error.clone()),
        Some((_, error)) => {
            tracing::warn!("{error}; the backup goes to the other repositories");
            Ok(left)
        }
        None => Ok(left),
    }
}

/// Decides whether an earlier backup is continued, removes what others left, and begins a journal. Sets the id, and what
/// else is carried over.
fn prepare(
    args: &Args,
    config: &Config,
    found: &Preflight,
    ready: &[&Repository],
    keys: &ClusterKeys,
    all_ready: bool,
    options: &mut BackupOptions,
) -> Attempt {
    let dir = journals_dir(config, found.control.system_identifier);
    let mut journals = Journals::read(&dir).unwrap_or_else(|error| {
        tracing::warn!("{error}");
        Journals::default()
    });
    options.id = new_backup_id(Timestamp::now(), found.control.timeline);
    let mut head = head(config, found, ready, options);
    let mut earlier = None;
    if args.resume {
        match newest(&mut journals, &head, ready, keys) {
            Ok((broken_off, old)) => {
                options.id.clone_from(&old.id);
                if args.label.is_none() {
                    options.label.clone_from(&old.label);
                }
                options.note = options.note.take().or(old.note);
                tracing::info!("going on with backup {}", options.id);
                earlier = Some(broken_off);
                head = self::head(config, found, ready, options);
            }
            Err(reason) => tracing::warn!("no broken-off backup can be continued: {reason}; beginning anew"),
        }
    }
    if all_ready {
        leftovers::remove(ready, keys, journals, Some(&options.id));
    }
    match begin_journal(&dir, head, earlier.is_none()) {
        Ok(journal) => Attempt { earlier, journal: Some(journal) },
        Err(error) => {
            tracing::warn!("{error}; the backup cannot be continued if it breaks off");
            Attempt { earlier, journal: None }
        }
    }
}

fn begin_journal(dir: &Path, head: Head, is_new: bool) -> Result<Journal> {
    let mut journal = Journal::create(dir, head)?;
    if is_new {
        journal.publish()?;
    }
    if let Some(state) = dir.parent() {
        setup::give_to(state, setup::owner_for(&journal.head().data_dir))?;
    }
    Ok(journal)
}

fn head(config: &Config, found: &Preflight, ready: &[&Repository], options: &BackupOptions) -> Head {
    let recipients = match &config.encryption {
        Encryption::None => &[][..],
        Encryption::Age { recipients, .. } => recipients,
    };
    let (control, data_dir) = (&found.control, found.data_dir.clone());
    let mut head =
        Head::new(options.id.clone(), control.system_identifier, control.timeline, data_dir, recipients);
    head.repositories = ready.iter().map(|repository| repository.url().to_owned()).collect();
    head.label.clone_from(&options.label);
    head.note.clone_from(&options.note);
    head
}

/// Takes the newest broken-off backup out of `journals` if it can be continued as `head` says; else why it cannot.
fn newest(
    journals: &mut Journals,
    head: &Head,
    ready: &[&Repository],
    keys: &ClusterKeys,
) -> Result<(BrokenOff, Head), String> {
    let newest = journals.broken_off.last().ok_or("there is none")?;
    let old = newest.head().map_err(|error| error.to_string())?;
    if let Some(reason) = old.differs_from(head) {
        return Err(format!("{reason} (backup {})", old.id));
    }
    for repository in ready {
        // What is not kept must be removed. There is no object of this name; who may not delete is told so all the same.
        let nothing = format!("{}data/none", keys.backup(&old.id));
        let may_delete = repository.storage().delete(&nothing, &repository.deadline());
        may_delete.map_err(|error| repository.error("remove objects from", &error).message().to_owned())?;
        // It would bear an earlier time than the other; or be that one itself.
        let known = crate::repository::list_backups(repository, keys).map_err(|error| error.to_string())?;
        if known.iter().any(|id| *id >= old.id) {
            return Err(format!(
                "repository \"{}\" holds backup {} itself or a later one",
                repository.name(),
                old.id
            ));
        }
    }
    journals.broken_off.pop().map(|newest| (newest, old)).ok_or_else(|| "there is none".to_owned())
}

/// Returns where the journals of a cluster's backups are.
fn journals_dir(config: &Config, sysid: SystemIdentifier) -> PathBuf {
    config.cluster_state_dir().join("base-backup").join(sysid.to_string())
}

fn note_bad_pages(index: &IndexHandle, taken: &Taken) {
    for bad in &taken.bad_files {
        let blocks: Vec<String> = bad.blocks.iter().map(ToString::to_string).collect();
        let row = BadPagesRow {
            path: bad.path.clone(),
            relation: bad.relation.clone(),
            pages: bad.pages,
            blocks: blocks.join(", "),
        };
        index.run(|index| index.note_bad_pages(&taken.summary.id, &row));
    }
}

/// Returns where the accounts of very many files are kept meanwhile: the system's directory may be in memory.
fn temp_dir(config: &Config) -> std::path::PathBuf {
    let state = config.cluster_state_dir();
    if state.is_dir() { state } else { std::env::temp_dir() }
}

type Failed<'r> = Vec<(&'r Repository, Error)>;

/// Returns the repositories that know the cluster, and why the others cannot take part. Fails when none does.
fn ready<'r>(
    repositories: &'r [Repository],
    config: &Config,
    sysid: SystemIdentifier,
) -> Result<(Vec<&'r Repository>, Failed<'r>)> {
    let all: Vec<&Repository> = repositories.iter().collect();
    let answers = ask_all(
        &all,
        usize::MAX,
        |repository, deadline| (repository, ClusterState::ask(repository, &config.cluster, sysid, deadline)),
        |_| false,
    );
    let (mut ready, mut failed) = (Vec::new(), Vec::new());
    for (repository, answer) in answers {
        let error = match answer {
            Ok(ClusterState::Known(_)) => {
                ready.push(repository);
                continue;
            }
            Ok(ClusterState::OtherOnly(_)) => Error::corrupt(format!(
                "repository \"{}\" is not initialised for system identifier {sysid}",
                repository.name()
            ))
            .with_hint("run walden init again"),
            Ok(ClusterState::Nothing) => Error::new(
                Kind::Repository,
                format!("repository \"{}\" holds no cluster \"{}\"", repository.name(), config.cluster),
            )
            .with_hint("not mounted, a wrong prefix, or not initialised: walden init"),
            Err(error) => {
                let error = repository.error("look into", &error);
                let hint = "a backup begins only where its repository can be reached";
                if error.hint().is_none() { error.with_hint(hint) } else { error }
            }
        };
        failed.push((repository, error));
    }
    match failed.first() {
        Some((_, error)) if ready.is_empty() => Err(error.clone()),
        _ => {
            for (_, error) in &failed {
                tracing::warn!("{error}; the backup goes to the other repositories");
            }
            Ok((ready, failed))
        }
    }
}

fn report(args: &Args, taken: &Taken, completed: &Completed<'_>, elapsed: Duration) -> Result<()> {
    let summary = &taken.summary;
    let names: Vec<&str> = completed.repositories.iter().map(|repository| repository.name()).collect();
    if args.output == Format::Json {
        let mut value = serde_json::to_value(summary).unwrap_or_default();
        if let Some(object) = value.as_object_mut() {
            object.remove("pieces");
            object.insert("repositories".into(), names.into());
            object.insert("reused".into(), taken.reused.into());
            object.insert("wal_wait_seconds".into(), completed.waited.as_secs_f64().into());
            object.insert("bad_files".into(), serde_json::to_value(&taken.bad_files).unwrap_or_default());
        }
        return json(&value);
    }
    println!(
        "Backup {} is complete in {}: {} files, {} (stored {}), {} to {}, in {:.1} s",
        summary.id,
        names.join(", "),
        summary.files,
        bytes(summary.size),
        bytes(summary.stored_size),
        summary.start_lsn,
        summary.stop_lsn,
        elapsed.as_secs_f64()
    );
    if completed.waited > WAIT_WORTH_SAYING {
        println!(
            "{:.1} s of that were spent waiting for its last WAL segment to be archived",
            completed.waited.as_secs_f64()
        );
    }
    if taken.reused > 0 {
        println!("{} of it had been stored before it broke off", bytes(taken.reused));
    }
    println!(
        "From now on the cluster can be recovered to any moment after {}",
        crate::recovery::target::utc(summary.stop_time)
    );
    Ok(())
}
