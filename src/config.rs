//! The configuration file: reading it, checking it, and making from it what the engines take.

mod watch;

use crate::kind::{Error, Result};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::upkeep::notify::Channels;
use crate::upkeep::retention::Policy;
use crate::upkeep::verdict::Thresholds;

/// Where the configuration is looked for when neither `--config` nor `$WALDEN_CONFIG` names it.
pub const DEFAULT_PATH: &str = "/etc/walden/walden.toml";

/// A configuration that was read and checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from, as an absolute path.
    pub path: PathBuf,
    /// The cluster's name in every repository.
    pub cluster: String,
    /// The server's data directory.
    pub data_dir: PathBuf,
    /// Where the index, the spool and log files are.
    pub state_dir: PathBuf,
    /// How to reach the server.
    pub server: Server,
    /// The repositories; the first is the primary.
    pub repositories: Vec<RepositoryConfig>,
    /// Whom to encrypt to.
    pub encryption: Encryption,
    /// How WAL is archived.
    pub archive: Archive,
    /// What `expire` keeps in each repository that has a policy, by the repository's name.
    pub retention: BTreeMap<String, Policy>,
    /// From where on the rules of `status` speak.
    pub status: Thresholds,
    /// Who hears of what happens.
    pub notify: Channels,
    /// `verify.reread = "30d"`: after how long `verify` reads again what it has read and found good. 30 days unless given.
    pub reread: Duration,
}

/// How to reach the server.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Server {
    /// A libpq connection string; empty for the defaults of libpq.
    #[serde(default)]
    pub connection: String,
    /// Where `postgres` and `pg_ctl` are; searched for when not given.
    pub bin_dir: Option<PathBuf>,
}

/// One repository.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RepositoryConfig {
    /// The name used in messages and in `--without`.
    pub name: String,
    /// `s3://bucket/prefix` or `file:///directory`.
    pub url: String,
    /// The region of the bucket.
    pub region: Option<String>,
    /// The URL of a store other than AWS.
    pub endpoint: Option<String>,
    /// Whether the bucket goes into the path instead of the host name.
    #[serde(default)]
    pub path_style: bool,
    /// A file with the certificates of the authority that signed the endpoint's.
    pub ca_file: Option<PathBuf>,
    /// The profile in the AWS configuration files.
    pub profile: Option<String>,
    /// The storage class of new objects.
    pub storage_class: Option<String>,
    /// The key for encryption by the store (SSE-KMS).
    pub kms_key_id: Option<String>,
    /// Tags of new objects.
    #[serde(default)]
    pub tags: BTreeMap<String, String>,
    /// Whether writes carry a checksum that the store verifies; off for stores that refuse it.
    pub checksums: Option<bool>,
    /// Whether writes ask the store to refuse an existing key; off for stores that cannot.
    pub conditional_writes: Option<bool>,
    /// What `expire` keeps here, instead of the `[retention]` for all.
    pub retention: Option<RetentionFile>,
}

/// Whom to encrypt to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Encryption {
    /// Objects are compressed only.
    None,
    /// Objects are encrypted to every recipient.
    Age {
        /// age or SSH recipients.
        recipients: Vec<String>,
        /// The identity to decrypt with; only where recovery is run.
        identity_file: Option<PathBuf>,
    },
}

/// How many repositories must hold a segment before the server hears "archived".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Acknowledge {
    /// That many.
    Count(usize),
    /// Every repository of the configuration.
    All,
}

impl Acknowledge {
    /// Returns the number for `repositories` repositories.
    pub fn count(self, repositories: usize) -> usize {
        match self {
            Self::Count(n) => n,
            Self::All => repositories,
        }
    }
}

