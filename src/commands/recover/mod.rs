//! `walden recover`: plan, restore, configure, and perhaps start.

mod text;

use super::output::{Format, json};
use super::{Global, operation, setup};
use crate::codec::Opener;
use crate::config::Config;
use crate::durable;
use crate::index::IndexHandle;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::WalSegmentName;
use crate::progress::Progress;
use crate::recovery::catalog::system_identifiers;
use crate::recovery::estimate::{self, Estimate};
use crate::recovery::places::MARKER;
use crate::recovery::plan::{Plan, Request, plan};
use crate::recovery::restore::{RestoreOptions, Restored, restore_then};
use crate::recovery::settings::{self, Action, SettingsOptions};
use crate::recovery::source::RepositorySource;
use crate::recovery::start::{self, StartOptions, Way};
use crate::recovery::target::{Target, TimelineChoice};
use crate::recovery::unarchived::refuse_lost_commits;
use crate::repository::{ClusterKeys, Repository};
use crate::upkeep::rebuild::fill_if_bare;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// Restore the cluster to a moment
///
/// Plans first and restores nothing that cannot be reached. The restored copy is harmless: it does not archive and starts
/// no logical replication workers, unless --take-over makes it production.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  walden recover --until '10 minutes ago' --plan\n  \
    walden recover --until '2026-11-20 14:30:00+01' --data-dir /var/lib/postgresql/17/restored --start\n\n\
    A target is a time (with its offset, or in this machine's zone), latest, immediate, lsn:0/3000060, xid:1234 or\n\
    name:RESTORE_POINT.")]
pub struct Args {
    /// What to recover to
    #[arg(long, value_name = "TARGET")]
    until: String,
    /// Where to restore to: an empty or missing directory, or with --delta a data directory
    #[arg(long, value_name = "DIR", required_unless_present = "plan")]
    data_dir: Option<PathBuf>,
    /// Stop right before the target
    #[arg(long)]
    exclusive: bool,
    /// The timeline to follow: a number, latest or current [default: the one that was live at the target]
    #[arg(long, value_name = "TIMELINE")]
    timeline: Option<TimelineChoice>,
    /// The backup to restore [default: the newest that ended before the target]
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Recover without this repository, and without what only it holds (may be given several times)
    #[arg(long, value_name = "NAME")]
    without: Vec<String>,
    /// Accept that nothing after this segment is replayed (may be given several times)
    #[arg(long, value_name = "SEGMENT")]
    through: Vec<WalSegmentName>,
    /// The restored directory becomes production: archiving and subscriptions stay as they were
    #[arg(long)]
    take_over: bool,
    /// Only print the plan
    #[arg(long)]
    plan: bool,
    /// Start the server and follow it to the target
    #[arg(long)]
    start: bool,
    /// What the server does at the target
    #[arg(long, value_name = "ACTION", default_value = "promote", value_parser = ["pause", "promote", "shutdown"])]
    action: String,
    /// Where a tablespace is to be (may be given several times)
    #[arg(long, value_name = "OID=DIR")]
    tablespace: Vec<String>,
    /// Put every other tablespace into this directory, each under its OID
    #[arg(long, value_name = "DIR")]
    tablespace_root: Option<PathBuf>,
    /// Restore over an existing data directory: only what differs is written, what does not belong is removed
    #[arg(long)]
    delta: bool,
    /// Put the WAL into this directory, with a symbolic link in its place
    #[arg(long, value_name = "DIR")]
    wal_dir: Option<PathBuf>,
    /// The port of the restored server [default: the original's, or with --start a free one where that is taken]
    #[arg(long)]
    port: Option<u16>,
    /// How many objects are fetched at once
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: u16,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let now = jiff::Zoned::now();
    let target = Target::parse(&args.until, &now)?;
    let action = check(args, &target)?;
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories_without(&config, &args.without)?;
    let opener = setup::opener(&config)?;
    let index = setup::index(&config);
    let repositories: Vec<&Repository> = repositories.iter().collect();
    let case = Case { config: &config, repositories: &repositories, opener: &opener, index: &index };
    if args.plan {
        return recover(&case, args, target, action, None);
    }
    let subject =
        format!("--until {target} to {}", args.data_dir.as_deref().unwrap_or(Path::new("")).display());
    operation::run(&config, &index, "recover", &subject, |details| {
        details.note("target", target.to_string());
        recover(&case, args, target, action, Some(details))
    })
}

/// What a recovery is planned from.
struct Case<'a> {
    config: &'a Config,
    repositories: &'a [&'a Repository],
    opener: &'a Opener,
    index: &'a IndexHandle,
}

