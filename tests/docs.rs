//! The documentation says what is so: links lead somewhere, commands parse, configurations are ones, keys exist.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "markdown/mod.rs"]
mod markdown;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use markdown::{blocks, shell_words, walden_arguments};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn with_ending(dir: &str, ending: &str) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(root().join(dir)).unwrap_or_else(|error| panic!("{dir}: {error}"));
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|found| found == ending));
    paths.sort();
    paths
}

/// Returns README.md and every page of docs, with their text.
fn pages() -> Vec<(PathBuf, String)> {
    let mut paths = vec![root().join("README.md")];
    paths.extend(with_ending("docs", "md"));
    for dir in ["postgresql-conf-examples", "packaging", "packaging/iam"] {
        paths.extend(with_ending(dir, "md"));
    }
    paths.into_iter().map(|path| (path.clone(), read(&path))).collect()
}

/// Returns the page without what stands in fenced blocks. Code in a line stays: a link's text may be code.
fn prose(page: &str) -> String {
    let mut inside = false;
    let mut text = String::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            inside = !inside;
        } else if !inside {
            text.push_str(line);
            text.push('\n');
        }
    }
    text
}

/// Returns the anchor that a heading gets: lower case, hyphens for spaces, without punctuation.
fn anchor(heading: &str) -> String {
    let text = heading.trim_start_matches('#').trim().to_lowercase();
    let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

#[test]
fn every_relative_link_leads_somewhere() {
    let mut broken = Vec::new();
    for (path, page) in pages() {
        for part in prose(&page).split("](").skip(1) {
            let link = part.split(')').next().unwrap_or_default();
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            let (file, fragment) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let good = target.exists()
                && (fragment.is_empty()
                    || read(&target).lines().any(|line| line.starts_with('#') && anchor(line) == fragment));
            if !good {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n  {}", broken.join("\n  "));
}

#[test]
fn every_command_line_parses() {
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for (path, page) in pages() {
        for block in blocks(&page) {
            // The variable that has to be a number.
            let joined = block.text.replace("\\\n", " ").replace("\"$COPY_PORT\"", "5499");
            for arguments in joined.lines().filter_map(walden_arguments) {
                seen.extend(arguments.first().cloned());
                let output = Command::new(env!("CARGO_BIN_EXE_walden"))
                    .args(&arguments)
                    .arg("--help")
                    .output()
                    .unwrap();
                if !output.status.success() {
                    wrong.push(format!(
                        "{}:{}: walden {}: {}",
                        path.display(),
                        block.line,
                        arguments.join(" "),
                        String::from_utf8_lossy(&output.stderr).trim()
                    ));
                }
            }
        }
    }
    assert!(wrong.is_empty(), "command lines that walden does not take:\n  {}", wrong.join("\n  "));
    for command in ["init", "base-backup", "status", "list", "recover"] {
        assert!(seen.contains(command), "no page shows walden {command}");
    }
}

#[test]
fn every_command_is_run_by_a_test_or_says_why_not() {
    let tests = read(&root().join("tests/live/docs.rs"));
    let quick_start = read(&root().join("docs/quickstart.md"));
    let mut wrong = Vec::new();
    for (path, page) in pages() {
        for block in blocks(&page).into_iter().filter(|block| block.language == "sh") {
            let file = path.file_name().unwrap().to_str().unwrap();
            let good = match (&block.name, &block.not_run) {
                (Some(name), None) => tests.contains(&format!("\"{file}\", \"{name}\"")),
                (None, Some(reason)) => !reason.is_empty(),
                // What is in the quick start is run by tests/quickstart.sh.
                (None, None) => block.text.lines().all(|line| quick_start.lines().any(|run| run == line)),
                (Some(_), Some(_)) => false,
            };
            if !good {
                wrong.push(format!("{}:{}", path.display(), block.line));
            }
        }
    }
    assert!(wrong.is_empty(), "neither run nor marked (docs/development.md):\n  {}", wrong.join("\n  "));
}

#[test]
fn every_configuration_parses() {
    let parse = |text: &str, from: &str| {
        let config = walden::config::Config::parse(text, Path::new("/etc/walden/walden.toml"))
            .unwrap_or_else(|error| panic!("{from}: {error}"));
        if let walden::config::Encryption::Age { recipients, .. } = &config.encryption {
            walden::codec::Sealer::for_recipients(recipients)
                .unwrap_or_else(|error| panic!("{from}: {error}"));
        }
    };
    let mut count = 0;
    for (path, page) in pages() {
        for block in blocks(&page).into_iter().filter(|block| block.language == "toml") {
            parse(&block.text, &format!("{}:{}", path.display(), block.line));
            count += 1;
        }
    }
    assert!(count > 0, "no page shows a configuration");
    let examples = with_ending("postgresql-conf-examples", "toml");
    assert!(!examples.is_empty());
    for path in examples {
        parse(&read(&path), &path.display().to_string());
        assert!(path.with_extension("conf").exists(), "{} has no .conf beside it", path.display());
    }
}

#[test]
fn every_example_of_server_settings_is_complete() {
    for path in with_ending("postgresql-conf-examples", "conf") {
        assert!(path.with_extension("toml").exists(), "{} has no .toml beside it", path.display());
        let text = read(&path);
        for (line, setting) in
            text.lines().enumerate().filter(|(_, line)| !line.is_empty() && !line.starts_with('#'))
        {
            assert!(setting.contains(" = "), "{}:{}: {setting}", path.display(), line + 1);
        }
        for (name, command) in [("archive_command", "archive-push"), ("restore_command", "archive-get")] {
            let value = text.lines().find_map(|line| line.strip_prefix(name)?.split('\'').nth(1));
            let arguments =
                value.and_then(walden_arguments).unwrap_or_else(|| panic!("{}: {name}", path.display()));
            assert_eq!(arguments[0], command, "{}", path.display());
        }
    }
}

/// Returns the keys that the configuration knows, from the structs that it is read into.
fn keys_of_the_code() -> BTreeSet<String> {
    let text = read(&root().join("src/config.rs")) + &read(&root().join("src/config/watch.rs"));
    let fields = |name: &str, prefix: &str| -> Vec<String> {
        let body =
            text.split(&format!("struct {name} {{\n")).nth(1).unwrap_or_else(|| panic!("no struct {name}"));
        let body = body.split("\n}").next().unwrap();
        let lines = body.lines().map(|line| line.trim().trim_start_matches("pub "));
        let names =
            lines.filter(|line| !line.starts_with("//") && !line.starts_with('#')).filter_map(|line| {
                let (name, _) = line.split_once(": ")?;
                Some(format!("{prefix}{name}"))
            });
        names.collect()
    };
    let mut keys: BTreeSet<String> = fields("File", "").into_iter().collect();
    for (section, name) in [
        ("server", "Server"),
        ("repository", "RepositoryConfig"),
        ("encryption", "AgeFile"),
        ("archive", "ArchiveFile"),
        ("retention", "RetentionFile"),
        ("status", "StatusFile"),
        ("notify", "NotifyFile"),
        ("verify", "VerifyFile"),
    ] {
        assert!(keys.contains(section), "{section}");
        // `encryption` is a key by itself, too: as a word.
        if section != "encryption" {
            keys.remove(section);
        }
        keys.extend(fields(name, &format!("{section}.")));
    }
    keys
}

#[test]
fn every_key_is_documented_and_every_documented_key_exists() {
    let page = read(&root().join("docs/configuration.md"));
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
    let documented: BTreeSet<String> =
        rows.filter(|key| !key.contains(|c: char| c.is_uppercase())).map(str::to_owned).collect();
    let known = keys_of_the_code();
    assert_eq!(
        known.difference(&documented).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "not in docs/configuration.md"
    );
    assert_eq!(
        documented.difference(&known).collect::<Vec<_>>(),
        Vec::<&String>::new(),
        "only in docs/configuration.md"
    );
}

#[test]
fn lines_are_split_as_a_shell_does() {
    assert_eq!(shell_words("a 'b c' d\"e f\" | g"), ["a", "b c", "de f"]);
    assert_eq!(
        walden_arguments("sudo -u postgres walden recover --until '10 minutes ago' --plan").unwrap(),
        ["recover", "--until", "10 minutes ago", "--plan"]
    );
    assert_eq!(walden_arguments("make demo"), None);
}
