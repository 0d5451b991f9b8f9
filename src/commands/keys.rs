//! `walden keys`: what concerns the keys of objects that are stored already.

use super::output::{Format, bytes, count, json};
use super::{Global, operation, setup};
use crate::config::{Config, Encryption, Location};
use crate::index::IndexHandle;
use crate::kind::{Error, Kind, Result};
use crate::postgres::SystemIdentifier;
use crate::progress::Progress;
use crate::repository::{Repository, clusters};
use crate::storage::FsStorage;
use crate::upkeep::rewrap::{Outcome, Request, plan, run as rewrap};
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
    check(&old, &new, &repositories, to)?;
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
    let requests: Vec<Request<'_>> = systems
        .into_iter()
        .map(|sysid| Request { cluster: &old.cluster, sysid, from, to, opener: &opener, sealer: &sealer })
        .collect();
    if args.dry_run {
        let begun = directory(&new).is_none_or(|root| root.exists());
        return requests.iter().try_for_each(|request| say_plan(args, request, begun));
    }
    let _lock = setup::upkeep_lock(&old);
    let index = setup::index(&old);
    create_directory(&new, to)?;
    let done = requests.iter().try_for_each(|request| one(args, &old, request, &index));
    give_directory(&new)?;
    done
}

/// Fails where the two configurations do not fit together.
fn check(old: &Config, new: &Config, repositories: &[Repository], to: &Repository) -> Result<()> {
    let path = new.path.display();
    if new.cluster != old.cluster {
        return Err(Error::config(format!(
            "\"{path}\" is of cluster \"{}\", not \"{}\"",
            new.cluster, old.cluster
        )));
    }
    if matches!(new.encryption, Encryption::None) {
        return Err(Error::config(format!("\"{path}\" names no recipients: it does not encrypt")));
    }
    if let Some(same) = repositories.iter().find(|repository| repository.url() == to.url()) {
        return Err(Error::config(format!(
            "the first repository of \"{path}\" is repository \"{}\" of \"{}\": {}",
            same.name(),
            old.path.display(),
            to.url()
        ))
        .with_hint("what is stored is never rewritten; give a prefix or directory that holds nothing yet"));
    }
    Ok(())
}

fn say_plan(args: &Rewrap, request: &Request<'_>, begun: bool) -> Result<()> {
    let tasks = plan(request, begun)?;
    if args.output == Format::Json {
        let list: Vec<serde_json::Value> = tasks
            .iter()
            .map(|task| serde_json::json!({ "key": task.object.key, "bytes": task.object.size }))
            .collect();
        return json(&list);
    }
    for task in &tasks {
        println!("{}", task.object.key);
    }
    let total = tasks.iter().map(|task| task.object.size).sum();
    println!(
        "{} to copy from {} to {}, {}",
        count(tasks.len(), "object"),
        request.from.url(),
        request.to.url(),
        bytes(total)
    );
    Ok(())
}

fn one(args: &Rewrap, old: &Config, request: &Request<'_>, index: &IndexHandle) -> Result<()> {
    let subject = format!("{} into {}", request.from.url(), request.to.url());
    operation::run(old, index, "keys rewrap", &subject, |details| {
        let progress = Progress::new();
        let outcome = super::progress::while_shown(&progress, "keys rewrap", || {
            let tasks = plan(request, true)?;
            rewrap(request, &tasks, usize::from(args.parallel), &progress)
        })?;
        details.note("copied", outcome.copied);
        details.note("bytes", outcome.bytes);
        details.note("unreadable", outcome.unreadable.len());
        details.note("failed", outcome.failed.len());
        report(args, request, &outcome)
    })
}

fn report(args: &Rewrap, request: &Request<'_>, outcome: &Outcome) -> Result<()> {
    if args.output == Format::Json {
        json(outcome)?;
    } else if outcome.copied == 0 && outcome.unreadable.is_empty() && outcome.failed.is_empty() {
        println!("{} has everything that {} has.", request.to.url(), request.from.url());
    } else {
        println!("Copied {} with new headers, {}.", count(outcome.copied, "object"), bytes(outcome.bytes));
        if outcome.unencrypted > 0 {
            println!("{} of them not encrypted, and copied as they are.", outcome.unencrypted);
        }
        println!(
            "Next: put \"{}\" in the place of the old configuration, run this once more for what was archived \
             meanwhile, then walden verify --deep with the new identity.",
            args.into.display()
        );
    }
    if let Some(error) = outcome.failed.first().cloned() {
        return Err(error.context(format!("{} could not be copied", count(outcome.failed.len(), "object"))));
    }
    if let Some(key) = outcome.unreadable.first() {
        let text = format!(
            "{} left out, since no identity opens them, \"{key}\" the first",
            count(outcome.unreadable.len(), "object")
        );
        return Err(Error::config(text).with_hint("an identity file may hold several identities, one a line"));
    }
    Ok(())
}

/// Returns the directory of the new repository, if it is one.
fn directory(new: &Config) -> Option<PathBuf> {
    match new.repositories.first()?.location() {
        Ok(Location::Directory(root)) => Some(root),
        _ => None,
    }
}

/// Makes it.
fn create_directory(new: &Config, to: &Repository) -> Result<()> {
    let Some(root) = directory(new) else { return Ok(()) };
    FsStorage::new(root).create_root().map_err(|error| {
        to.error("create", &error).with_hint("the directory above it must be there, and writable")
    })
}

/// Gives it to the server's user, who writes there from the switch on.
fn give_directory(new: &Config) -> Result<()> {
    directory(new).map_or(Ok(()), |root| setup::give_to(&root, setup::owner_for(&new.data_dir)))
}
