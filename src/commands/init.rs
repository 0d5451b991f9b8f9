//! `walden init`: the configuration, the keys, and the cluster's place in each repository.

mod found;
mod questions;

use super::{Global, setup};
use crate::codec::{self, Sealer};
use crate::config::{self, Config, Location};
use crate::durable;
use crate::error::exit_code;
use crate::kind::{Context, Error, Result};
use crate::postgres::ControlFile;
use crate::repository::{ClusterFile, ClusterKeys, Repository};
use crate::server::Server;
use crate::storage::FsStorage;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// Write the configuration and set up the repositories
///
/// Reads pg_control (the server may be down), creates cluster.json and RECOVERY.md in each repository, generates an age
/// identity unless recipients are given, and prints the settings for postgresql.conf. Run it again after pg_upgrade or
/// with a repository that was down: it then adds only what is missing. On a terminal it asks for what the flags leave open.
#[derive(Debug, Clone, clap::Args)]
#[command(after_help = "Example:\n  walden init --cluster main --data-dir /var/lib/postgresql/17/main \
    --state-dir /var/lib/walden \\\n    --repository primary=file:///srv/walden --repository replica=s3://bucket/prefix")]
pub struct Args {
    /// The cluster's name in the repositories
    #[arg(long, value_name = "NAME")]
    cluster: Option<String>,
    /// The server's data directory
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Where the index and the spool are kept
    #[arg(long, value_name = "DIR")]
    state_dir: Option<PathBuf>,
    /// A repository: NAME=file:///directory or NAME=s3://bucket/prefix (the first is the primary)
    #[arg(long, value_name = "NAME=URL")]
    repository: Vec<String>,
    /// An option of a repository: NAME.KEY=VALUE, as in replica.region=us-west-2 or primary.endpoint=https://...
    #[arg(long, value_name = "NAME.KEY=VALUE")]
    repository_option: Vec<String>,
    /// Whom to encrypt to: age1..., or an SSH public key [default: an identity is generated beside the configuration]
    #[arg(long, value_name = "RECIPIENT")]
    recipient: Vec<String>,
    /// Do not encrypt
    #[arg(long, conflicts_with = "recipient")]
    no_encryption: bool,
    /// How to reach the server, as a libpq connection string
    #[arg(long, value_name = "STRING")]
    connection: Option<String>,
    /// Where postgres and pg_ctl are, for recover --start [default: searched for]
    #[arg(long, value_name = "DIR")]
    bin_dir: Option<PathBuf>,
    /// Set the server's settings with ALTER SYSTEM instead of only printing them
    #[arg(long)]
    apply: bool,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let path = config::path_of(global.config.as_deref());
    let path = durable::absolute(&path).context("configuration")?;
    let result = set_up(&path, args);
    // The log is where the configuration says, which may only be there now.
    if let Ok(config) = Config::load(Some(&path)) {
        let index = setup::index(&config);
        let operation = index.log_start("init", &config.cluster);
        let details = serde_json::json!({ "configuration": path.display().to_string(), "apply": args.apply });
        index.log_end_with(operation, &result, exit_code, &details.to_string());
    }
    result
}

fn set_up(path: &Path, args: &Args) -> Result<()> {
    if path.exists() {
        return again(path, args);
    }
    if !questions::wanted(args) {
        return first(path, args);
    }
    let (args, cluster) = questions::ask(path, args)?;
    first(path, &args)?;
    let restart = cluster.map(|cluster| cluster.restart());
    print!("{}", what_next(path, args.apply, restart.as_deref())?);
    Ok(())
}

/// Returns what is left to do, in order.
fn what_next(path: &Path, applied: bool, restart: Option<&str>) -> Result<String> {
    let mut steps = Vec::new();
    if !applied {
        steps.push("put the settings above into postgresql.conf".to_owned());
    }
    steps.push(match restart {
        Some(command) => format!("restart the server: {command}"),
        None => "restart the server".to_owned(),
    });
    let command = |arguments| Ok::<_, Error>(setup::server_command(path, arguments)?.replace("%%", "%"));
    steps.push(format!("check that all is as it must be: {}", command("check")?));
    steps.push(format!("take a base backup: {}", command("base-backup")?));
    steps.push(format!("look: {}", command("status")?));
    steps.push(
        "let a timer take base backups daily, and try a recovery: docs/quickstart.md, docs/runbook.md"
            .to_owned(),
    );
    let lines = steps.iter().enumerate().map(|(at, step)| format!("  {}. {step}\n", at + 1));
    Ok(format!("\nWhat is left to do:\n{}", lines.collect::<String>()))
}

