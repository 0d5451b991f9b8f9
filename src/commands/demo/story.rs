//! Printing the story: steps, command lines, output. Colours only on a terminal.

use crate::kind::{Context, Result};
use std::io::{IsTerminal, Write};

const BOLD: &str = "\x1b[1m";
const CYAN: &str = "\x1b[36m";
const GREEN: &str = "\x1b[1;32m";
const RESET: &str = "\x1b[0m";

/// How far everything below a step's title is moved to the right.
const INDENT: &str = "   ";

/// The story as it is told.
pub struct Story {
    coloured: bool,
    step: u32,
}

impl Story {
    /// Returns a story of which nothing is told yet.
    pub fn new() -> Self {
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
            && std::env::var_os("TERM").is_none_or(|term| term != "dumb");
        Self { coloured: wanted && std::io::stdout().is_terminal(), step: 0 }
    }

    /// Prints the first line.
    pub fn heading(&mut self, text: &str) -> Result<()> {
        self.line("", BOLD, text)
    }

    /// Begins a step.
    pub fn step(&mut self, title: &str) -> Result<()> {
        self.step += 1;
        let title = format!("{:>2} {title}", self.step);
        self.line("", "", "")?;
        self.line("", BOLD, &title)
    }

    /// Says something in the demo's own words.
    pub fn say(&mut self, text: &str) -> Result<()> {
        self.line(INDENT, "", text)
    }

    /// Shows a command line, which may have several lines that end in backslashes.
    pub fn command(&mut self, text: &str) -> Result<()> {
        self.lines("$ ", "    ", text)
    }

    /// Shows a statement as psql would.
    pub fn prompt(&mut self, sql: &str) -> Result<()> {
        self.lines("postgres=# ", "             ", sql)
    }

    /// Shows a line of output.
    pub fn output(&mut self, text: &str) -> Result<()> {
        self.line(INDENT, "", text)
    }

    /// Prints the last line.
    pub fn summary(&mut self, text: &str) -> Result<()> {
        self.line("", "", "")?;
        self.line("", GREEN, text)
    }

    fn lines(&mut self, first: &str, others: &str, text: &str) -> Result<()> {
        for (at, line) in text.lines().enumerate() {
            let before = if at == 0 { first } else { others };
            self.line(INDENT, CYAN, &format!("{before}{line}"))?;
        }
        Ok(())
    }

    /// A reader that has gone away is an error like others: what was started must be stopped all the same.
    fn line(&self, indent: &str, colour: &str, text: &str) -> Result<()> {
        let mut out = std::io::stdout().lock();
        let written = if text.is_empty() {
            writeln!(out)
        } else if self.coloured && !colour.is_empty() {
            writeln!(out, "{indent}{colour}{text}{RESET}")
        } else {
            writeln!(out, "{indent}{text}")
        };
        written.and_then(|()| out.flush()).context("write to standard output")
    }
}