fn recover(
    case: &Case<'_>,
    args: &Args,
    target: Target,
    action: Action,
    details: Option<&operation::Details<'_>>,
) -> Result<()> {
    let Case { config, repositories, opener, index } = *case;
    probe(repositories, config, index)?;
    let request = Request {
        cluster: config.cluster.clone(),
        target,
        exclusive: args.exclusive,
        timeline: args.timeline.unwrap_or(TimelineChoice::Fitting),
        backup: args.backup.clone(),
        through: args.through.clone(),
    };
    let known = system_identifiers(repositories, &config.cluster)?;
    for sysid in &known {
        fill_if_bare(&config.cluster, *sysid, repositories, opener, index);
    }
    let plan = plan(&request, repositories, &known, opener, index)?;
    let estimate = Estimate::of(&plan, index);
    if args.output == Format::Json && args.plan {
        let mut value = serde_json::to_value(&plan).context("write JSON")?;
        value["expected_time"] = serde_json::to_value(estimate).context("write JSON")?;
        return json(&value);
    }
    // With JSON, stdout is for the result alone.
    let show = |text: String| if args.output == Format::Json { eprint!("{text}") } else { print!("{text}") };
    show(text::plan(&plan, &estimate, &args.without));
    if args.take_over && !plan.missing_histories.is_empty() {
        tracing::warn!(
            "timeline histories are missing from the archive, and the server may use one of their numbers again when it is \
             promoted; hint: take over under another cluster name, so that what it archives stands apart"
        );
    }
    if args.plan {
        return Ok(());
    }
    let data_dir = args.data_dir.as_deref().unwrap_or(Path::new(""));
    let data_dir = durable::absolute(data_dir).context("--data-dir")?;
    if let Some(details) = details {
        details.subject(&format!("--until {} to {}", plan.target, data_dir.display()));
        details.note("data_dir", data_dir.display().to_string());
        details.note("backup", plan.backup.clone());
        details.note("take_over", args.take_over);
        details.note("delta", args.delta);
        details.note("started", args.start);
    }
    let data_dir = &data_dir;
    Recovery { config, args, action, plan: &plan, data_dir, repositories, opener, index, show: &show }
        .carry_out()
}

fn check(args: &Args, target: &Target) -> Result<Action> {
    if args.exclusive && !target.can_be_exclusive() {
        return Err(Error::usage(format!("--exclusive does not go with the target {target}"))
            .with_hint("the server can stop right before a time, an LSN or a transaction only"));
    }
    let action = match args.action.as_str() {
        "pause" => Action::Pause,
        "shutdown" => Action::Shutdown,
        _ => Action::Promote,
    };
    if *target == Target::Latest && action != Action::Promote {
        return Err(Error::usage(format!("--action {} does not go with the target latest", args.action))
            .with_hint(
                "without a target the server promotes at the end of the archive; name a time or an LSN",
            ));
    }
    Ok(action)
}