/// How WAL is archived.
#[derive(Debug, Clone)]
pub struct Archive {
    /// How many repositories must hold a segment.
    pub acknowledge: Acknowledge,
    /// How many segments are sent at once.
    pub parallel: usize,
    /// How long a transfer may stand still, and how long a segment may be in flight.
    pub deadline: Duration,
    /// How many segments one call may archive besides its own.
    pub look_ahead: usize,
    /// `prefetch = N`: how many segments archive-get keeps ready in the spool in `state_dir` beyond the one that the
    /// server asked for last. 8 unless given, at most 16, and never more than 256 MiB; 0 turns prefetching off.
    pub prefetch: usize,
    /// `event_rows = N`: from how many rows of one table on a transaction that deletes or updates them is noted as an event.
    /// 1000 unless given.
    pub event_rows: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    cluster: String,
    data_dir: PathBuf,
    state_dir: PathBuf,
    #[serde(default)]
    server: Server,
    #[serde(default)]
    repository: Vec<RepositoryConfig>,
    encryption: Option<toml::Value>,
    #[serde(default)]
    archive: ArchiveFile,
    #[serde(default)]
    retention: RetentionFile,
    #[serde(default)]
    status: watch::StatusFile,
    #[serde(default)]
    notify: watch::NotifyFile,
    #[serde(default)]
    verify: VerifyFile,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AgeFile {
    #[serde(default)]
    recipients: Vec<String>,
    identity_file: Option<PathBuf>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct ArchiveFile {
    acknowledge: Option<toml::Value>,
    parallel: Option<usize>,
    deadline: Option<String>,
    look_ahead: Option<usize>,
    prefetch: Option<usize>,
    event_rows: Option<u64>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct VerifyFile {
    reread: Option<String>,
}

/// A retention as it is written.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RetentionFile {
    /// See [`Policy`].
    keep_last: Option<u32>,
    keep_daily: Option<u32>,
    keep_weekly: Option<u32>,
    keep_monthly: Option<u32>,
    keep_yearly: Option<u32>,
    window: Option<String>,
}

/// Returns the path of the configuration: the flag, else `$WALDEN_CONFIG`, else the default.
pub fn path_of(flag: Option<&Path>) -> PathBuf {
    match flag {
        Some(path) => path.to_path_buf(),
        None => std::env::var_os("WALDEN_CONFIG").map_or_else(|| DEFAULT_PATH.into(), PathBuf::from),
    }
}

impl Config {
    /// Reads and checks the configuration. All failures are [`crate::kind::Kind::Config`].
    pub fn load(flag: Option<&Path>) -> Result<Self> {
        let path = path_of(flag);
        let path = std::path::absolute(&path).unwrap_or(path);
        let text = std::fs::read_to_string(&path).map_err(|error| {
            let hint = if error.kind() == std::io::ErrorKind::PermissionDenied {
                "run as the server's user (sudo -u postgres walden …), to whom the file belongs or should belong"
            } else {
                "write one with walden init, or name it with --config or WALDEN_CONFIG"
            };
            Error::config(format!("configuration \"{}\": {error}", path.display())).with_hint(hint)
        })?;
        Self::parse(&text, &path)
            .map_err(|error| error.context(format!("configuration \"{}\"", path.display())))
    }

    /// Parses the text of a configuration that stands at the absolute `path`.
    pub fn parse(text: &str, path: &Path) -> Result<Self> {
        let file: File = toml::from_str(text).map_err(|error| toml_error(text, &error))?;
        let base = path.parent().unwrap_or(Path::new("/"));
        let retention = parse_retentions(&file.retention, &file.repository)?;
        let config = Self {
            path: path.to_path_buf(),
            cluster: check_cluster_name(file.cluster)?,
            data_dir: base.join(file.data_dir),
            state_dir: base.join(file.state_dir),
            server: Server { bin_dir: file.server.bin_dir.map(|dir| base.join(dir)), ..file.server },
            repositories: check_repositories(file.repository, base)?,
            encryption: parse_encryption(file.encryption, base)?,
            archive: parse_archive(&file.archive)?,
            retention,
            status: watch::parse_status(&file.status)?,
            notify: watch::parse_notify(file.notify, base)?,
            reread: parse_duration("verify.reread", file.verify.reread.as_deref().unwrap_or("30d"))?,
        };
        if let Acknowledge::Count(n) = config.archive.acknowledge
            && (n == 0 || n > config.repositories.len())
        {
            let have = config.repositories.len();
            return Err(Error::config(format!(
                "archive.acknowledge = {n} with {have} repositories; it must be between 1 and {have}, or \"all\""
            )));
        }
        Ok(config)
    }

    /// Returns what `expire` keeps in the repository `name`; none: nothing is removed there.
    pub fn retention_of(&self, name: &str) -> Option<Policy> {
        self.retention.get(name).copied()
    }

    /// Returns the directory of this cluster's state.
    pub fn cluster_state_dir(&self) -> PathBuf {
        self.state_dir.join(&self.cluster)
    }

    /// Returns the directory of the spools of prefetched segments, one for each system identifier.
    pub fn spool_dir(&self) -> PathBuf {
        self.cluster_state_dir().join("spool")
    }

    /// Returns the path of the index.
    pub fn index_path(&self) -> PathBuf {
        self.cluster_state_dir().join("index.sqlite")
    }
}

/// Returns the name if it can be a part of a key: letters, digits, `.`, `_`, `-`, not beginning with a dot.
pub fn check_cluster_name(name: String) -> Result<String> {
    let good = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if name.is_empty() || name.len() > 64 || name.starts_with('.') || !name.chars().all(good) {
        return Err(Error::config(format!("\"{name}\" cannot be the name of a cluster"))
            .with_hint("use up to 64 letters, digits, dots, underscores and hyphens"));
    }
    Ok(name)
}

fn check_repositories(mut list: Vec<RepositoryConfig>, base: &Path) -> Result<Vec<RepositoryConfig>> {
    if list.is_empty() {
        return Err(Error::config("no [[repository]] is configured"));
    }
    let mut seen = std::collections::BTreeSet::new();
    for repository in &mut list {
        if repository.name.is_empty() {
            return Err(Error::config("a [[repository]] has an empty name"));
        }
        if !seen.insert(repository.name.clone()) {
            return Err(Error::config(format!("two repositories are named \"{}\"", repository.name)));
        }
        repository.location()?;
        repository.ca_file = repository.ca_file.take().map(|file| base.join(file));
    }
    let mut urls = std::collections::BTreeSet::new();
    for repository in &list {
        if !urls.insert((repository.url.trim_end_matches('/'), &repository.endpoint)) {
            return Err(Error::config(format!("two repositories have the URL \"{}\"", repository.url))
                .with_hint("two names for one place are one copy, not two"));
        }
    }
    Ok(list)
}

/// What a repository's URL says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Location {
    /// A directory, as an absolute path.
    Directory(PathBuf),
    /// A bucket and a prefix without slashes at its ends.
    S3 {
        /// The bucket.
        bucket: String,
        /// The prefix, perhaps empty.
        prefix: String,
    },
}

impl RepositoryConfig {
    /// Returns where the repository is.
    pub fn location(&self) -> Result<Location> {
        let fail = |what: &str| {
            Error::config(format!("repository \"{}\": \"{}\" {what}", self.name, self.url))
                .with_hint("a URL is s3://bucket/prefix or file:///absolute/directory")
        };
        if let Some(path) = self.url.strip_prefix("file://") {
            if !path.starts_with('/') || path.trim_end_matches('/').is_empty() {
                return Err(fail("does not name an absolute directory"));
            }
            return Ok(Location::Directory(PathBuf::from(path.trim_end_matches('/'))));
        }
        if let Some(rest) = self.url.strip_prefix("s3://") {
            let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
            if bucket.is_empty() {
                return Err(fail("names no bucket"));
            }
            return Ok(Location::S3 { bucket: bucket.into(), prefix: prefix.trim_matches('/').into() });
        }
        Err(fail("is not a URL that Walden knows"))
    }
}

fn parse_encryption(value: Option<toml::Value>, base: &Path) -> Result<Encryption> {
    match value {
        None => Err(Error::config("encryption is not configured")
            .with_hint("give [encryption] recipients, or write encryption = \"none\" in words")),
        Some(toml::Value::String(word)) if word == "none" => Ok(Encryption::None),
        Some(toml::Value::String(word)) => {
            Err(Error::config(format!("encryption = \"{word}\": the only word known here is \"none\"")))
        }
        Some(table) => {
            let file: AgeFile = table
                .try_into()
                .map_err(|error: toml::de::Error| toml_error("", &error).context("encryption"))?;
            if file.recipients.is_empty() {
                return Err(Error::config("encryption.recipients is empty"));
            }
            let identity_file = file.identity_file.map(|path| base.join(path));
            Ok(Encryption::Age { recipients: file.recipients, identity_file })
        }
    }
}

fn parse_archive(file: &ArchiveFile) -> Result<Archive> {
    let acknowledge = match &file.acknowledge {
        None => Acknowledge::Count(1),
        Some(toml::Value::String(word)) if word == "all" => Acknowledge::All,
        Some(toml::Value::Integer(n)) if *n >= 0 => {
            Acknowledge::Count(usize::try_from(*n).unwrap_or(usize::MAX))
        }
        Some(other) => {
            return Err(Error::config(format!("archive.acknowledge = {other}: it is a number or \"all\"")));
        }
    };
    let parallel = file.parallel.unwrap_or(4);
    if !(1..=64).contains(&parallel) {
        return Err(Error::config(format!("archive.parallel = {parallel}: it is between 1 and 64")));
    }
    let look_ahead = file.look_ahead.unwrap_or(32);
    if look_ahead > 1000 {
        return Err(Error::config(format!("archive.look_ahead = {look_ahead}: it is at most 1000")));
    }
    let prefetch = file.prefetch.unwrap_or(8);
    if prefetch > 16 {
        return Err(Error::config(format!(
            "archive.prefetch = {prefetch}: it is at most 16, and 0 turns it off"
        )));
    }
    let deadline = parse_duration("archive.deadline", file.deadline.as_deref().unwrap_or("2m"))?;
    let event_rows = file.event_rows.unwrap_or(1000);
    if event_rows == 0 {
        return Err(Error::config("archive.event_rows = 0: it is at least 1"));
    }
    Ok(Archive { acknowledge, parallel, deadline, look_ahead, prefetch, event_rows })
}

/// Returns the policy of each repository that has one: its own, as a whole, or else that for all.
fn parse_retentions(
    for_all: &RetentionFile,
    repositories: &[RepositoryConfig],
) -> Result<BTreeMap<String, Policy>> {
    let for_all = parse_retention("retention", for_all)?;
    let mut policies = BTreeMap::new();
    for repository in repositories {
        let policy = match &repository.retention {
            None => for_all,
            Some(own) => parse_retention(&format!("retention of repository \"{}\"", repository.name), own)?,
        };
        if !policy.is_empty() {
            policies.insert(repository.name.clone(), policy);
        }
    }
    Ok(policies)
}

fn parse_retention(key: &str, file: &RetentionFile) -> Result<Policy> {
    let window = file.window.as_deref().map(|text| parse_duration(&format!("{key}.window"), text));
    Ok(Policy {
        keep_last: file.keep_last,
        keep_daily: file.keep_daily,
        keep_weekly: file.keep_weekly,
        keep_monthly: file.keep_monthly,
        keep_yearly: file.keep_yearly,
        window: window.transpose()?,
    })
}

/// Returns the duration that `text` is, which is at least a second; `key` names it in the error.
pub fn parse_duration(key: &str, text: &str) -> Result<Duration> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= Duration::from_secs(1) => Ok(duration),
        Ok(_) => Err(Error::config(format!("{key} = \"{text}\" is shorter than 1s"))),
        Err(error) => {
            Err(Error::config(format!("{key} = \"{text}\": {error}")).with_hint("write it as 30s, 2m, 1h"))
        }
    }
}

