//! A throwaway PostgreSQL cluster: made by initdb, run as the unprivileged user, removed at the end.

use std::fmt::Write as _;
use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::background::Background;
use super::postgres::{Installation, Postgres};
use super::session::Session;
use super::tools::{self, Finished, run};
use super::user::{self, WorkDir};
use super::{PATIENCE, free_port, wait_for};

/// How a cluster is made. `ClusterOptions::default()` has 16 MB segments and page checksums.
#[derive(Debug, Clone)]
pub struct ClusterOptions {
    /// Megabytes, as initdb's `--wal-segsize` wants them.
    pub wal_segment_size_mb: u32,
    pub checksums: bool,
    pub initdb_args: Vec<String>,
    /// Settings for postgresql.conf; they win over the ones that [`Cluster::create`] writes.
    pub settings: Vec<(String, String)>,
    /// Environment of the server, and so of `archive_command`.
    pub env: Vec<(String, String)>,
}

impl Default for ClusterOptions {
    fn default() -> Self {
        Self { wal_segment_size_mb: 16, checksums: true, initdb_args: vec![], settings: vec![], env: vec![] }
    }
}

impl ClusterOptions {
    /// Adds a setting for postgresql.conf; the value is quoted here.
    #[must_use]
    pub fn setting(mut self, name: &str, value: impl ToString) -> Self {
        self.settings.push((name.to_owned(), value.to_string()));
        self
    }

    /// Adds a variable to the server's environment.
    #[must_use]
    pub fn env(mut self, name: &str, value: impl ToString) -> Self {
        self.env.push((name.to_owned(), value.to_string()));
        self
    }

    /// Sets the size of a WAL segment, in megabytes.
    #[must_use]
    pub fn wal_segment_size_mb(mut self, megabytes: u32) -> Self {
        self.wal_segment_size_mb = megabytes;
        self
    }
}

/// How a server is told to stop, after pg_ctl's modes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    Smart,
    Fast,
    Immediate,
}

/// A cluster in a directory, with its server running or not. Dropping it stops the server and removes the directory.
#[derive(Debug)]
pub struct Cluster {
    pub installation: Installation,
    data_dir: PathBuf,
    log_file: PathBuf,
    port: u16,
    socket_dir: PathBuf,
    env: Vec<(String, String)>,
    /// Given on the command line, where they win over every file.
    overrides: Vec<String>,
    /// The server, unless another program started it.
    child: Option<Child>,
    socket: Option<WorkDir>,
    work: WorkDir,
}

impl Cluster {
    /// Makes a cluster with initdb. The server is not started.
    #[track_caller]
    pub fn create(installation: &Installation, options: &ClusterOptions) -> Self {
        let mut cluster = Self::bare(installation);
        cluster.env.clone_from(&options.env);
        let mut initdb = user::command(installation.program("initdb"));
        initdb.arg("-D").arg(&cluster.data_dir).args(["-U", "postgres", "-A", "trust", "-E", "UTF8"]);
        // The directory is new and dies with the test; what the server writes later is synced as usual.
        initdb.args(["--locale=C", "--no-sync", &format!("--wal-segsize={}", options.wal_segment_size_mb)]);
        if options.checksums {
            initdb.arg("--data-checksums");
        } else if installation.major >= 18 {
            initdb.arg("--no-data-checksums");
        }
        run(initdb.args(&options.initdb_args)).ok();

        let mut lines = String::from("\n# Live tests\n");
        let mut line = |name: &str, value: &str| {
            writeln!(lines, "{name} = '{}'", value.replace('\'', "''")).expect("write to a string");
        };
        line("listen_addresses", "127.0.0.1");
        line("port", &cluster.port.to_string());
        line("unix_socket_directories", &cluster.socket_dir.to_string_lossy());
        line("wal_level", "replica");
        line("max_wal_senders", "10");
        line("shared_buffers", "64MB");
        line("log_line_prefix", "%m [%p] ");
        line("log_checkpoints", "off");
        line("track_commit_timestamp", "on");
        for (name, value) in &options.settings {
            line(name, value);
        }
        cluster.append_config(&lines);
        cluster
    }

    /// Makes a cluster and starts its server.
    #[track_caller]
    pub fn start_new(installation: &Installation, options: &ClusterOptions) -> Self {
        let mut cluster = Self::create(installation, options);
        cluster.start();
        cluster
    }

