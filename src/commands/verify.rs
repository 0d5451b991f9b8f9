//! `walden verify`: is what is archived still there and still what it was?

use super::events::moment;
use super::output::{Format, bytes, count, json};
use super::{Global, operation, setup};
use crate::codec::Opener;
use crate::config::{Config, Encryption, parse_duration};
use crate::kind::{Error, Kind, Result};
use crate::postgres::SystemIdentifier;
use crate::progress::Progress;
use crate::repository::Repository;
use crate::upkeep::verify::{Problem, QUESTIONS, Report, RepositoryReport, Request, verify};
use jiff::Timestamp;
use std::fmt::Write as _;
use std::time::Duration;

/// How many problems of a repository the screen shows.
const SHOWN: usize = 50;

/// Verify that what is archived is still there and still what it was
///
/// Lists everything and compares sizes and checksums; no key is needed. With --deep it also decrypts, decompresses and checks
/// every content. What was looked at is remembered, and the next run looks at what is new.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  walden verify\n  walden verify --deep --since '7 days ago'\n  walden verify --repository replica --output json"
)]
pub struct Args {
    /// Decrypt and check every content; needs the identity
    #[arg(long)]
    deep: bool,
    /// Only backups that ended after it and WAL that was stored after it: '2026-11-20 14:30:00+01', '7 days ago'
    #[arg(long, value_name = "TIME")]
    since: Option<String>,
    /// Only this backup and the WAL that it needs
    #[arg(long, value_name = "ID")]
    backup: Option<String>,
    /// Only this repository
    #[arg(long, value_name = "NAME")]
    repository: Option<String>,
    /// Read again what was read before that long (default: verify.reread, 30d)
    #[arg(long, value_name = "DURATION", conflicts_with = "all", value_parser = every)]
    every: Option<Duration>,
    /// Look at everything again, also at what was looked at
    #[arg(long)]
    all: bool,
    /// How many objects are looked at at once (default: archive.parallel to read them, 32 to ask S3 for checksums)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    parallel: Option<u16>,
    /// Text for people or JSON for programs
    #[arg(long, value_enum, default_value = "text")]
    output: Format,
    /// Only this system identifier
    #[arg(long, value_name = "NUMBER")]
    system_identifier: Option<SystemIdentifier>,
}

fn every(text: &str) -> Result<Duration> {
    parse_duration("--every", text)
}

/// Runs the command.
pub fn run(global: &Global, args: &Args) -> Result<()> {
    let config = Config::load(global.config.as_deref())?;
    let repositories = setup::repositories(&config)?;
    if let Some(name) = &args.repository {
        setup::check_name(&repositories, "--repository", name)?;
    }
    let opener = opener(&config, args.deep)?;
    let index = setup::index(&config);
    let now = jiff::Zoned::now();
    let since = args.since.as_deref().map(|text| moment("--since", text, &now)).transpose()?;
    let since = since.and_then(|us| Timestamp::from_microsecond(us).ok());
    let pg_wal = config.data_dir.join("pg_wal");
    let request = Request {
        cluster: &config.cluster,
        repositories: repositories.iter().map(|r| (r, config.retention_of(r.name()))).collect(),
        only: args.repository.as_deref(),
        system_identifier: args.system_identifier,
        current: setup::control_file(&config.data_dir).ok().map(|control| control.system_identifier),
        opener: &opener,
        deep: args.deep,
        since,
        backup: args.backup.as_deref(),
        reread: args.every.unwrap_or(config.reread),
        all: args.all,
        parallel: args.parallel.map_or(config.archive.parallel, usize::from),
        questions: args.parallel.map_or(QUESTIONS, usize::from),
        in_flight: config.archive.deadline,
        busy: setup::backups_in_progress(&config),
        pg_wal: &pg_wal,
        event_rows: config.archive.event_rows,
    };
    operation::run(&config, &index, "verify", &detail(args, &repositories), |details| {
        let progress = Progress::new();
        let report =
            super::progress::while_shown(&progress, "verify", || verify(&request, &index, &progress));
        details.note("problems", report.problems());
        match args.output {
            Format::Json => json(&report)?,
            // That everything is well would be said of nothing.
            Format::Text if lacks_backup(&report, args).is_some() => {}
            Format::Text => print!("{}", text(&report)),
        }
        judge(&report, args)
    })
}

/// Returns what decrypts. Without `--deep` there need be no identity.
fn opener(config: &Config, deep: bool) -> Result<Opener> {
    match setup::opener(config) {
        Ok(opener) if deep && !opener.has_identity() && config.encryption != Encryption::None => {
            Err(Error::config("--deep decrypts, and no identity is configured")
                .with_hint("set encryption.identity_file, or run it on the machine that recovers"))
        }
        Err(error) if !deep => {
            tracing::warn!("{error}");
            Ok(Opener::without_identity())
        }
        opener => opener,
    }
}