/// Says where the fault is and, for an unknown key, which known one is nearest.
fn toml_error(text: &str, error: &toml::de::Error) -> Error {
    let message = error.message().to_owned();
    let line = error
        .span()
        .filter(|_| !text.is_empty())
        .map(|span| format!("line {}: ", text[..span.start.min(text.len())].matches('\n').count() + 1))
        .unwrap_or_default();
    // The parser does not say which one; what follows the equals sign may be a secret.
    let twice = error.span().filter(|_| message == "duplicate key").and_then(|span| text.get(span));
    if let Some(twice) = twice {
        let key = twice.split('=').next().unwrap_or_default().trim();
        return Error::config(format!("{line}\"{key}\" is there already"))
            .with_hint("a section or a key stands once: put the lines together under one");
    }
    let base = Error::config(format!("{line}{}", message.replace('`', "\"")));
    let mut quoted = message.split('`').skip(1).step_by(2);
    if !message.starts_with("unknown field") {
        return base;
    }
    let Some(wrong) = quoted.next() else { return base };
    let nearest =
        quoted.max_by(|a, b| strsim::jaro_winkler(a, wrong).total_cmp(&strsim::jaro_winkler(b, wrong)));
    let base = Error::config(format!("{line}unknown key \"{wrong}\""));
    match nearest {
        Some(known) => base.with_hint(format!("the nearest known key is \"{known}\"")),
        None => base,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
cluster = "main"
data_dir = "/var/lib/postgresql/17/main"
state_dir = "state"
[[repository]]
name = "primary"
url = "s3://acme-wal/prod/"
[[repository]]
name = "replica"
url = "file:///srv/walden"
[encryption]
recipients = ["age1qqqq"]
identity_file = "identity.txt"
"#;

    fn parse(text: &str) -> Result<Config> {
        Config::parse(text, Path::new("/etc/walden/walden.toml"))
    }

    #[test]
    fn what_stands_twice_is_named_without_its_value() {
        let again = |text: &str| parse(&format!("{GOOD}{text}")).unwrap_err().to_string();
        let line = GOOD.lines().count() + 2;
        let section = again("[archive]\n[archive]\n");
        assert!(section.contains(&format!("line {line}: \"archive\" is there already")), "{section}");
        let key = again("[notify]\nwebhook = \"a-secret\"\nwebhook = \"a-secret\"\n");
        assert!(key.contains("\"webhook\" is there already") && !key.contains("secret"), "{key}");
    }

    #[test]
    fn relative_paths_resolve_against_the_file() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.state_dir, Path::new("/etc/walden/state"));
        let Encryption::Age { identity_file, .. } = &config.encryption else { panic!() };
        assert_eq!(identity_file.as_deref(), Some(Path::new("/etc/walden/identity.txt")));
        assert_eq!(
            config.repositories[0].location().unwrap(),
            Location::S3 { bucket: "acme-wal".into(), prefix: "prod".into() }
        );
        assert_eq!(config.archive.deadline, Duration::from_secs(120));
    }

    #[test]
    fn an_unknown_key_is_an_error_with_the_nearest_known_one() {
        let error = parse(&GOOD.replace("state_dir", "sate_dir")).unwrap_err().to_string();
        assert!(
            error.contains("line 4: unknown key \"sate_dir\"") && error.contains("\"state_dir\""),
            "{error}"
        );
        let error = parse(&GOOD.replace("recipients", "recipient")).unwrap_err().to_string();
        assert!(error.contains("nearest known key is \"recipients\""), "{error}");
    }

    #[test]
    fn what_cannot_work_is_refused_in_one_line() {
        for (from, to, says) in [
            ("\"main\"", "\"a/b\"", "cannot be the name"),
            ("\"replica\"", "\"primary\"", "two repositories are named"),
            ("file:///srv/walden", "file://srv", "absolute directory"),
            ("file:///srv/walden", "ftp://x/y", "is not a URL"),
            ("file:///srv/walden", "s3://acme-wal/prod", "two repositories have the URL"),
            ("[encryption]", "[archive]\nacknowledge = 3\n[encryption]", "acknowledge = 3"),
            ("[encryption]", "[archive]\nprefetch = 17\n[encryption]", "archive.prefetch"),
            ("[encryption]", "[archive]\nevent_rows = 0\n[encryption]", "archive.event_rows"),
            ("[encryption]", "[verify]\nreread = \"soon\"\n[encryption]", "verify.reread"),
            ("[encryption]", "[archive]\ndeadline = \"soon\"\n[encryption]", "archive.deadline"),
            ("recipients = [\"age1qqqq\"]", "recipients = []", "recipients is empty"),
        ] {
            let error = parse(&GOOD.replace(from, to)).unwrap_err();
            assert_eq!(error.kind(), crate::kind::Kind::Config);
            assert!(error.to_string().contains(says) && !error.to_string().contains('\n'), "{error}");
        }
        let none = GOOD.split("[encryption]").next().unwrap();
        assert!(parse(none).unwrap_err().to_string().contains("encryption is not configured"));
        let off = none.replace("cluster =", "encryption = \"none\"\ncluster =");
        assert_eq!(parse(&off).unwrap().encryption, Encryption::None);
    }
}
