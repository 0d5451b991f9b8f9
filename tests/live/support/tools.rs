//! Programs that judge or undo Walden's work: pg_waldump, pg_verifybackup, age, lz4, tar.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use super::user::WorkDir;
use super::{Installation, Postgres, cached, require, user};

/// What a command left behind when it ended.
#[derive(Debug, Clone)]
pub struct Finished {
    /// The exit code; 128 plus the number when a signal ended it, as a shell has it.
    pub code: i32,
    pub stdout: String,
    pub stderr: String,
    /// The command as it was run, for messages.
    pub command: String,
}

impl Finished {
    /// Returns itself when the exit code was the expected one; panics with all output otherwise.
    #[track_caller]
    pub fn expect_code(self, code: i32) -> Self {
        assert!(self.code == code, "expected exit code {code}\n{self}");
        self
    }

    /// Returns itself when the exit code was 0; panics with all output otherwise.
    #[track_caller]
    pub fn ok(self) -> Self {
        self.expect_code(0)
    }

    /// Returns both outputs together.
    pub fn output(&self) -> String {
        format!("{}{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Finished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "command: {}\nexit code: {}\nstdout:\n{}\nstderr:\n{}",
            self.command, self.code, self.stdout, self.stderr
        )
    }
}

/// Runs a prepared command to its end.
#[track_caller]
pub fn run(command: &mut Command) -> Finished {
    let output = command.output().unwrap_or_else(|error| panic!("run {command:?}: {error}"));
    finished(command, &output)
}

/// Turns the standard library's view of an ended command into ours.
pub fn finished(command: &Command, output: &std::process::Output) -> Finished {
    use std::os::unix::process::ExitStatusExt;
    let status = output.status;
    Finished {
        code: status.code().or_else(|| status.signal().map(|signal| 128 + signal)).unwrap_or(-1),
        stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
        stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        command: format!("{command:?}"),
    }
}

/// Runs a program as the unprivileged user.
#[track_caller]
pub fn run_program<A: AsRef<OsStr>>(
    program: impl AsRef<OsStr>,
    arguments: impl IntoIterator<Item = A>,
) -> Finished {
    run(user::command(program).args(arguments))
}

/// Runs a shell script as the unprivileged user; `bash`, because manual restores use `pipefail`.
#[track_caller]
pub fn run_script(script: &str) -> Finished {
    run(user::command("bash").args(["-euo", "pipefail", "-c", script]))
}

/// Returns a program from PATH.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join(name)).find(|file| file.is_file())
}

/// Returns Debian's `age`, or says that the test is skipped.
pub fn age() -> Option<PathBuf> {
    require(program("age"), "age")
}

/// Returns Debian's `lz4`, or says that the test is skipped.
pub fn lz4() -> Option<PathBuf> {
    require(program("lz4"), "lz4")
}

/// Returns Prometheus's `promtool`, or says that the test is skipped.
pub fn promtool() -> Option<PathBuf> {
    require(super::cached("bin/promtool").or_else(|| program("promtool")), "promtool")
}

/// Returns `tar`, or says that the test is skipped.
pub fn tar() -> Option<PathBuf> {
    require(program("tar"), "tar")
}

/// Returns the `pg_waldump` that reads WAL of this major version, or says that there is no judge.
pub fn pg_waldump(major: u32) -> Option<PathBuf> {
    require_judge("pg_waldump", major)
}

/// Returns the `pg_verifybackup` for backups of this major version, or says that there is no judge.
pub fn pg_verifybackup(major: u32) -> Option<PathBuf> {
    require_judge("pg_verifybackup", major)
}

fn require_judge(name: &str, major: u32) -> Option<PathBuf> {
    if major == 14 {
        // No package has them: here the server itself is the only judge.
        eprintln!("skipped: there is no {name} of 14");
        return None;
    }
    require(judge(name, major), format!("{name} of {major}"))
}

/// Returns a program of this major version: from the judges installed beside, else from the server's own directory.
pub fn judge(name: &str, major: u32) -> Option<PathBuf> {
    cached(format!("judges/{major}/bin/{name}"))
        .or_else(|| Postgres::find(major).map(|found| found.program(name)).filter(|path| path.is_file()))
}

/// Returns a `pg_rewind` for this server, in `dir` where it has none of its own, or says that there is none.
///
/// It runs `postgres` from its own directory to read the server's settings, and wants one of its own minor version. The
/// judge's is another one than the server's, which makes no difference to the settings: it is told what it wants to hear.
pub fn pg_rewind(installation: &Installation, dir: &WorkDir) -> Option<PathBuf> {
    use std::os::unix::fs::PermissionsExt;
    let own = installation.program("pg_rewind");
    if own.is_file() {
        return Some(own);
    }
    let major = installation.major;
    let Some(judge) = cached(format!("judges/{major}/bin/pg_rewind")) else {
        // No package has it for 14 and 16; a missing one of 17 and 18 is found by the other judges.
        eprintln!("skipped: there is no pg_rewind of {major}");
        return None;
    };
    let version = run(user::command(&judge).arg("--version")).ok().stdout;
    let version = version.trim().replacen("pg_rewind", "postgres", 1);
    let home = dir.create_dir("pg_rewind");
    let write = |name: &str, script: String| {
        let path = home.join(name);
        std::fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("write");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).expect("chmod");
        path
    };
    let server = installation.program("postgres");
    write("postgres", format!("[ \"$1\" = -V ] && exec echo '{version}'\nexec {} \"$@\"", server.display()));
    // The judge's own script, which passes on under which path it was called.
    let script = std::fs::read_to_string(&judge).expect("read the judge");
    Some(write("pg_rewind", script.lines().skip(1).collect::<Vec<_>>().join("\n")))
}
