//! What was typed wrong gets one clear line and the right code, in every command.

use std::fs;
use std::path::Path;

use crate::support::tools::{self, run_program};
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
fn a_message_has_one_hint_and_ends_in_what_to_read() {
    for (arguments, end) in [
        (&["status", "--outptu", "json"][..], "'--output'; see walden status --help"),
        (&["recover", "--until", "gestern", "--plan"], "see docs/troubleshooting.md#exit-code-2"),
        (&["recover", "--until", "latest", "--plan"], "see docs/troubleshooting.md#exit-code-3"),
    ] {
        let finished = Walden::new(Path::new("/nonexistent/walden.toml")).run(arguments);
        assert_eq!(finished.stderr.matches("; hint: ").count(), 1, "{finished}");
        assert!(finished.stderr.trim_end().ends_with(end), "{finished}");
    }
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
fn version_tells_commit_and_what_the_build_can_do() {
    let walden = Walden::bare();
    let long = walden.run(&["--version"]).ok().stdout;
    assert!(long.starts_with("walden "), "{long}");
    for part in ["commit:", "PostgreSQL:   14 to 18", "s3://", "age"] {
        assert!(long.contains(part), "{part}: {long}");
    }
    assert_eq!(walden.run(&["-V"]).ok().stdout.lines().count(), 1);
    assert!(walden.run(&[]).expect_code(2).stderr.contains("Usage"));
}

#[test]
fn completions_know_the_commands_and_the_shells_read_them() {
    let walden = Walden::bare();
    for shell in ["bash", "zsh", "fish"] {
        let text = walden.run(&["completions", shell]).ok().stdout;
        for part in ["base-backup", "archive-push", "until"] {
            assert!(text.contains(part), "{shell}: {part}");
        }
        assert!(!text.contains("archive-prefetch"), "hidden commands are not offered");
        if let Some(program) = tools::program(shell) {
            let work = WorkDir::new();
            let file = work.write("completions", text).display().to_string();
            run_program(program, ["-n", file.as_str()]).ok();
        }
    }
    walden.run(&["completions", "cobol"]).expect_code(2);
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let work = WorkDir::new();
    let dir = work.join("man/man1");
    Walden::bare().run(&["man", &dir.display().to_string()]).ok();
    for name in ["walden.1", "walden-recover.1", "walden-index-rebuild.1", "walden-man.1"] {
        let page = fs::read_to_string(dir.join(name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(page.contains(".SH NAME") && page.contains("EXAMPLES"), "{name}: {page}");
    }
    assert!(!dir.join("walden-archive-prefetch.1").exists(), "a hidden command has no page");
    let help = Walden::bare().run(&["--help"]).ok().stdout;
    let commands = help.split("Commands:\n").nth(1).expect("commands").split("\n\n").next().expect("a part");
    let names =
        commands.lines().filter(|line| !line.starts_with("   ")).filter_map(|l| l.split_whitespace().next());
    for name in names.map(|name| format!("walden-{name}.1")) {
        let page = fs::read_to_string(dir.join(&name)).unwrap_or_else(|error| panic!("{name}: {error}"));
        let words: Vec<&str> = name.trim_end_matches(".1").splitn(2, '-').skip(1).chain(["--help"]).collect();
        let help = Walden::bare().run(&words).ok().stdout;
        for option in
            help.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with("--")))
        {
            let option = option.trim_end_matches([',', ';', '.']);
            assert!(page.replace("\\-", "-").contains(option), "{name}: {option}");
        }
    }
    let page = fs::read_to_string(dir.join("walden-recover.1")).expect("read");
    assert!(page.contains("\n  walden recover \\-\\-until"), "an example is a line of its own: {page}");
    walden_cannot_write(&dir.join("walden.1/below"));
}

#[track_caller]
fn walden_cannot_write(dir: &Path) {
    one_line(&Walden::bare().run(&["man", &dir.display().to_string()]), 1);
}
