//! The demo's directory and what runs in it; all of it is gone at the end, however the demo ends.
//!
//! Commands run one at a time, each in a process group of its own: when the demo is told to end, it ends them itself
//! and only then looks for servers, so that none is started behind its back.

use crate::commands::setup::shell_word;
use crate::durable;
use crate::kind::{Context, Error, Kind, Result};
use crate::shutdown;
use nix::sys::signal::{Signal, kill, killpg};
use nix::unistd::{Pid, User, geteuid};
use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a command may take to end when it is told to.
const COMMAND_LIMIT: Duration = Duration::from_secs(5);
/// How long the servers may take to stop; then they are killed.
const SERVER_LIMIT: Duration = Duration::from_secs(20);
/// How often it is looked whether something has ended.
const POLL: Duration = Duration::from_millis(10);
/// The longest directory whose sockets still have a path that the kernel takes (107 bytes; unix(7)).
const LONGEST_DIR: usize = 90;

/// What a command left behind.
#[derive(Debug)]
pub struct Ended {
    /// Its exit code; 128 plus the number when a signal ended it, as a shell has it.
    pub code: i32,
    output: Vec<String>,
}

impl Ended {
    /// Returns the line of its output that tells most about a failure.
    pub fn said(&self) -> Option<&str> {
        last_error(&self.output)
    }
}

/// The directory, the user, and what is running.
pub struct Stage {
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    bin_dir: PathBuf,
    /// Whom to run everything as, where this process is root.
    user: Option<User>,
    keep: bool,
    running: Mutex<Running>,
}

#[derive(Default)]
struct Running {
    child: Option<Child>,
    over: Option<Over>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Over {
    /// The demo came to its end, or failed.
    Ended,
    /// The process was told to end.
    Signalled,
}

impl Stage {
    /// Makes the directory, which belongs to an unprivileged user, and makes this program known there as `walden`.
    pub fn new(bin_dir: &Path, keep: bool) -> Result<Self> {
        let user = unprivileged()?;
        let dir = make_dir(user.as_ref())?;
        let shared = Arc::new(Shared {
            dir,
            bin_dir: bin_dir.to_path_buf(),
            user,
            keep,
            running: Mutex::new(Running::default()),
        });
        let stage = Self { shared: Arc::clone(&shared) };
        shutdown::before_dying(move || {
            eprintln!("LOG: interrupted: {}", shared.what_clearing_does());
            if let Err(error) = shared.clear(Over::Signalled) {
                eprintln!("ERROR: {error}");
            }
        });
        stage.install_program()?;
        Ok(stage)
    }

    /// Returns the directory.
    pub fn dir(&self) -> &Path {
        &self.shared.dir
    }

    /// Returns whether the directory stays.
    pub fn keeps(&self) -> bool {
        self.shared.keep
    }

    /// Returns the name of the user that everything runs as, where that is not this process's.
    pub fn user(&self) -> Option<&str> {
        self.shared.user.as_ref().map(|user| user.name.as_str())
    }

    /// Returns the command line that sets a shell up as the commands of the demo have it.
    pub fn exports(&self) -> String {
        let programs = shell_word(&self.shared.bin_dir.to_string_lossy());
        format!("export WALDEN_CONFIG=$PWD/walden.toml PATH=$PWD/bin:{programs}:$PATH")
    }

    /// Returns the server's version in its own words: `17.10`.
    pub fn server_version(&self) -> Result<String> {
        let output = Command::new(self.shared.bin_dir.join("postgres"))
            .arg("--version")
            .output()
            .kind(Kind::Server, "run postgres")?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        Ok(text.split_whitespace().nth(2).unwrap_or("of an unknown version").to_owned())
    }

    /// Runs a command line in the directory to its end, and hands over each line of its output as it comes.
    pub fn run(&self, line: &str, show: &mut dyn FnMut(&str) -> Result<()>) -> Result<Ended> {
        let (reader, writer) = std::io::pipe().context("make a pipe")?;
        let mut command = self.shared.command("/bin/sh");
        command.args(["-c", line]).process_group(0).stdin(Stdio::null());
        command.stdout(writer.try_clone().context("make a pipe")?).stderr(writer);
        {
            let mut running = self.shared.not_over();
            running.child = Some(command.spawn().kind(Kind::Server, "run /bin/sh")?);
        }
        // Its ends of the pipe would keep the output from ending.
        drop(command);
        let mut output = Vec::new();
        for line in BufReader::new(reader).split(b'\n') {
            let line = String::from_utf8_lossy(&line.context("read output")?).trim_end().to_owned();
            show(&line)?;
            output.push(line);
        }
        loop {
            let mut running = self.shared.not_over();
            let child = running.child.as_mut().ok_or_else(|| Error::other("the command is gone"))?;
            if let Some(status) = child.try_wait().context("wait for a command")? {
                running.child = None;
                return Ok(Ended { code: code_of(status), output });
            }
            drop(running);
            std::thread::sleep(POLL);
        }
    }