/// Every repository must answer before anything is planned: what only one holds would silently be missing.
fn probe(repositories: &[&Repository], config: &Config, index: &IndexHandle) -> Result<()> {
    let problem_of = |repository: &Repository| match crate::repository::clusters(
        repository,
        &config.cluster,
        &repository.deadline(),
    ) {
        Ok(found) if !found.is_empty() => None,
        Ok(_) => Some(Error::new(
            Kind::Repository,
            format!("repository \"{}\" holds no cluster \"{}\"", repository.name(), config.cluster),
        )),
        Err(error) => Some(repository.error("look into", &error)),
    };
    let problems: Vec<(&Repository, Error)> = repositories
        .iter()
        .filter_map(|repository| problem_of(repository).map(|problem| (*repository, problem)))
        .collect();
    let none_left = problems.len() == repositories.len();
    if let Some((repository, problem)) = problems.into_iter().next() {
        if none_left {
            return Err(problem.with_hint("no other repository is left to recover from: bring it back, or correct its url or the name of the cluster in the configuration"));
        }
        let only = index.run(|index| index.only_in(repository.url()));
        let known = match only {
            Some((0, _)) => "as far as the index knows it holds no WAL that another one lacks".to_owned(),
            Some((n, Some(newest))) => {
                format!(
                    "the index knows {n} WAL files that only it holds, the newest {newest}: they would be lost"
                )
            }
            _ => "what only it holds is not known and would be lost".to_owned(),
        };
        // As it was typed: a flag that is lost here (--exclusive, --config) would make it another recovery.
        let mut command = "walden".to_owned();
        for argument in std::env::args_os().skip(1) {
            command += &format!(" {}", setup::shell_word(&argument.to_string_lossy()));
        }
        command += &format!(" --without {}", setup::shell_word(repository.name()));
        return Err(problem.with_hint(format!("{known}; to recover without it: {command}")));
    }
    Ok(())
}

/// A recovery that was planned.
struct Recovery<'a> {
    config: &'a Config,
    args: &'a Args,
    action: Action,
    plan: &'a Plan<'a>,
    data_dir: &'a Path,
    repositories: &'a [&'a Repository],
    opener: &'a Opener,
    index: &'a IndexHandle,
    show: &'a dyn Fn(String),
}