/// Sets up one of the repositories of `args` and returns what was added there: that it can be written is seen by writing.
fn probe(path: &Path, args: &Args, name: &str) -> Result<Vec<String>> {
    let data_dir =
        durable::absolute(args.data_dir.as_deref().unwrap_or(Path::new("/"))).context("data directory")?;
    let state_dir = args.state_dir.clone().unwrap_or_default();
    let cluster = args.cluster.clone().unwrap_or_else(|| "main".to_owned());
    let recipients = match (args.no_encryption, args.recipient.is_empty()) {
        (true, _) => Vec::new(),
        // Nothing is encrypted yet; the key is made when all questions are answered.
        (false, true) => vec![codec::generate_identity().1],
        (false, false) => args.recipient.clone(),
    };
    let text = config_text(args, &cluster, &data_dir, &state_dir, &recipients, None)?;
    let mut config = Config::parse(&text, path)?;
    config.repositories.retain(|repository| repository.name == name);
    set_up_repositories(&config, &setup::control_file(&data_dir)?, setup::owner_for(&data_dir))
}

fn first(path: &Path, args: &Args) -> Result<()> {
    let required = |value: &Option<PathBuf>, flag: &str| {
        value
            .clone()
            .ok_or_else(|| Error::usage(format!("{flag} is missing")).with_hint("see walden init --help"))
    };
    let data_dir = durable::absolute(&required(&args.data_dir, "--data-dir")?).context("--data-dir")?;
    let state_dir = durable::absolute(&required(&args.state_dir, "--state-dir")?).context("--state-dir")?;
    let cluster = args.cluster.clone().unwrap_or_else(|| "main".to_owned());
    if args.repository.is_empty() {
        return Err(Error::usage("--repository is missing").with_hint("see walden init --help"));
    }
    let control = setup::control_file(&data_dir)?;
    let owner = setup::owner_for(&data_dir);
    let identity_path = path.with_file_name("identity.txt");
    let mut generated = None;
    let recipients = if args.no_encryption {
        Vec::new()
    } else if args.recipient.is_empty() {
        if identity_path.exists() {
            return Err(Error::config(format!("\"{}\" exists already", identity_path.display()))
                .with_hint("give its recipient with --recipient; age-keygen -y prints it"));
        }
        let (identity, recipient) = codec::generate_identity();
        generated = Some(identity);
        vec![recipient]
    } else {
        Sealer::for_recipients(&args.recipient)?;
        args.recipient.clone()
    };
    let identity = generated.as_ref().map(|_| identity_path.as_path());
    let text = config_text(args, &cluster, &data_dir, &state_dir, &recipients, identity)?;
    let parsed = Config::parse(&text, path)?;

    let added = set_up_repositories(&parsed, &control, owner)?;
    for dir in [path.parent().unwrap_or(Path::new("/")), &state_dir, &parsed.cluster_state_dir()] {
        create_dir(dir, owner)?;
    }
    if let Some(identity) = &generated {
        if !durable::write_new(&identity_path, identity.as_bytes(), 0o600).context("write identity")? {
            return Err(Error::config(format!("\"{}\" exists already", identity_path.display())));
        }
        setup::give_to(&identity_path, owner)?;
    }
    if !durable::write_new(path, text.as_bytes(), 0o640).context("write configuration")? {
        return Err(exists_already(path));
    }
    setup::give_to(path, owner)?;

    println!("Wrote {}", path.display());
    for line in added {
        println!("{line}");
    }
    if generated.is_some() {
        println!("Wrote {} (the age identity that decrypts everything)", identity_path.display());
        println!(
            "  Keep a copy of it away from this host: without it nothing can be recovered. With its copy safe,"
        );
        println!(
            "  move it off this host (and remove identity_file): then the host cannot read its own past."
        );
    }
    settings(&parsed, args.apply)
}

fn exists_already(path: &Path) -> Error {
    Error::config(format!("configuration \"{}\" exists already; nothing was changed", path.display()))
        .with_hint("edit it, or move it away to begin anew")
}