    /// Returns the last line of a log in the directory that tells of an error, else its last one.
    pub fn last_error_of(&self, log: &str) -> Option<String> {
        let bytes = std::fs::read(self.shared.dir.join(log)).ok()?;
        let lines: Vec<String> = String::from_utf8_lossy(&bytes).lines().map(str::to_owned).collect();
        last_error(&lines).map(str::to_owned)
    }

    /// Stops what runs and removes the directory, unless it is to be kept.
    pub fn clear(&self) -> Result<()> {
        self.shared.clear(Over::Ended)
    }

    /// Links this program into the directory; where the user cannot execute it, as below root's home, copies it.
    fn install_program(&self) -> Result<()> {
        let program = std::env::current_exe().context("find this program")?;
        let bin = self.shared.dir.join("bin");
        std::fs::create_dir(&bin).map_err(durable::at(&bin)).context("create directory")?;
        give(&bin, self.shared.user.as_ref())?;
        let walden = bin.join("walden");
        let mut probe = self.shared.command(&program);
        let probe =
            probe.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        if probe.is_ok_and(|status| status.success()) {
            return std::os::unix::fs::symlink(&program, &walden)
                .map_err(durable::at(&walden))
                .context("link this program");
        }
        std::fs::copy(&program, &walden).map_err(durable::at(&walden)).context("copy this program")?;
        std::fs::set_permissions(&walden, PermissionsExt::from_mode(0o755)).context("set permissions")
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = self.shared.clear(Over::Ended);
    }
}

impl Shared {
    /// Returns a command in the directory, as its user, with the demo's surroundings instead of the caller's.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = in_dir(program, &self.dir, self.user.as_ref());
        let path = std::env::var_os("PATH").unwrap_or_else(|| "/usr/bin:/bin".into());
        let dirs = [self.dir.join("bin"), self.bin_dir.clone()];
        let path = std::env::join_paths(dirs.into_iter().chain(std::env::split_paths(&path)));
        if let Ok(path) = path {
            command.env("PATH", path);
        }
        command.env("WALDEN_CONFIG", self.dir.join("walden.toml"));
        command
    }

    fn lock(&self) -> MutexGuard<'_, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns what runs. Never returns once the process was told to end: it is about to.
    fn not_over(&self) -> MutexGuard<'_, Running> {
        let running = self.lock();
        if running.over == Some(Over::Signalled) {
            drop(running);
            wait_for_death();
        }
        running
    }

    fn what_clearing_does(&self) -> String {
        if self.keep {
            format!("stopping the servers; the directory {} is kept", self.dir.display())
        } else {
            format!("stopping the servers and removing {}", self.dir.display())
        }
    }

    /// Stops what runs and removes the directory unless it is kept. The second caller waits for the first.
    fn clear(&self, why: Over) -> Result<()> {
        let mut running = self.lock();
        match (running.over, why) {
            (Some(Over::Signalled), _) => {
                drop(running);
                wait_for_death();
            }
            (Some(Over::Ended), _) => return Ok(()),
            (None, _) => running.over = Some(why),
        }
        if let Some(child) = running.child.take() {
            end_command(child);
        }
        let stopped = self.stop_servers();
        if !self.keep {
            remove(&self.dir)?;
        }
        stopped
    }

    /// Stops every server of the directory. One that has only just been started has no postmaster.pid yet: it is
    /// waited for.
    fn stop_servers(&self) -> Result<()> {
        // What is thrown away need not be written back.
        let signal = if self.keep { Signal::SIGINT } else { Signal::SIGQUIT };
        let mut told = BTreeSet::new();
        let began = Instant::now();
        loop {
            let processes = server_processes(&self.dir);
            if processes.is_empty() {
                return Ok(());
            }
            if began.elapsed() > SERVER_LIMIT {
                for pid in processes {
                    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
                }
                return Err(Error::new(Kind::Server, "a server did not stop and was killed"));
            }
            for pid in postmasters(&self.dir).into_iter().filter(|pid| processes.contains(pid)) {
                if told.insert(pid) {
                    let _ = kill(Pid::from_raw(pid), signal);
                }
            }
            std::thread::sleep(POLL);
        }
    }
}

/// The thread that got the signal ends the process.
fn wait_for_death() -> ! {
    loop {
        std::thread::park();
    }
}

/// Ends a command and what it has started.
fn end_command(mut child: Child) {
    let group = Pid::from_raw(child.id().cast_signed());
    let _ = killpg(group, Signal::SIGTERM);
    let began = Instant::now();
    while matches!(child.try_wait(), Ok(None)) {
        if began.elapsed() > COMMAND_LIMIT {
            let _ = killpg(group, Signal::SIGKILL);
            let _ = child.wait();
            return;
        }
        std::thread::sleep(POLL);
    }
    // What is left of its group, should it have ended before its own children.
    let _ = killpg(group, Signal::SIGKILL);
}