fn detail(args: &Args, repositories: &[Repository]) -> String {
    let mut detail = match (&args.repository, repositories) {
        (Some(name), _) => name.clone(),
        (None, [only]) => only.name().to_owned(),
        (None, all) => format!("{} repositories", all.len()),
    };
    if args.deep {
        detail += ", deep";
    }
    if let Some(since) = &args.since {
        let _ = write!(detail, ", since {since}");
    }
    if let Some(backup) = &args.backup {
        let _ = write!(detail, ", backup {backup}");
    }
    detail
}

fn judge(report: &Report, args: &Args) -> Result<()> {
    let problems = report.problems();
    let failed = |text: &str| {
        Error::new(Kind::Repository, format!("not everything could be verified: {text}"))
            .with_hint("the next walden verify goes on with what is left")
    };
    if problems > 0 {
        if let Some(text) = report.failure() {
            tracing::warn!("{}", failed(text));
        }
        let mends = report
            .repositories
            .iter()
            .flat_map(|made| &made.problems)
            .any(|problem| problem.good_in.is_some());
        let error = Error::corrupt(format!("{} found", count(problems as usize, "problem")));
        return Err(if mends {
            error.with_hint("walden sync mends what another repository has")
        } else {
            error
        });
    }
    if let Some(text) = report.failure() {
        return Err(failed(text));
    }
    lacks_backup(report, args).map_or(Ok(()), Err)
}

/// Returns the failure that no repository holds the backup that was asked for, where nothing else is the matter.
fn lacks_backup(report: &Report, args: &Args) -> Option<Error> {
    let id = args.backup.as_ref()?;
    let none = report.problems() == 0
        && report.failure().is_none()
        && report.repositories.iter().all(|made| made.backups == 0);
    none.then(|| Error::usage(format!("no repository holds backup {id}")).with_hint("walden list shows them"))
}

fn text(report: &Report) -> String {
    let mut out = String::new();
    let several = |made: &RepositoryReport| {
        report.repositories.iter().filter(|other| other.name == made.name).count() > 1
    };
    for made in &report.repositories {
        let _ = write!(out, "Repository \"{}\"", made.name);
        if let Some(sysid) = made.system_identifier.filter(|_| several(made)) {
            let _ = write!(out, ", system identifier {sysid}");
        }
        let _ = writeln!(out, ": {}", summary(made));
        for problem in made.problems.iter().take(SHOWN) {
            out += &problem_text(problem);
        }
        let more = made.problem_count.saturating_sub(SHOWN as u64);
        if more > 0 {
            let _ = writeln!(out, "  … and {more} more; --output json shows up to a thousand");
        }
        for failure in &made.failures {
            let _ = writeln!(out, "  NOT VERIFIED: {failure}");
        }
        if made.without_checksum > 0 {
            let objects = count(made.without_checksum as usize, "object");
            let _ =
                writeln!(out, "  The store keeps no CRC-32 of {objects}: only their sizes were compared.");
        }
        for pages in &made.bad_pages {
            let _ =
                writeln!(out, "  Pages with wrong checksums, in the database when it was backed up: {pages}");
        }
    }
    let sum = |of: fn(&RepositoryReport) -> u64| report.repositories.iter().map(of).sum::<u64>();
    let objects = count(sum(|made| made.objects) as usize, "object");
    let _ = writeln!(
        out,
        "Verified {objects}, {}, of which {} were looked at now and {} read, in {:.1} s: {}",
        bytes(sum(|made| made.bytes)),
        sum(|made| made.looked_at),
        bytes(sum(|made| made.bytes_read)),
        report.seconds,
        match (report.problems(), report.failure()) {
            (0, None) => "everything is as it should be".to_owned(),
            (0, Some(_)) => "not everything could be verified".to_owned(),
            (problems, _) => format!("{} found", count(problems as usize, "problem")),
        }
    );
    out
}

fn summary(made: &RepositoryReport) -> String {
    if made.objects == 0 && !made.failures.is_empty() {
        return "not verified".to_owned();
    }
    let word = match made.problem_count {
        0 => "OK".to_owned(),
        problems => count(problems as usize, "problem"),
    };
    let (backups, wal) = (count(made.backups, "backup"), count(made.wal, "WAL object"));
    format!("{word}, {backups}, {wal}, {}", bytes(made.bytes))
}

fn problem_text(problem: &Problem) -> String {
    let word = match problem.good_in {
        Some(_) => "MENDABLE",
        None => "WRONG",
    };
    let mut out = match &problem.key {
        Some(key) => format!("  {word} {key}: {}\n", problem.text),
        None => format!("  {word} {}\n", problem.text),
    };
    for more in [&problem.consequence, &problem.remedy] {
        if !more.is_empty() {
            let _ = writeln!(out, "    {more}");
        }
    }
    out
}
