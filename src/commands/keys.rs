//! `walden keys`: what concerns the keys of objects that are stored already.

use super::output::{Format, bytes, count, json};
use super::{Global, operation, setup};
use crate::codec::recipients_id;
use crate::config::{Config, Encryption, Location};
use crate::index::IndexHandle;
use crate::kind::{Error, Kind, Result};
use crate::postgres::SystemIdentifier;
use crate::progress::Progress;
use crate::repository::{Repository, clusters};
use crate::upkeep::rewrap::{EMPTY, Outcome, Request, only_in, plan, run as rewrap};
use std::path::PathBuf;

/// Look after the keys of what is stored
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Copy a repository into a new one that opens with other keys
    ///
    /// Every object's age header is written anew for the recipients of the new configuration; payloads are copied as they
    /// are. Needs an identity that opens the old repository, and only the recipients of the new one. Nothing in the old
    /// repository is changed or removed. Broken off, the next run goes on; run once more after the switch, it copies what
    /// was archived meanwhile.
    #[command(after_help = "Example:\n  walden keys rewrap --into /etc/walden/walden-new.toml --dry-run\n\
                            \nThe whole rotation: docs/security.md, \"Rotation\".")]
    Rewrap(Rewrap),
}

#[derive(Debug, clap::Args)]
struct Rewrap {
    /// The configuration with the new repository, which comes first in it, and the new recipients
    #[arg(long, value_name = "FILE")]
    into: PathBuf,
    /// The repository to copy; the first one unless given
    #[arg(long, value_name = "NAME")]
    from: Option<String>,
    /// Only say what is to be copied
    #[arg(long)]
    dry_run: bool,
    /// How many objects are copied at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    /// Only this system identifier; all that the repository holds unless given
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let What::Rewrap(args) = &args.what;
    let old = Config::load(global.config.as_deref())?;
    let new = Config::load(Some(&args.into))?;
    let repositories = setup::repositories(&old)?;
    if let Some(name) = &args.from {
        setup::check_name(&repositories, "--from", name)?;
    }
    let named = |repository: &&Repository| args.from.as_ref().is_none_or(|name| name == repository.name());
    let targets = setup::repositories(&new)?;
    let (Some(from), Some(to)) = (repositories.iter().find(named), targets.first()) else {
        return Err(Error::config("a configuration names no repository"));
    };
    let recipients = check(&old, &new, &repositories, &targets)?;
    let opener = setup::opener(&old)?;
    if !opener.has_identity() {
        return Err(Error::config(format!("\"{}\" names no identity", old.path.display())).with_hint(
            "run this where the identity of the old repository is, with encryption.identity_file",
        ));
    }
    let sealer = setup::sealer(&new)?;
    let systems = match args.system_identifier {
        Some(sysid) => vec![sysid],
        None => {
            clusters(from, &old.cluster, &from.deadline()).map_err(|error| from.error("look into", &error))?
        }
    };
    if systems.is_empty() {
        let text = format!("repository \"{}\" holds no cluster \"{}\"", from.name(), old.cluster);
        return Err(Error::new(Kind::Repository, text));
    }
    let request = |sysid| Request {
        cluster: &old.cluster,
        sysid,
        from,
        to,
        opener: &opener,
        sealer: &sealer,
        recipients: &recipients,
    };
    let requests: Vec<Request<'_>> = systems.into_iter().map(request).collect();
    warn_of_others(&requests, &repositories);
    if args.dry_run {
        return say_plans(args, &requests);
    }
    let _lock = setup::upkeep_lock(&old);
    let index = setup::index(&old);
    // One that cannot be copied to its end must not keep the others from it: the first is often the one before a pg_upgrade.
    let done: Vec<(&Request<'_>, Result<Outcome>)> =
        requests.iter().map(|request| (request, one(args, &old, request, &index))).collect();
    if let Some(root) = directory(&new) {
        // The server's user writes there from the switch on.
        setup::give_to(&root, setup::owner_for(&new.data_dir))?;
    }
    report(args, &done)
}

/// Fails where the two configurations do not fit together. Returns who the new recipients are.
fn check(old: &Config, new: &Config, repositories: &[Repository], targets: &[Repository]) -> Result<String> {
    let path = new.path.display();
    if new.cluster != old.cluster {
        return Err(Error::config(format!(
            "\"{path}\" is of cluster \"{}\", not \"{}\"",
            new.cluster, old.cluster
        )));
    }
    let Encryption::Age { recipients, .. } = &new.encryption else {
        return Err(Error::config(format!("\"{path}\" names no recipients: it does not encrypt")));
    };
    for target in targets {
        if let Some(same) = repositories.iter().find(|repository| repository.url() == target.url()) {
            return Err(Error::config(format!(
                "repository \"{}\" of \"{path}\" is repository \"{}\" of \"{}\", {}: walden sync would mix what is \
                 wrapped for the old recipients with what is wrapped for the new ones",
                target.name(),
                same.name(),
                old.path.display(),
                target.url()
            ))
            .with_hint(EMPTY));
        }
    }
    Ok(recipients_id(recipients))
}

/// Says what other old repositories hold and this run does not copy.
fn warn_of_others(requests: &[Request<'_>], repositories: &[Repository]) {
    for request in requests {
        for other in repositories.iter().filter(|other| other.name() != request.from.name()) {
            let (name, from) = (other.name(), request.from.name());
            match only_in(request, other) {
                Ok(0) => {}
                Ok(some) => tracing::warn!(
                    "repository \"{name}\" holds {} that \"{from}\" lacks, and that are not copied; hint: walden sync \
                     first, or run this with --from {name} too",
                    count(some, "object")
                ),
                Err(error) => tracing::warn!("what only repository \"{name}\" holds is not known: {error}"),
            }
        }
    }
}

fn say_plans(args: &Rewrap, requests: &[Request<'_>]) -> Result<()> {
    let mut list = Vec::new();
    for request in requests {
        let tasks = plan(request)?;
        if args.output == Format::Json {
            list.extend(tasks.iter().map(|task| {
                serde_json::json!({ "system_identifier": request.sysid, "key": task.object.key,
                                    "bytes": task.object.size })
            }));
            continue;
        }
        for task in &tasks {
            println!("{}", task.object.key);
        }
        println!(
            "{} to copy from {} to {}, {}",
            count(tasks.len(), "object"),
            request.from.url(),
            request.to.url(),
            bytes(tasks.iter().map(|task| task.object.size).sum())
        );
    }
    if args.output == Format::Json { json(&list) } else { Ok(()) }
}

fn one(args: &Rewrap, old: &Config, request: &Request<'_>, index: &IndexHandle) -> Result<Outcome> {
    let subject = format!("{} into {}", request.from.url(), request.to.url());
    let mut made = None;
    let done = operation::run(old, index, "keys rewrap", &subject, |details| {
        let progress = Progress::new();
        let outcome = super::progress::while_shown(&progress, "keys rewrap", || {
            let tasks = plan(request)?;
            rewrap(request, &tasks, usize::from(args.parallel), &progress)
        })?;
        details.note("copied", outcome.copied);
        details.note("bytes", outcome.bytes);
        details.note("unreadable", outcome.unreadable.len());
        details.note("damaged", outcome.damaged.len());
        details.note("failed", outcome.failed.len());
        let judged = judge(&outcome);
        made = Some(outcome);
        judged
    });
    // What was not copied is told with the rest; a run that did not come so far has failed.
    made.map_or_else(|| done.map(|()| Outcome::default()), Ok)
}

/// Fails where anything was not copied.
fn judge(outcome: &Outcome) -> Result<()> {
    if let Some(error) = outcome.failed.first().cloned() {
        return Err(error.context(format!("{} could not be copied", count(outcome.failed.len(), "object"))));
    }
    if let Some(key) = outcome.unreadable.first() {
        let number = count(outcome.unreadable.len(), "object");
        let text = format!("{number} left out, since no identity opens them, \"{key}\" the first");
        return Err(Error::config(text).with_hint("an identity file may hold several identities, one a line"));
    }
    if let Some((key, _)) = outcome.damaged.first() {
        let number = count(outcome.damaged.len(), "object");
        let text = format!("{number} left out as damaged, \"{key}\" the first");
        return Err(Error::corrupt(text)
            .with_hint("walden verify and walden sync in the old repository mend what another one has"));
    }
    Ok(())
}

fn report(args: &Rewrap, done: &[(&Request<'_>, Result<Outcome>)]) -> Result<()> {
    let whole = done.iter().all(|(_, result)| result.as_ref().is_ok_and(Outcome::is_whole));
    if args.output == Format::Json {
        let list: Vec<serde_json::Value> = done
            .iter()
            .map(|(request, result)| {
                serde_json::json!({ "system_identifier": request.sysid, "outcome": result.as_ref().ok(),
                                    "error": result.as_ref().err().map(ToString::to_string) })
            })
            .collect();
        json(&list)?;
    } else {
        for (request, outcome) in
            done.iter().filter_map(|(request, result)| Some((request, result.as_ref().ok()?)))
        {
            say(request, outcome);
        }
        if whole && done.iter().any(|(_, result)| result.as_ref().is_ok_and(|outcome| outcome.copied > 0)) {
            println!(
                "Next: the switch to \"{}\", as docs/security.md tells it under Rotation.",
                args.into.display()
            );
        }
    }
    for (_, result) in done {
        match result {
            Ok(outcome) => judge(outcome)?,
            Err(error) => return Err(error.clone()),
        }
    }
    Ok(())
}

fn say(request: &Request<'_>, outcome: &Outcome) {
    let (from, to, sysid) = (request.from.url(), request.to.url(), request.sysid);
    if outcome.copied == 0 && outcome.is_whole() {
        println!("{to} has everything that {from} has of system identifier {sysid}.");
        return;
    }
    println!(
        "Copied {} of system identifier {sysid} with new headers, {}.",
        count(outcome.copied, "object"),
        bytes(outcome.bytes)
    );
    if outcome.unencrypted > 0 {
        println!("{} of them not encrypted, and copied as they are.", outcome.unencrypted);
    }
    for key in &outcome.unreadable {
        println!("LEFT OUT, no identity opens it: {key}");
    }
    for (key, why) in &outcome.damaged {
        println!("LEFT OUT, damaged: {key}: {why}");
    }
}

/// Returns the directory of the new repository, if it is one.
fn directory(new: &Config) -> Option<PathBuf> {
    match new.repositories.first()?.location() {
        Ok(Location::Directory(root)) => Some(root),
        _ => None,
    }
}
