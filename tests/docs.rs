//! The documentation says what is so: links lead somewhere, commands parse, configurations are ones, keys exist.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

#[path = "markdown/mod.rs"]
mod markdown;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use markdown::{blocks, shell_words, walden_arguments};
use walden::kind::Kind;
use walden::manual;
use walden::upkeep::verdict::RULES;

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
            let good = target.exists() && (fragment.is_empty() || has_anchor(&target, fragment));
            if !good {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n  {}", broken.join("\n  "));
}

/// Returns whether a page has a heading with this anchor.
fn has_anchor(page: &Path, fragment: &str) -> bool {
    prose(&read(page)).lines().any(|line| line.starts_with('#') && anchor(line) == fragment)
}

#[test]
fn every_page_that_a_message_names_is_there_and_in_the_package() {
    let kinds = Kind::ALL.map(|kind| (format!("{kind:?}"), Some(manual::of_kind(kind))));
    let rules = RULES.map(|rule| (rule.to_owned(), manual::of_rule(rule)));
    // What check looks at, by the table of its page.
    let page = read(&root().join("docs/check.md"));
    let table = page.split("## What is looked at").nth(1).unwrap().split("\n## ").next().unwrap();
    let cells = table.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    let names = cells.flat_map(|cell| cell.split("`, `")).map(|name| name.split('`').next().unwrap());
    let items: Vec<_> = names.map(|name| (name.to_owned(), manual::of_check(name))).collect();
    assert!(items.len() > 25, "{items:?}");

    let package = read(&root().join("Cargo.toml"));
    assert!(package.contains("[\"docs/*.md\", \"usr/share/doc/walden/docs/\", \"644\"]"));
    for (what, reference) in kinds.into_iter().chain(rules).chain(items) {
        let reference = reference.unwrap_or_else(|| panic!("{what}: no page of the manual"));
        let (file, fragment) = reference.split_once('#').unwrap();
        assert!(file.starts_with("docs/") && has_anchor(&root().join(file), fragment), "{what}: {reference}");
    }
}

/// Returns all of the sources.
fn sources() -> String {
    let mut dirs = vec![root().join("src")];
    let mut text = String::new();
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() {
                dirs.push(path);
            } else {
                text += &read(&path);
            }
        }
    }
    text
}

/// What messages say in words of the operating system, the server or the parser of the command line.
const FOREIGN: [&str; 12] = [
    "No space left on device",
    "Disk quota exceeded",
    "Permission denied",
    "Read-only file system",
    "Input/output error",
    "No such file or directory",
    "unexpected argument '",
    "unrecognized subcommand '",
    "Peer authentication failed for user",
    "could not open file",
    "WAL generated with full_page_writes=off was replayed",
    "is a lower setting than on the primary server",
];

/// What the code puts together from parts that are shorter than a message.
const COMPOSED: [&str; 8] = [
    "/global/pg_control",
    "HTTP status 403",
    "after 4 attempts",
    "create repository",
    "read a backup's summary in repository",
    "objects could not be removed",
    "problems found",
    "commits that are archived nowhere, the last of",
];

#[test]
fn every_message_of_troubleshooting_is_one() {
    // As the compiler sees a text that goes over several lines.
    let sources = sources().replace("\\\"", "\"");
    let mut lines = sources.split("\\\n");
    let first = lines.next().unwrap().to_owned();
    let sources = lines.fold(first, |text, line| text + line.trim_start());
    let page = read(&root().join("docs/troubleshooting.md"));
    let cells = page.lines().filter_map(|line| line.strip_prefix("| ")?.split(" | ").next());
    let mut unknown = Vec::new();
    let mut seen = 0;
    for message in cells.flat_map(|cell| cell.split('`').skip(1).step_by(2)) {
        let message = [" N ", " M "].iter().fold(format!(" {message} "), |text, one| text.replace(one, "…"));
        let parts = ["; ", "\"", " = ", " by "].iter().fold(message, |text, end| text.replace(end, "…"));
        for part in parts.split('…').flat_map(|part| part.split(": ")) {
            let part = part.trim_matches(|c: char| " ,:;().=".contains(c));
            let known = part.len() < 9
                || FOREIGN.contains(&part)
                || COMPOSED.contains(&part)
                || sources.contains(part);
            if !known {
                unknown.push(part.to_owned());
            }
            seen += 1;
        }
    }
    assert!(seen > 150, "{seen}");
    assert!(unknown.is_empty(), "nothing says:\n  {}", unknown.join("\n  "));
}

#[test]
fn every_page_that_the_code_names_is_there() {
    let mut named = BTreeSet::new();
    for part in sources().split("docs/").skip(1) {
        let end = part.find(|c: char| !c.is_ascii_alphanumeric() && !"._-#".contains(c));
        named.insert(part[..end.unwrap_or(part.len())].trim_end_matches('.').to_owned());
    }
    named.retain(|name| name.contains(".md"));
    assert!(named.len() > 15, "{named:?}");
    for name in named {
        let (file, fragment) = name.split_once('#').unwrap_or((&name, ""));
        let page = root().join("docs").join(file);
        assert!(page.is_file() && (fragment.is_empty() || has_anchor(&page, fragment)), "docs/{name}");
    }
}

#[test]
fn every_command_line_parses() {
    let (mut wrong, mut seen) = (Vec::new(), BTreeSet::new());
    for (path, page) in pages() {
        for block in blocks(&page) {
            // The variables whose form is looked at.
            let joined = block.text.replace("\\\n", " ").replace("\"$COPY_PORT\"", "5499");
            let joined = joined.replace("\"$SEGMENT\"", "0000000100000000000000A7");
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
    let tests = ["docs", "pages"].map(|name| read(&root().join(format!("tests/live/{name}.rs")))).concat();
    let quick_start = read(&root().join("docs/quickstart.md"));
    let mut wrong = Vec::new();
    for (path, page) in pages() {
        for block in blocks(&page).into_iter().filter(|block| block.language == "sh") {
            let file = path.file_name().unwrap().to_str().unwrap();
            let good = match (&block.name, &block.not_run) {
                // Run before each of the page's other blocks.
                (Some(name), None) if name == "values" => tests.contains(&format!("\"{file}\", \"")),
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