/// The configuration is there: add the cluster's place where it is missing, and nothing else.
fn again(path: &Path, args: &Args) -> Result<()> {
    let config = Config::load(Some(path))?;
    let differs = |what: &str| {
        Err(Error::config(format!(
            "configuration \"{}\" exists already and has another {what}",
            path.display()
        ))
        .with_hint("edit the file; init does not overwrite it"))
    };
    if args.cluster.as_ref().is_some_and(|cluster| *cluster != config.cluster) {
        return differs("cluster name");
    }
    for given in &args.repository {
        let (name, url) = split_repository(given)?;
        if !config.repositories.iter().any(|known| known.name == name && known.url == url) {
            return differs(&format!("repository \"{name}\""));
        }
    }
    let data_dir = match &args.data_dir {
        Some(dir) => durable::absolute(dir).context("--data-dir")?,
        None => config.data_dir.clone(),
    };
    if data_dir != config.data_dir {
        return differs("data_dir");
    }
    let control = setup::control_file(&data_dir)?;
    let added = set_up_repositories(&config, &control, setup::owner_for(&data_dir))?;
    if added.is_empty() && !args.apply {
        return Err(exists_already(path));
    }
    for line in added {
        println!("{line}");
    }
    settings(&config, args.apply)
}

fn split_repository(given: &str) -> Result<(&str, &str)> {
    match given.split_once('=') {
        Some((name, url)) if !name.is_empty() && !url.is_empty() => Ok((name, url)),
        _ => Err(Error::usage(format!("--repository {given}: it is NAME=URL"))
            .with_hint("as in primary=file:///srv/walden or replica=s3://bucket/prefix")),
    }
}

/// Returns the text of the configuration.
fn config_text(
    args: &Args,
    cluster: &str,
    data_dir: &Path,
    state_dir: &Path,
    recipients: &[String],
    identity: Option<&Path>,
) -> Result<String> {
    let text_of = |path: &Path| {
        path.to_str()
            .map(toml_string)
            .ok_or_else(|| Error::usage(format!("\"{}\" is not text", path.display())))
    };
    let mut text = String::new();
    let _ = writeln!(text, "# Walden's configuration; every key is described in docs/configuration.md.\n");
    let _ = writeln!(text, "cluster   = {}", toml_string(cluster));
    let _ = writeln!(text, "data_dir  = {}", text_of(data_dir)?);
    let _ = writeln!(text, "state_dir = {}", text_of(state_dir)?);
    if args.no_encryption {
        text.push_str("encryption = \"none\"\n");
    }
    if args.connection.is_some() || args.bin_dir.is_some() {
        text.push_str("\n[server]\n");
    }
    if let Some(connection) = &args.connection {
        let _ = writeln!(text, "connection = {}", toml_string(connection));
    }
    if let Some(dir) = &args.bin_dir {
        let _ = writeln!(text, "bin_dir = {}", text_of(&durable::absolute(dir).context("--bin-dir")?)?);
    }
    for option in &args.repository_option {
        let named = |given: &String| {
            let name = given.split('=').next().unwrap_or_default();
            option.strip_prefix(name).is_some_and(|rest| rest.starts_with('.'))
        };
        if !args.repository.iter().any(named) {
            return Err(Error::usage(format!("--repository-option {option}: no --repository has that name"))
                .with_hint("it is NAME.KEY=VALUE, as in replica.region=us-west-2"));
        }
    }
    for given in &args.repository {
        let (name, url) = split_repository(given)?;
        let _ = writeln!(text, "\n[[repository]]\nname = {}\nurl  = {}", toml_string(name), toml_string(url));
        for option in &args.repository_option {
            let (key, value) = option
                .split_once('=')
                .ok_or_else(|| Error::usage(format!("--repository-option {option}: it is NAME.KEY=VALUE")))?;
            let Some(key) = key.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')) else { continue };
            match value {
                "true" | "false" => writeln!(text, "{key} = {value}"),
                _ => writeln!(text, "{key} = {}", toml_string(value)),
            }
            .context("write")?;
        }
    }
    if !recipients.is_empty() {
        let list: Vec<String> = recipients.iter().map(|recipient| toml_string(recipient)).collect();
        let _ = writeln!(text, "\n[encryption]\nrecipients = [{}]", list.join(", "));
        if let Some(identity) = identity {
            let _ = writeln!(text, "identity_file = {}   # only where recovery is run", text_of(identity)?);
        }
    }
    let _ = writeln!(
        text,
        "\n[archive]\nacknowledge = 1     # how many repositories must hold a segment; or \"all\""
    );
    Ok(text)
}

