//! A psql session that stays open: for long transactions, locks, and backup mode.

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// An open session. Dropping it ends it; an open transaction is rolled back.
#[derive(Debug)]
pub struct Session {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    statements: u32,
}

impl Session {
    #[track_caller]
    pub(super) fn open(mut psql: Command) -> Self {
        psql.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = psql.spawn().unwrap_or_else(|error| panic!("run {psql:?}: {error}"));
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("stdout"));
        Self { child, stdin, stdout, statements: 0 }
    }

    /// Runs a statement and returns its rows, once it is done. An error ends the session, and the test.
    #[track_caller]
    pub fn run(&mut self, sql: &str) -> String {
        self.statements += 1;
        let mark = format!("--done {}--", self.statements);
        let stdin = self.stdin.as_mut().expect("open session");
        writeln!(stdin, "{sql};\n\\echo {mark}").and_then(|()| stdin.flush()).expect("send statement");
        let mut rows = String::new();
        loop {
            let mut line = String::new();
            let read = self.stdout.read_line(&mut line).expect("read rows");
            assert!(read > 0, "the session ended at: {sql}");
            if line.trim_end() == mark {
                return rows.trim_end().to_owned();
            }
            rows.push_str(&line);
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of its input ends psql, which lets the server roll back in order.
        drop(self.stdin.take());
        if !super::wait_for(std::time::Duration::from_secs(5), || !matches!(self.child.try_wait(), Ok(None)))
        {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}
