//! The levels of the code (docs/architecture.md): a module uses only modules of its own level or above it.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use std::path::{Path, PathBuf};

/// The levels, from the one that all others may use to the one that may use all others.
const LEVELS: [(&str, &[&str]); 5] = [
    ("vocabulary", &["postgres", "kind", "progress"]),
    ("mechanisms", &["codec", "durable", "parallel", "shutdown", "storage", "index", "server"]),
    ("repository", &["repository"]),
    ("engines", &["archive", "backup", "recovery", "upkeep"]),
    ("shell", &["config", "error", "manual", "log", "commands", "main"]),
];

/// The most lines of a file.
const LONGEST: usize = 600;

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the level of a module right below the crate's root, and its number.
fn level(module: &str) -> Option<(usize, &'static str)> {
    LEVELS
        .iter()
        .enumerate()
        .find(|(_, (_, modules))| modules.contains(&module))
        .map(|(at, (name, _))| (at, *name))
}

fn sources(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
}

/// Returns every file below `src` with its text, by its path below `src`.
fn files() -> Vec<(String, String)> {
    let src = root().join("src");
    let mut found = Vec::new();
    sources(&src, &mut found);
    found.sort();
    let text = |path: &PathBuf| std::fs::read_to_string(path).unwrap();
    found.iter().map(|path| (path.strip_prefix(&src).unwrap().display().to_string(), text(path))).collect()
}

/// Returns the module right below the crate's root that the file belongs to.
fn module_of(file: &str) -> &str {
    file.split('/').next().unwrap().trim_end_matches(".rs")
}

/// Returns the first words after each `crate::` of the code in `text`, with the number of the line. Groups
/// (`use crate::{a, b::c}`) are opened, comments left out. `walden::` is what `main.rs` says for `crate::`.
fn uses(text: &str) -> Vec<(usize, String)> {
    let code: String = text
        .split_inclusive('\n')
        .map(|line| match line.find("//") {
            // A URL in a text is no comment; whatever follows it on the line is lost, and that is little.
            Some(at) => format!("{}\n", &line[..at]),
            None => line.to_owned(),
        })
        .collect();
    let mut found = Vec::new();
    for start in ["crate::", "walden::"] {
        for (at, _) in code.match_indices(start) {
            // `$crate::` of a macro counts; `my_crate::` does not.
            if code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            let rest = &code[at + start.len()..];
            if let Some(group) = rest.strip_prefix('{') {
                found.extend(heads_of_group(group).into_iter().map(|head| (line, head)));
            } else {
                found.push((line, word(rest)));
            }
        }
    }
    found
}

fn word(text: &str) -> String {
    text.trim_start().chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect()
}

/// Returns the first word of each part of a group whose opening brace is already taken off.
fn heads_of_group(group: &str) -> Vec<String> {
    let (mut depth, mut heads, mut at_start) = (0, Vec::new(), true);
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => break,
            '}' => depth -= 1,
            ',' if depth == 0 => at_start = true,
            c if at_start && !c.is_whitespace() => {
                heads.push(word(&group[at..]));
                at_start = false;
            }
            _ => {}
        }
    }
    heads
}

#[test]
fn a_module_uses_only_its_own_level_and_those_above() {
    let mut offences = Vec::new();
    for (file, text) in files() {
        if file == "lib.rs" {
            continue;
        }
        let own = module_of(&file);
        let Some((number, name)) = level(own) else {
            offences.push(format!("src/{file}: module \"{own}\" stands on no level of tests/layers.rs"));
            continue;
        };
        for (line, used) in uses(&text) {
            match level(&used) {
                Some((other, _)) if other <= number => {}
                Some((_, other)) => {
                    offences.push(format!("src/{file}:{line}: {own} ({name}) uses {used} ({other})"));
                }
                // What the crate's root exports itself: macros.
                None => {}
            }
        }
    }
    assert!(offences.is_empty(), "modules that use a level below their own:\n  {}", offences.join("\n  "));
}

#[test]
fn every_module_of_the_crate_stands_on_a_level() {
    let text = std::fs::read_to_string(root().join("src/lib.rs")).unwrap();
    let declared = text.lines().filter_map(|line| line.strip_prefix("pub mod ")?.strip_suffix(';'));
    for module in declared {
        assert!(
            level(module).is_some(),
            "module \"{module}\" of src/lib.rs stands on no level of tests/layers.rs"
        );
    }
}

#[test]
fn only_two_places_know_tokio() {
    let knows = |text: &str| {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        code.map(str::to_owned).any(|line| line.contains("tokio::"))
    };
    let places: Vec<String> =
        files().into_iter().filter(|(_, text)| knows(text)).map(|(file, _)| file).collect();
    let stray: Vec<&String> =
        places.iter().filter(|file| !file.starts_with("storage/s3/") && *file != "server.rs").collect();
    assert!(stray.is_empty(), "tokio is used outside storage/s3 and server.rs: {stray:?}");
}

#[test]
fn no_file_is_longer_than_one_can_read() {
    let long: Vec<String> = files()
        .into_iter()
        .map(|(file, text)| (text.lines().count(), file))
        .filter(|(lines, _)| *lines > LONGEST)
        .map(|(lines, file)| format!("src/{file}: {lines} lines"))
        .collect();
    assert!(long.is_empty(), "files of more than {LONGEST} lines:\n  {}", long.join("\n  "));
}

#[test]
fn uses_are_found_however_they_are_written() {
    let text = "use crate::kind::Error;\nuse crate::{a::B, c, d::{e, f}, g::H as I};\n// crate::commands\n\
                let x = crate::log::start(); let y = my_crate::z();\n";
    let heads: Vec<(usize, String)> = uses(text);
    let expected = [(1, "kind"), (2, "a"), (2, "c"), (2, "d"), (2, "g"), (4, "log")];
    assert_eq!(heads, expected.map(|(line, head)| (line, head.to_owned())));
}