impl Recovery<'_> {
    fn carry_out(&self) -> Result<()> {
        let (config, args, plan, data_dir) = (self.config, self.args, self.plan, self.data_dir);
        let owner = restored_owner(config, data_dir);
        let bin_dir = if args.start {
            Some(start::find_bin_dir(config.server.bin_dir.as_deref(), plan.summary.major_version)?)
        } else {
            None
        };
        if args.start && nix::unistd::geteuid().is_root() && owner.is_none() {
            return Err(Error::new(Kind::Server, "PostgreSQL does not run as root")
                .with_hint("run walden as the user that owns the data directory"));
        }
        let settings_options = SettingsOptions {
            restore_command: restore_command(config, args, plan)?,
            action: self.action,
            take_over: args.take_over,
            port: args.port,
            owner,
        };
        if args.delta {
            let wal_dir = args.wal_dir.as_deref().map(durable::absolute).transpose().context("--wal-dir")?;
            let (cluster, sysid) = (&plan.cluster, plan.system_identifier);
            refuse_lost_commits(data_dir, wal_dir.as_deref(), cluster, sysid, self.repositories)?;
        }
        let restored = self.restore(&settings_options)?;
        (self.show)(text::restored(&restored, plan, data_dir));
        let Some(bin_dir) = bin_dir else {
            self.say_how_to_start();
            return if args.output == Format::Json {
                json(&serde_json::json!({ "plan": plan, "restored": restored }))
            } else {
                Ok(())
            };
        };
        let options = StartOptions {
            data_dir: data_dir.to_path_buf(),
            bin_dir,
            owner,
            user: user(config, owner),
            action: self.action,
            way: Way::of(plan),
        };
        self.choose_port(&options, settings_options)?;
        let progress = Progress::new();
        let detail = format!("{} bytes to {}", plan.wal_content_bytes(), plan.target);
        let operation = self.index.log_start(estimate::REPLAY, &detail);
        let reached = super::progress::while_shown(&progress, "replay", || {
            start::start_and_follow(&options, &progress)
        });
        self.index.log_end(operation, &reached);
        let reached = reached?;
        if args.output == Format::Json {
            return json(&serde_json::json!({ "plan": plan, "restored": restored, "reached": reached }));
        }
        (self.show)(text::reached(&reached, &options, plan));
        if !args.take_over {
            (self.show)(DOES_NOT_ARCHIVE.to_owned());
        }
        Ok(())
    }

    fn restore(&self, settings_options: &SettingsOptions) -> Result<Restored> {
        let (args, plan) = (self.args, self.plan);
        let keys = ClusterKeys::new(&plan.cluster, plan.system_identifier);
        let source = RepositorySource::new(plan.backup_from.clone(), keys.backup(&plan.backup));
        let options = RestoreOptions {
            data_dir: self.data_dir.to_path_buf(),
            delta: args.delta,
            wal_dir: args.wal_dir.clone(),
            parallel: usize::from(args.parallel),
            tablespaces: tablespaces(args)?,
            tablespace_root: args.tablespace_root.clone(),
            owner: settings_options.owner,
        };
        // Over what is there already it says nothing about the rate.
        let is_whole = !args.delta && !self.data_dir.join(MARKER).exists();
        let detail = format!("{} bytes of backup {}", plan.summary.size, plan.backup);
        let operation = is_whole.then(|| self.index.log_start(estimate::RESTORE, &detail)).flatten();
        let progress = Progress::new();
        let restored = super::progress::while_shown(&progress, "restore", || {
            let configure = || settings::write(self.data_dir, plan, settings_options);
            restore_then(&plan.summary, &source, self.opener, &options, &progress, &configure)
        });
        self.index.log_end(operation, &restored);
        restored.map_err(|error| {
            if self.data_dir.join(MARKER).exists() && !matches!(error.kind(), Kind::Usage | Kind::Config) {
                error.with_hint("no server starts in what is there now; the same command goes on with it")
            } else {
                error
            }
        })
    }

    fn say_how_to_start(&self) {
        let (args, plan) = (self.args, self.plan);
        let major = plan.summary.major_version;
        let pg_ctl = start::find_bin_dir(self.config.server.bin_dir.as_deref(), major)
            .map_or_else(|_| "pg_ctl".to_owned(), |dir| dir.join("pg_ctl").display().to_string());
        let dir = setup::shell_word(&self.data_dir.to_string_lossy());
        (self.show)(format!("Start the server: {pg_ctl} -D {dir} -l {dir}/server.log start\n"));
        (self.show)(format!("It recovers to {} and then does \"{}\".\n", plan.target, self.action.word()));
        if args.port.is_none() {
            (self.show)("It has the original's port; to start it beside the original, put -o '-p PORT' behind start.\n".to_owned());
        }
        if !args.take_over {
            (self.show)(DOES_NOT_ARCHIVE.to_owned());
        }
    }

    /// Sees to it that the server's port is free: a copy gets another one, unless it was chosen.
    fn choose_port(&self, options: &StartOptions, mut settings_options: SettingsOptions) -> Result<()> {
        let port = start::setting_of_stopped(options, "port")?.parse().unwrap_or(5432);
        let free = free_port_from(options, port)?;
        if free == port {
            return Ok(());
        }
        if self.args.port.is_none() && !self.args.take_over {
            (self.show)(format!("Port {port} is taken: the restored server gets port {free}\n"));
            settings_options.port = Some(free);
            return settings::write(self.data_dir, self.plan, &settings_options);
        }
        // A port that was chosen, or must stay what it was, is not moved.
        Err(Error::new(Kind::Server, format!("port {port} is taken by another server")).with_hint(format!(
            "the files are restored and nothing was started; stop the other server, then: {} -D {} start",
            options.bin_dir.join("pg_ctl").display(),
            setup::shell_word(&self.data_dir.to_string_lossy())
        )))
    }
}