    /// Runs a server on a directory that is there already, such as a restored one. The server is not started.
    ///
    /// Port and socket are given on the command line, so that the original may run at the same time. The directory
    /// is not removed at the end; it belongs to whoever made it.
    #[track_caller]
    pub fn open(installation: &Installation, data_dir: &Path) -> Self {
        let mut cluster = Self::bare(installation);
        data_dir.clone_into(&mut cluster.data_dir);
        let socket = cluster.socket_dir.display().to_string();
        cluster.overrides = vec![
            format!("port={}", cluster.port),
            format!("unix_socket_directories={socket}"),
            "listen_addresses=127.0.0.1".to_owned(),
            "logging_collector=off".to_owned(),
        ];
        cluster
    }

    /// Makes the server take its configuration from a file outside the data directory, as Debian's packages do.
    pub fn config_file(&mut self, path: &Path) {
        self.overrides.push(format!("config_file={}", path.display()));
    }

    /// Takes over a running server that another program started (`walden recover --start`).
    #[track_caller]
    pub fn adopt(installation: &Installation, data_dir: &Path) -> Self {
        let mut cluster = Self::bare(installation);
        data_dir.clone_into(&mut cluster.data_dir);
        let lines = cluster.pid_file().expect("postmaster.pid of a running server");
        cluster.port = lines.get(3).and_then(|line| line.parse().ok()).expect("port in postmaster.pid");
        cluster.socket_dir = PathBuf::from(lines.get(4).expect("socket directory in postmaster.pid"));
        cluster.socket = None;
        cluster
    }

    fn bare(installation: &Installation) -> Self {
        let work = WorkDir::new();
        let socket = WorkDir::short();
        Self {
            installation: installation.clone(),
            data_dir: work.join("data"),
            log_file: work.write("server.log", ""),
            port: free_port(),
            socket_dir: socket.path().to_owned(),
            env: vec![],
            overrides: vec![],
            child: None,
            socket: Some(socket),
            work,
        }
    }

    pub fn data_dir(&self) -> &Path {
        &self.data_dir
    }

    pub fn port(&self) -> u16 {
        self.port
    }

    pub fn socket_dir(&self) -> &Path {
        &self.socket_dir
    }

    /// Returns the temporary directory in which the cluster lives, for files that go with it.
    pub fn work(&self) -> &WorkDir {
        &self.work
    }

    /// Returns a libpq connection string for the superuser over the Unix socket.
    pub fn connection_string(&self) -> String {
        format!("host={} port={} user=postgres dbname=postgres", self.socket_dir.display(), self.port)
    }

    /// Sets a variable of the server's environment; it holds from the next start.
    pub fn env(&mut self, name: &str, value: impl ToString) {
        self.env.push((name.to_owned(), value.to_string()));
    }

    /// Appends lines to postgresql.conf; they hold from the next start or reload.
    #[track_caller]
    pub fn append_config(&self, lines: &str) {
        let path = self.data_dir.join("postgresql.conf");
        let mut file = fs::OpenOptions::new().append(true).open(&path).expect("open postgresql.conf");
        file.write_all(lines.as_bytes()).expect("write postgresql.conf");
    }

    /// Starts the server and waits until it accepts connections; panics with its log when it does not.
    #[track_caller]
    pub fn start(&mut self) {
        if let Err(log) = self.try_start() {
            panic!("the server did not start; its log ends:\n{log}");
        }
    }

    /// Starts the server; returns the end of its log when it stops instead of accepting connections.
    #[track_caller]
    pub fn try_start(&mut self) -> Result<(), String> {
        for _ in 0..10 {
            let before = self.log().len();
            self.launch();
            let mut ended = false;
            let up = wait_for(PATIENCE, || {
                ended = !self.is_running();
                ended || self.accepts_connections()
            });
            if up && !ended {
                return Ok(());
            }
            assert!(ended, "the server is not up after {PATIENCE:?}; its log ends:\n{}", self.log_tail());
            let log = self.log();
            let said = |words: &str| log.get(before..).is_some_and(|log| log.contains(words));
            if said("could not bind IPv4") {
                // Another test has taken the port meanwhile.
                self.move_to_another_port();
            } else if said("is still in use") {
                // Processes of a server that was killed are still about to notice.
                std::thread::sleep(Duration::from_millis(200));
            } else {
                break;
            }
        }
        Err(self.log_tail())
    }

