//! The `walden` binary, run as PostgreSQL would run it, and configuration files for it.

use std::fmt::Write as _;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;
use std::time::Duration;

use super::background::Background;
use super::tools::{Finished, run};
use super::user::{self, WorkDir};

/// The longest that a command may take before the test gives up on it.
const LIMIT: Duration = Duration::from_mins(10);

/// Runs `walden` with one configuration file and environment, as the unprivileged user.
#[derive(Debug, Clone, Default)]
pub struct Walden {
    config: Option<PathBuf>,
    env: Vec<(String, String)>,
    dir: Option<PathBuf>,
}

impl Walden {
    /// Returns a runner without a configuration file.
    pub fn bare() -> Self {
        Self::default()
    }

    /// Returns a runner that passes `--config` before the other arguments.
    pub fn new(config: &Path) -> Self {
        Self { config: Some(config.to_owned()), ..Self::default() }
    }

    /// Adds a variable to its environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds several variables, such as a store's credentials.
    #[must_use]
    pub fn envs(mut self, variables: &[(String, String)]) -> Self {
        self.env.extend_from_slice(variables);
        self
    }

    /// Sets the working directory, which is `/` otherwise; PostgreSQL runs its commands in the data directory.
    #[must_use]
    pub fn dir(mut self, dir: &Path) -> Self {
        self.dir = Some(dir.to_owned());
        self
    }

    /// Returns the path of a binary that the unprivileged user can run.
    pub fn binary() -> &'static Path {
        static BINARY: OnceLock<PathBuf> = OnceLock::new();
        BINARY.get_or_init(reachable_binary)
    }

    /// Returns the command line as an `archive_command` or `restore_command` has it.
    pub fn command_line(&self, arguments: &str) -> String {
        let mut line = Self::binary().display().to_string();
        if let Some(config) = &self.config {
            write!(line, " --config {}", config.display()).expect("write to a string");
        }
        format!("{line} {arguments}")
    }

    /// Returns the command, for tests that run it in their own way.
    pub fn command<A: AsRef<std::ffi::OsStr>>(&self, arguments: impl IntoIterator<Item = A>) -> Command {
        let mut command = user::command(Self::binary());
        if let Some(config) = &self.config {
            command.arg("--config").arg(config);
        }
        if let Some(dir) = &self.dir {
            command.current_dir(dir);
        }
        command.args(arguments).envs(self.env.iter().map(|(name, value)| (name, value)));
        command
    }

    /// Runs a command to its end.
    #[track_caller]
    pub fn run(&self, arguments: &[&str]) -> Finished {
        self.spawn(arguments).wait(LIMIT)
    }

    /// Starts a command beside the test.
    #[track_caller]
    pub fn spawn(&self, arguments: &[&str]) -> Background {
        Background::spawn(self.command(arguments))
    }
}

/// A target directory below root's home cannot be reached by the unprivileged user; then the binary is copied once
/// to where it can, and all tests of this build share the copy.
fn reachable_binary() -> PathBuf {
    let built = PathBuf::from(env!("CARGO_BIN_EXE_walden"));
    if run(user::command("test").arg("-x").arg(&built)).code == 0 {
        return built;
    }
    let meta = fs::metadata(&built).expect("the built binary");
    let shared = std::env::temp_dir().join(format!("walden-test-binary-{}", nix::unistd::geteuid()));
    let copy = shared.join(format!("walden-{}-{}-{}", meta.size(), meta.mtime(), meta.mtime_nsec()));
    if !copy.exists() {
        fs::create_dir_all(&shared).expect("create a directory for the binary");
        fs::set_permissions(&shared, fs::Permissions::from_mode(0o755)).expect("set permissions");
        // Copies of former builds; a test that still runs one keeps its file.
        for old in fs::read_dir(&shared).expect("list copies").flatten() {
            let age =
                old.metadata().and_then(|meta| meta.modified()).ok().and_then(|time| time.elapsed().ok());
            if age.is_some_and(|age| age > Duration::from_hours(1)) {
                let _ = fs::remove_file(old.path());
            }
        }
        let new = shared.join(format!("new-{}", std::process::id()));
        fs::copy(&built, &new).expect("copy the binary");
        fs::rename(&new, &copy).expect("rename the binary");
    }
    copy
}

/// Text of a configuration file, put together from the parts that a test needs.
#[derive(Debug, Clone)]
pub struct Config {
    top: String,
    sections: String,
}

impl Config {
    /// Begins a configuration for the cluster `main`.
    pub fn new(data_dir: &Path, state_dir: &Path) -> Self {
        let mut config = Self { top: String::new(), sections: String::new() };
        config.top("cluster", "main");
        config.top("data_dir", &data_dir.display().to_string());
        config.top("state_dir", &state_dir.display().to_string());
        config
    }

    fn top(&mut self, name: &str, value: &str) {
        writeln!(self.top, "{name} = {value:?}").expect("write to a string");
    }

    /// Sets how `walden` connects to the server.
    #[must_use]
    pub fn connection(self, connection: &str) -> Self {
        self.section(&format!("[server]\nconnection = {connection:?}"))
    }

    /// Adds a repository in a directory.
    #[must_use]
    pub fn directory(self, name: &str, directory: &Path) -> Self {
        self.repository(name, &format!("file://{}", directory.display()), "")
    }

    /// Adds a repository in an S3 store.
    #[must_use]
    pub fn s3(self, name: &str, url: &str, endpoint: &str, ca_file: Option<&Path>) -> Self {
        let mut more = format!("endpoint = {endpoint:?}\nregion = \"us-east-1\"\npath_style = true");
        if let Some(file) = ca_file {
            write!(more, "\nca_file = {:?}", file.display().to_string()).expect("write to a string");
        }
        self.repository(name, url, &more)
    }

    /// Adds a repository with further lines of TOML.
    #[must_use]
    pub fn repository(self, name: &str, url: &str, more: &str) -> Self {
        self.section(&format!("[[repository]]\nname = {name:?}\nurl = {url:?}\n{more}"))
    }

    /// Turns encryption off, in the words that the configuration wants for it.
    #[must_use]
    pub fn unencrypted(mut self) -> Self {
        self.top("encryption", "none");
        self
    }

    /// Encrypts for a recipient; an identity file is needed where content is read.
    #[must_use]
    pub fn encrypted(self, recipients: &[&str], identity_file: Option<&Path>) -> Self {
        let mut section = format!("[encryption]\nrecipients = {recipients:?}");
        if let Some(file) = identity_file {
            write!(section, "\nidentity_file = {:?}", file.display().to_string()).expect("write to a string");
        }
        self.section(&section)
    }

    /// Adds lines of TOML with their section header.
    #[must_use]
    pub fn section(mut self, toml: &str) -> Self {
        writeln!(self.sections, "\n{toml}").expect("write to a string");
        self
    }

    /// Returns the text.
    pub fn text(&self) -> String {
        format!("{}{}", self.top, self.sections)
    }

    /// Writes `walden.toml` into a directory; returns its path.
    pub fn write(&self, dir: &WorkDir) -> PathBuf {
        dir.write("walden.toml", self.text())
    }
}
