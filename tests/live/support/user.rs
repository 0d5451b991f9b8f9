//! The unprivileged user that runs servers and `walden`, and directories that belong to it.
//!
//! PostgreSQL refuses to run as root. As root, commands drop to `postgres`, else to `nobody`; as anybody else they
//! run as they are.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use nix::unistd::{User, geteuid};

/// Returns the user to drop to; none when not running as root.
pub fn unprivileged() -> Option<&'static User> {
    static USER: OnceLock<Option<User>> = OnceLock::new();
    USER.get_or_init(|| {
        if !geteuid().is_root() {
            return None;
        }
        let find = |name| User::from_name(name).expect("read the user database");
        Some(find("postgres").or_else(|| find("nobody")).expect("a user postgres or nobody"))
    })
    .as_ref()
}

/// Returns a command that runs as the unprivileged user, in `/`, without PostgreSQL's or AWS's settings from outside.
pub fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir("/");
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy();
        if name.starts_with("PG") || name.starts_with("AWS_") || name.starts_with("WALDEN_") {
            command.env_remove(&*name);
        }
    }
    // Messages are compared, so they have to be in one language.
    command.env("LC_ALL", "C.UTF-8").env("HOME", std::env::temp_dir());
    if let Some(user) = unprivileged() {
        // Setting the uid as root also clears the supplementary groups.
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("USER", &user.name);
    }
    command
}

/// Gives a file or directory to the unprivileged user.
pub fn give(path: &Path) {
    if let Some(user) = unprivileged() {
        chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
            .unwrap_or_else(|error| panic!("chown {}: {error}", path.display()));
    }
}

/// Gives a directory and everything in it to the unprivileged user. Links are not followed.
pub fn give_tree(path: &Path) {
    give(path);
    for entry in fs::read_dir(path).unwrap_or_else(|error| panic!("read {}: {error}", path.display())) {
        let entry = entry.expect("read directory");
        let kind = entry.file_type().expect("file type");
        if kind.is_dir() {
            give_tree(&entry.path());
        } else if kind.is_file() {
            give(&entry.path());
        }
    }
}

/// A temporary directory of the unprivileged user. Dropping it removes it, unless `WALDEN_TEST_KEEP` is set.
#[derive(Debug)]
pub struct WorkDir {
    path: PathBuf,
}

impl WorkDir {
    /// Creates a directory below `WALDEN_TEST_TMP`, else the system's temporary directory.
    pub fn new() -> Self {
        let base = std::env::var_os("WALDEN_TEST_TMP").map_or_else(std::env::temp_dir, PathBuf::from);
        Self::below(&base)
    }

    /// Creates a directory in `/tmp`, whose path is short enough for a socket in it (107 bytes).
    pub fn short() -> Self {
        Self::below(Path::new("/tmp"))
    }

    fn below(base: &Path) -> Self {
        let path =
            tempfile::Builder::new().prefix("wt-").tempdir_in(base).expect("create a directory").keep();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("set permissions");
        give(&path);
        Self { path }
    }

    /// Returns the directory's path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the path of something in the directory.
    pub fn join(&self, name: impl AsRef<Path>) -> PathBuf {
        self.path.join(name)
    }

    /// Creates a directory inside, for the unprivileged user alone; returns its path.
    pub fn create_dir(&self, name: impl AsRef<Path>) -> PathBuf {
        let path = self.path.join(name);
        fs::create_dir(&path).unwrap_or_else(|error| panic!("create {}: {error}", path.display()));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o700)).expect("set permissions");
        give(&path);
        path
    }

    /// Writes a file inside, owned by the unprivileged user; returns its path.
    pub fn write(&self, name: impl AsRef<Path>, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path.join(name);
        fs::write(&path, content).unwrap_or_else(|error| panic!("write {}: {error}", path.display()));
        give(&path);
        path
    }
}

impl Drop for WorkDir {
    fn drop(&mut self) {
        if std::env::var_os("WALDEN_TEST_KEEP").is_some() {
            eprintln!("kept: {}", self.path.display());
        } else if let Err(error) = fs::remove_dir_all(&self.path) {
            eprintln!("could not remove {}: {error}", self.path.display());
        }
    }
}