/// Returns the processes named postgres that work in `dir` or were started with a path below it.
fn server_processes(dir: &Path) -> BTreeSet<i32> {
    let belongs = |process: &Path| {
        let name = std::fs::read(process.join("comm")).unwrap_or_default();
        if name.trim_ascii_end() != b"postgres" {
            return false;
        }
        let works_there = std::fs::read_link(process.join("cwd")).is_ok_and(|cwd| cwd.starts_with(dir));
        let arguments = std::fs::read(process.join("cmdline")).unwrap_or_default();
        works_there
            || arguments
                .split(|byte| *byte == 0)
                .any(|argument| Path::new(&*String::from_utf8_lossy(argument)).starts_with(dir))
    };
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let pid = entry.file_name().to_str()?.parse().ok()?;
            belongs(&entry.path()).then_some(pid)
        })
        .collect()
}

/// Returns the servers' process ids from the files that they write.
fn postmasters(dir: &Path) -> Vec<i32> {
    ["data", "restored"]
        .iter()
        .filter_map(|name| std::fs::read_to_string(dir.join(name).join("postmaster.pid")).ok())
        .filter_map(|text| text.lines().next()?.trim().parse().ok())
        .collect()
}

/// Removes the directory. An archive command that outlived its server may still write: it is tried again.
fn remove(dir: &Path) -> Result<()> {
    for _ in 0..100 {
        match std::fs::remove_dir_all(dir) {
            Ok(()) => return Ok(()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
            Err(_) => std::thread::sleep(POLL),
        }
    }
    std::fs::remove_dir_all(dir).map_err(durable::at(dir)).context("remove directory")
}

/// Returns the user to drop to where this process is root, as which no server runs.
fn unprivileged() -> Result<Option<User>> {
    if !geteuid().is_root() {
        return Ok(None);
    }
    for name in ["postgres", "nobody"] {
        if let Some(user) = User::from_name(name).context("look up a user")? {
            return Ok(Some(user));
        }
    }
    Err(Error::new(
        Kind::Server,
        "PostgreSQL does not run as root, and there is no user postgres or nobody to run it",
    )
    .with_hint("run the demo as an ordinary user"))
}

/// Makes the directory: in the temporary directory if the user can work there and the path is short enough for
/// sockets, else in `/tmp`.
fn make_dir(user: Option<&User>) -> Result<PathBuf> {
    let mut problem = None;
    for base in [std::env::temp_dir(), PathBuf::from("/tmp")] {
        match make_dir_in(&base, user) {
            Ok(dir) => return Ok(dir),
            Err(error) => problem = problem.or(Some(error)),
        }
    }
    Err(problem.unwrap_or_else(|| Error::other("no temporary directory")))
}

fn make_dir_in(base: &Path, user: Option<&User>) -> Result<PathBuf> {
    let base = base.canonicalize().map_err(durable::at(base)).context("temporary directory")?;
    let unusable = |why: &str| Error::other(format!("temporary directory \"{}\": {why}", base.display()));
    // The path stands in settings, connection strings and command lines, and must mean the same in all of them.
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"/._-".contains(&byte);
    if !base.as_os_str().as_encoded_bytes().iter().all(|byte| plain(*byte)) {
        return Err(unusable("its name needs quoting"));
    }
    let dir = tempfile::Builder::new()
        .prefix("walden-demo-")
        .tempdir_in(&base)
        .map_err(durable::at(&base))
        .context("create directory")?;
    if dir.path().as_os_str().len() > LONGEST_DIR {
        return Err(unusable("its path is too long for sockets"));
    }
    // The servers trust whoever gets at their sockets, and the key lies here.
    std::fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o700)).context("set permissions")?;
    give(dir.path(), user)?;
    let works = in_dir("/bin/sh", dir.path(), user).args(["-c", "test -w ."]).status();
    if !works.is_ok_and(|status| status.success()) {
        return Err(unusable("the server's user cannot work in it"));
    }
    Ok(dir.keep())
}

fn give(path: &Path, user: Option<&User>) -> Result<()> {
    let Some(user) = user else { return Ok(()) };
    std::os::unix::fs::chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw()))
        .map_err(durable::at(path))
        .context("chown")
}

/// Returns a command as `user` in `dir`, without settings of PostgreSQL's, AWS's or Walden's from outside.
fn in_dir(program: impl AsRef<std::ffi::OsStr>, dir: &Path, user: Option<&User>) -> Command {
    let mut command = Command::new(program);
    for (name, _) in std::env::vars_os() {
        let bytes = name.as_encoded_bytes();
        if [&b"PG"[..], b"AWS_", b"WALDEN_"].iter().any(|prefix| bytes.starts_with(prefix)) {
            command.env_remove(&name);
        }
    }
    command.current_dir(dir).env("LC_ALL", "C");
    if let Some(user) = user {
        // Where this process is root, this clears the supplementary groups too.
        command.uid(user.uid.as_raw()).gid(user.gid.as_raw());
        command.env("HOME", dir).env("USER", &user.name).env("LOGNAME", &user.name);
    }
    command
}

fn code_of(status: ExitStatus) -> i32 {
    status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1)
}

fn last_error(lines: &[String]) -> Option<&str> {
    let tells = |line: &&String| ["ERROR:", "FATAL:", "PANIC:"].iter().any(|level| line.contains(level));
    let line =
        lines.iter().rev().find(tells).or_else(|| lines.iter().rev().find(|line| !line.trim().is_empty()))?;
    Some(line.strip_prefix("ERROR: ").unwrap_or(line).trim())
}