    fn move_to_another_port(&mut self) {
        self.port = free_port();
        if self.overrides.is_empty() {
            self.append_config(&format!("port = {}\n", self.port));
        } else {
            self.overrides.push(format!("port={}", self.port));
        }
    }

    /// Starts the server without waiting for anything.
    #[track_caller]
    pub fn launch(&mut self) {
        assert!(self.child.is_none() || !self.is_running(), "the server runs already");
        // A file from before a crash would look like the new server's.
        let log = fs::OpenOptions::new().append(true).open(&self.log_file).expect("open server.log");
        let mut command = user::command(self.installation.program("postgres"));
        command.arg("-D").arg(&self.data_dir);
        for setting in &self.overrides {
            command.arg("-c").arg(setting);
        }
        // Run directly and not by pg_ctl, so that a test runner that kills this process group takes the server along.
        command.envs(self.env.iter().map(|(name, value)| (name, value)));
        command.stdin(Stdio::null()).stdout(log.try_clone().expect("log")).stderr(log);
        self.child = Some(command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}")));
    }

    fn pid_file(&self) -> Option<Vec<String>> {
        let text = fs::read_to_string(self.data_dir.join("postmaster.pid")).ok()?;
        Some(text.lines().map(|line| line.trim().to_owned()).collect())
    }

    /// Returns the postmaster's process id when postmaster.pid names one that is alive.
    pub fn pid(&self) -> Option<i32> {
        let pid = self.pid_file()?.first()?.parse().ok()?;
        is_alive(pid).then_some(pid)
    }

    /// Returns whether the server process is there.
    pub fn is_running(&mut self) -> bool {
        if let Some(child) = &mut self.child {
            if child.try_wait().expect("wait for the server").is_none() {
                return true;
            }
            self.child = None;
            return false;
        }
        self.pid().is_some()
    }

    /// Returns whether the server has reported that it is ready, as pg_ctl reads it; a hot standby counts.
    pub fn accepts_connections(&self) -> bool {
        let own = self.child.as_ref().map(|child| child.id().to_string());
        self.pid_file().is_some_and(|lines| {
            own.is_none_or(|pid| lines.first() == Some(&pid))
                && lines.get(7).is_some_and(|status| status == "ready" || status == "standby")
        })
    }

    /// Stops the server and waits for its end.
    #[track_caller]
    pub fn stop(&mut self, mode: Stop) {
        let signal = match mode {
            Stop::Smart => Signal::SIGTERM,
            Stop::Fast => Signal::SIGINT,
            Stop::Immediate => Signal::SIGQUIT,
        };
        self.end(signal);
    }

    /// Kills the postmaster with SIGKILL, as the kernel would when memory runs out.
    ///
    /// The other processes notice a dead postmaster by themselves; [`Cluster::start`] waits for that.
    #[track_caller]
    pub fn kill(&mut self) {
        self.end(Signal::SIGKILL);
    }

    #[track_caller]
    fn end(&mut self, signal: Signal) {
        let own = self.child.as_ref().map(|child| i32::try_from(child.id()).expect("a pid fits"));
        let Some(pid) = own.or_else(|| self.pid()) else { return };
        let _ = kill(Pid::from_raw(pid), signal);
        let gone = wait_for(PATIENCE, || match self.child {
            Some(_) => !self.is_running(),
            None => !is_alive(pid),
        });
        assert!(
            gone,
            "the server is still there {PATIENCE:?} after {signal}; its log ends:\n{}",
            self.log_tail()
        );
    }

    /// Stops the server in fast mode and starts it again.
    #[track_caller]
    pub fn restart(&mut self) {
        self.stop(Stop::Fast);
        self.start();
    }

    /// Makes the server read its configuration again.
    #[track_caller]
    pub fn reload(&self) {
        self.psql("select pg_reload_conf()");
    }

    /// Sets a parameter with ALTER SYSTEM and reloads; some parameters hold only after [`Cluster::restart`].
    #[track_caller]
    pub fn set(&self, name: &str, value: impl ToString) {
        let value = value.to_string().replace('\'', "''");
        self.psql(&format!("alter system set {name} = '{value}'"));
        self.reload();
    }

    /// Returns the server's whole log.
    pub fn log(&self) -> String {
        String::from_utf8_lossy(&fs::read(&self.log_file).unwrap_or_default()).into_owned()
    }