fn toml_string(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}

fn create_dir(dir: &Path, owner: Option<(u32, u32)>) -> Result<()> {
    if dir.is_dir() {
        return Ok(());
    }
    std::fs::create_dir_all(dir).map_err(durable::at(dir)).context("create directory")?;
    setup::give_to(dir, owner)
}

/// Creates what is missing in each repository, and returns a line for each thing that was added.
fn set_up_repositories(
    config: &Config,
    control: &ControlFile,
    owner: Option<(u32, u32)>,
) -> Result<Vec<String>> {
    let mut added = Vec::new();
    let sealer = setup::sealer(config)?;
    for (entry, repository) in config.repositories.iter().zip(setup::repositories(config)?) {
        let root = match entry.location()? {
            Location::Directory(root) => Some(root),
            Location::S3 { .. } => None,
        };
        if let Some(root) = &root {
            let made = !root.exists();
            FsStorage::new(root.clone()).create_root().map_err(|error| {
                repository
                    .error("create", &error)
                    .with_hint("the directory above it must be there, and writable")
            })?;
            if made {
                setup::give_to(root, owner)?;
            }
        }
        if let Some(line) = set_up_cluster(config, control, &repository, &sealer)? {
            added.push(line);
        }
        if let Some(root) = &root {
            // The server's user writes here from now on.
            setup::give_to(&root.join(&config.cluster), owner)?;
        }
    }
    Ok(added)
}

fn set_up_cluster(
    config: &Config,
    control: &ControlFile,
    repository: &Repository,
    sealer: &Sealer,
) -> Result<Option<String>> {
    let sysid = control.system_identifier;
    let keys = ClusterKeys::new(&config.cluster, sysid);
    let major = control.major_version().ok_or_else(|| {
        Error::new(crate::kind::Kind::Server, "this version of PostgreSQL is not supported")
            .with_hint("walden supports 14 to 18")
    })?;
    match ClusterFile::read(repository, &keys, &repository.deadline()) {
        Ok(_) => return Ok(None),
        Err(error) if error.is_not_found() => {}
        Err(error) => return Err(repository.error("look into", &error)),
    }
    ClusterFile::new(&config.cluster, sysid, control.wal_segment_size, major)
        .set_up(repository, sealer.ending())?;
    Ok(Some(format!(
        "Repository \"{}\" ({}) is ready for cluster \"{}\", system identifier {sysid}, PostgreSQL {major}",
        repository.name(),
        repository.url(),
        config.cluster
    )))
}

/// Prints the server's settings, or sets them.
fn settings(config: &Config, apply: bool) -> Result<()> {
    let list = [
        ("archive_mode", "on".to_owned()),
        ("archive_command", setup::server_command(&config.path, "archive-push %p")?),
        ("restore_command", setup::server_command(&config.path, "archive-get %f %p")?),
    ];
    if !apply {
        println!("\nPut these lines into postgresql.conf and restart the server (archive_mode needs it):\n");
        for (name, value) in &list {
            println!("    {name} = {}", crate::recovery::settings::quote(value));
        }
        println!("    wal_level = replica          # or logical\n");
        println!(
            "Then take a base backup: {}",
            setup::server_command(&config.path, "base-backup")?.replace("%%", "%")
        );
        return Ok(());
    }
    let mut server = Server::connect(&config.server.connection)?;
    for (name, value) in &list {
        server.alter_system(name, value)?;
    }
    if server.setting("wal_level")? == "minimal" {
        server.alter_system("wal_level", "replica")?;
    }
    server.reload()?;
    println!("Set archive_mode, archive_command and restore_command with ALTER SYSTEM.");
    let names: Vec<&str> = list.iter().map(|(name, _)| *name).chain(["wal_level"]).collect();
    let pending = server.pending_restart(&names)?;
    if pending.is_empty() {
        println!("All of them are in force.");
    } else {
        println!("The server must be restarted before archiving works: {} changed.", pending.join(", "));
    }
    Ok(())
}
