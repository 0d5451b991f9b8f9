//! A program that runs beside the test.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::tools::Finished;
use super::user::WorkDir;

/// A running program whose output goes to files. Dropping it kills the program.
#[derive(Debug)]
pub struct Background {
    child: Child,
    command: String,
    stdout: PathBuf,
    stderr: PathBuf,
    // Last, because fields are dropped in order.
    dir: WorkDir,
}

impl Background {
    /// Starts the program.
    #[track_caller]
    pub fn spawn(mut command: Command) -> Self {
        let dir = WorkDir::new();
        // Files and not pipes: nobody reads while the program runs, and a full pipe would stop it.
        let (stdout, stderr) = (dir.write("stdout", ""), dir.write("stderr", ""));
        let open = |path: &Path| Stdio::from(std::fs::File::create(path).expect("open output file"));
        command.stdin(Stdio::null()).stdout(open(&stdout)).stderr(open(&stderr));
        let child = command.spawn().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
        Self { child, command: format!("{command:?}"), stdout, stderr, dir }
    }

    /// Returns the process id.
    pub fn pid(&self) -> i32 {
        i32::try_from(self.child.id()).expect("a pid fits")
    }

    /// Returns whether it has not ended yet.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait for child").is_none()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        // It may have ended by itself.
        let _ = kill(Pid::from_raw(self.pid()), signal);
    }

    /// Returns what it has written to stdout so far.
    pub fn stdout(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stdout).unwrap_or_default()).into_owned()
    }

    /// Returns what it has written to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(&self.stderr).unwrap_or_default()).into_owned()
    }

    /// Waits for its end; panics with its output when it takes longer than the limit.
    #[track_caller]
    pub fn wait(mut self, limit: Duration) -> Finished {
        use std::os::unix::process::ExitStatusExt;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().expect("wait for child") {
                let code = status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1);
                let (stdout, stderr) = (self.stdout(), self.stderr());
                return Finished { code, stdout, stderr, command: self.command.clone() };
            }
            assert!(
                start.elapsed() < limit,
                "still running after {limit:?}: {}\nstdout:\n{}\nstderr:\n{}",
                self.command,
                self.stdout(),
                self.stderr()
            );
            // Short, since most commands are: the wait must not be what a test measures.
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

impl Drop for Background {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