    /// Returns the last lines of the server's log.
    pub fn log_tail(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(40)..].join("\n")
    }

    /// Polls until the condition holds; panics with the end of the server's log when it does not.
    #[track_caller]
    pub fn wait_until(&self, what: &str, condition: impl FnMut() -> bool) {
        assert!(
            wait_for(PATIENCE, condition),
            "waited {PATIENCE:?} in vain until {what}; the server's log ends:\n{}",
            self.log_tail()
        );
    }

    /// Runs statements with psql, each in its own transaction, and returns the unaligned rows; panics on an error.
    #[track_caller]
    pub fn psql(&self, sql: &str) -> String {
        self.try_psql(sql).unwrap_or_else(|error| panic!("psql: {error}\nstatement: {sql}"))
    }

    /// Runs statements with psql; returns the rows, or what psql said of the first error.
    pub fn try_psql(&self, sql: &str) -> Result<String, String> {
        self.psql_in("postgres", sql)
    }

    /// Runs statements in another database.
    pub fn psql_in(&self, database: &str, sql: &str) -> Result<String, String> {
        let mut command = self.psql_command(database);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        // psql reads all of its input before a long answer could fill the pipe: statements are short.
        let mut stdin = child.stdin.take().expect("stdin");
        let _ = stdin.write_all(sql.as_bytes());
        drop(stdin);
        let output = child.wait_with_output().expect("wait for psql");
        let finished = tools::finished(&command, &output);
        if finished.code == 0 { Ok(finished.stdout.trim_end().to_owned()) } else { Err(finished.stderr) }
    }

    fn psql_command(&self, database: &str) -> std::process::Command {
        let mut command = self.client("psql");
        command.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-d", database]);
        command
    }

    /// Opens a session that stays open between statements.
    #[track_caller]
    pub fn session(&self) -> Session {
        Session::open(self.psql_command("postgres"))
    }

    /// Returns a command of the distribution's client programs that is pointed at this server.
    pub fn client(&self, program: &str) -> std::process::Command {
        let mut command = user::command(Postgres::client(program));
        command
            .env("PGHOST", &self.socket_dir)
            .env("PGPORT", self.port.to_string())
            .env("PGUSER", "postgres");
        command
    }

    /// Runs pgbench on the database `postgres` to its end.
    #[track_caller]
    pub fn pgbench(&self, arguments: &[&str]) -> Finished {
        run(self.client("pgbench").args(arguments).arg("postgres")).ok()
    }

    /// Starts pgbench beside the test.
    #[track_caller]
    pub fn pgbench_background(&self, arguments: &[&str]) -> Background {
        let mut command = self.client("pgbench");
        command.args(arguments).arg("postgres");
        Background::spawn(command)
    }

    /// Switches to a new WAL segment; returns the name of the one that is now complete.
    #[track_caller]
    pub fn switch_wal(&self) -> String {
        // A switch right after a switch does nothing, so there has to be something in the segment.
        self.psql(
            "select pg_create_restore_point('switch') is null \\g /dev/null\n\
             select pg_walfile_name(pg_switch_wal());",
        )
    }

    /// Waits until the archiver has archived this segment or a later one of the same timeline.
    #[track_caller]
    pub fn wait_archived(&self, segment: &str) {
        self.wait_until(&format!("segment {segment} is archived"), || {
            let last = self.psql("select coalesce(last_archived_wal, '') from pg_stat_archiver");
            last.get(..24).is_some_and(|last| last[..8] == segment[..8] && last >= segment)
        });
    }
}

/// Returns whether a process runs. One that has ended counts as gone even if nobody has waited for it yet: the
/// parent may be this test, or in a container a first process that waits for none.
fn is_alive(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the program's name, which stands in parentheses and may hold anything.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("server.log of {} ends:\n{}", self.data_dir.display(), self.log_tail());
        }
        let own = self.child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        let Some(pid) = own.or_else(|| self.pid()) else { return };
        for signal in [Signal::SIGQUIT, Signal::SIGKILL] {
            let _ = kill(Pid::from_raw(pid), signal);
            let gone = wait_for(Duration::from_secs(10), || match &mut self.child {
                Some(child) => !matches!(child.try_wait(), Ok(None)),
                None => !is_alive(pid),
            });
            if gone {
                return;
            }
        }
    }
}
