//! What was typed wrong gets one clear line and the right code, in every command.

use std::path::Path;

use crate::support::user::WorkDir;
use crate::support::{Finished, Walden};

/// One line on stderr that begins with the level, and no backtrace.
#[track_caller]
fn one_line(finished: &Finished, code: i32) {
    assert_eq!(finished.code, code, "{finished}");
    assert_eq!(finished.stderr.lines().count(), 1, "{finished}");
    assert!(finished.stderr.starts_with("ERROR: "), "{finished}");
    assert!(!finished.stderr.contains("panicked") && !finished.stderr.contains("backtrace"), "{finished}");
}

#[test]
fn a_missing_configuration_is_3_for_every_command_and_200_for_archive_get() {
    let walden = Walden::new(Path::new("/nonexistent/walden.toml"));
    for command in [
        &["archive-push", "pg_wal/000000010000000000000001"][..],
        &["base-backup"],
        &["recover", "--until", "latest", "--data-dir", "/tmp/none"],
        &["status"],
        &["list"],
    ] {
        one_line(&walden.run(command), 3);
    }
    one_line(&walden.run(&["archive-get", "000000010000000000000001", "x"]), 200);
    one_line(&walden.run(&["archive-get", "000000010000000000000001", "x", "--on-error", "retry"]), 3);
}

#[test]
fn wrong_flags_and_commands_are_2_and_200_for_archive_get() {
    let walden = Walden::bare();
    for arguments in [
        &["nonsense"][..],
        &["archive-push"],
        &["archive-push", "a", "b"],
        &["status", "--output", "xml"],
        &["recover", "--data-dir", "/tmp/x"],
        &["recover", "--until", "latest"],
        &["recover", "--until", "latest", "--plan", "--action", "dance"],
        &["base-backup", "--parallel", "0"],
        &["base-backup", "--max-rate", "fast"],
        &["list", "nonsense"],
        &["--config"],
        &["status", "--quiet", "--verbose"],
    ] {
        one_line(&walden.run(arguments), 2);
    }
    one_line(&walden.run(&["archive-get"]), 200);
    one_line(&walden.run(&["archive-get", "--nonsense"]), 200);
    one_line(&walden.run(&["--nonsense", "archive-get", "a", "b"]), 200);
}

#[test]
fn a_configuration_with_a_fault_names_the_line_and_the_nearest_key() {
    let work = WorkDir::new();
    let text = "cluster = \"main\"\ndata_dir = \"/x\"\nstate_dir = \"/y\"\nencryption = \"none\"\n\n[[repository]]\n\
                name = \"a\"\nurl = \"file:///z\"\nregoin = \"eu\"\n";
    let walden = Walden::new(&work.write("walden.toml", text));
    let finished = walden.run(&["status"]);
    one_line(&finished, 3);
    assert!(finished.stderr.contains("regoin") && finished.stderr.contains("\"region\""), "{finished}");
}

#[test]
fn help_has_an_example_and_version_is_told() {
    let walden = Walden::bare();
    for command in ["init", "archive-push", "archive-get", "base-backup", "recover", "status", "list"] {
        let finished = walden.run(&[command, "--help"]).ok();
        assert!(finished.stdout.contains("Example"), "{finished}");
    }
    assert!(walden.run(&["--version"]).ok().stdout.starts_with("walden "));
    assert!(walden.run(&[]).expect_code(2).stderr.contains("Usage"));
}