const DOES_NOT_ARCHIVE: &str = "The copy does not archive (archive_mode is off): see --take-over.\n";

/// Returns the restore_command of the restored server.
fn restore_command(config: &Config, args: &Args, plan: &Plan<'_>) -> Result<String> {
    let mut arguments = "archive-get %f %p".to_owned();
    for name in &args.without {
        arguments += &format!(" --without {}", setup::shell_word(name).replace('%', "%%"));
    }
    for segment in &plan.through {
        arguments += &format!(" --through {segment}");
    }
    for timeline in &plan.missing_histories {
        arguments += &format!(" --missing-history {}", timeline.0);
    }
    setup::server_command(&config.path, &arguments)
}

fn tablespaces(args: &Args) -> Result<BTreeMap<u32, PathBuf>> {
    let mut map = BTreeMap::new();
    for given in &args.tablespace {
        let parsed = given.split_once('=').and_then(|(oid, dir)| Some((oid.parse::<u32>().ok()?, dir)));
        let Some((oid, dir)) = parsed.filter(|(_, dir)| !dir.is_empty()) else {
            return Err(Error::usage(format!("--tablespace {given}: it is OID=DIR"))
                .with_hint("recover --plan and walden list --output json show the OIDs"));
        };
        map.insert(oid, durable::absolute(Path::new(dir)).context("--tablespace")?);
    }
    Ok(map)
}

/// Returns who is to own the restored files, where this process is root: the owner of the original data directory,
/// of the directory to restore into, or of its parent, else the user postgres.
fn restored_owner(config: &Config, data_dir: &Path) -> Option<(u32, u32)> {
    if !nix::unistd::geteuid().is_root() {
        return None;
    }
    let parent = data_dir.parent().unwrap_or(Path::new("/"));
    [config.data_dir.as_path(), data_dir, parent].into_iter().find_map(setup::owner_for).or_else(|| {
        let user = nix::unistd::User::from_name("postgres").ok().flatten()?;
        Some((user.uid.as_raw(), user.gid.as_raw()))
    })
}

/// Returns the user to connect as: the one in the configured connection, else the owner's name.
fn user(config: &Config, owner: Option<(u32, u32)>) -> String {
    let words = config.server.connection.split_whitespace();
    if let Some(user) = words.filter_map(|word| word.strip_prefix("user=")).next_back() {
        return user.trim_matches('\'').to_owned();
    }
    let uid = owner.map_or_else(nix::unistd::geteuid, |(uid, _)| nix::unistd::Uid::from_raw(uid));
    nix::unistd::User::from_uid(uid).ok().flatten().map_or_else(|| "postgres".to_owned(), |user| user.name)
}

/// Returns `port`, or the next one on which nobody listens, neither at its TCP port nor at its socket.
fn free_port_from(options: &StartOptions, port: u16) -> Result<u16> {
    let sockets = start::setting_of_stopped(options, "unix_socket_directories")?;
    let dir = sockets.split(',').next().unwrap_or_default().trim().to_owned();
    for candidate in port..port.saturating_add(1000) {
        let taken = std::net::TcpListener::bind(("127.0.0.1", candidate)).is_err();
        let socket = Path::new(&dir).join(format!(".s.PGSQL.{candidate}"));
        if !taken && (dir.is_empty() || !is_listened_to(&socket)) {
            return Ok(candidate);
        }
    }
    Err(Error::new(Kind::Server, format!("no free port from {port} onward"))
        .with_hint("give one with --port"))
}

/// Returns whether a server may listen there. One that crashed leaves its socket behind, which refuses and which the next server removes.
fn is_listened_to(socket: &Path) -> bool {
    use std::io::ErrorKind;
    match std::os::unix::net::UnixStream::connect(socket) {
        Ok(_) => true,
        Err(error) => !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::ConnectionRefused),
    }
}
