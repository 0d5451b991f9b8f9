//! The program: runs the command and turns its outcome, a panic included, into an exit code.

#![allow(clippy::multiple_crate_versions)]

use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;

fn main() -> ExitCode {
    walden::shutdown::watch_signals();
    // One line, without a backtrace: it goes into the server's log.
    std::panic::set_hook(Box::new(|info| {
        let message = info.payload_as_str().unwrap_or("unknown").replace('\n', " ");
        if message.starts_with("failed printing to std") {
            // Whoever read our output has gone (`walden status | head -1`): end as a program that does not ignore
            // SIGPIPE would, without a word.
            walden::shutdown::remove_temporary_files();
            std::process::exit(141);
        }
        let place = info.location().map(ToString::to_string).unwrap_or_default();
        // Where stderr is a full disk eprintln! would panic again, which aborts: a signal in the server's eyes.
        let _ = writeln!(
            std::io::stderr(),
            "ERROR: internal error: {message} at {place}; hint: this is a bug in walden, please report it"
        );
    }));
    let code = catch_unwind(AssertUnwindSafe(walden::commands::main)).unwrap_or_else(|_| {
        walden::shutdown::remove_temporary_files();
        walden::commands::code_outside(&std::env::args_os().collect::<Vec<_>>(), 1)
    });
    ExitCode::from(code)
}
