//! What documentation is made of: fenced blocks, and command lines in them.
// Each crate of tests uses some of it.
#![allow(dead_code)]

/// A fenced block. ```` ```sh not-run="reason" ```` marks one whose commands no test runs; `name="…"` is for the test that
/// does.
pub struct Block {
    pub language: String,
    pub not_run: Option<String>,
    pub name: Option<String>,
    /// The number of the first line.
    pub line: usize,
    pub text: String,
}

/// Returns the fenced blocks of a page.
pub fn blocks(page: &str) -> Vec<Block> {
    let mut found = Vec::new();
    let mut open: Option<Block> = None;
    for (at, line) in page.lines().enumerate() {
        match (&mut open, line.trim_start().strip_prefix("```")) {
            (None, Some(language)) => {
                let (language, info) = language.split_once(' ').unwrap_or((language, ""));
                let value = |key: &str| {
                    let (_, rest) = info.split_once(&format!("{key}=\""))?;
                    Some(rest.split('"').next()?.to_owned())
                };
                open = Some(Block {
                    language: language.into(),
                    not_run: value("not-run"),
                    name: value("name"),
                    line: at + 2,
                    text: String::new(),
                });
            }
            (Some(_), Some(_)) => found.extend(open.take()),
            (Some(block), None) => {
                block.text.push_str(line);
                block.text.push('\n');
            }
            (None, None) => {}
        }
    }
    assert!(open.is_none(), "a fenced block is not closed");
    found
}

/// Splits a line as a shell does, as far as the documentation needs it: quotes, and an end at `|`, `;`, `&` or a
/// redirection.
#[allow(clippy::match_same_arms, reason = "the two mean different states")]
pub fn shell_words(line: &str) -> Vec<String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in line.chars() {
        let begins_comment = c == '#' && word.is_none();
        if quote.is_none() && (begins_comment || matches!(c, '|' | ';' | '&' | '>' | '<')) {
            break;
        }
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, c) if c.is_whitespace() => words.extend(word.take()),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    words
}

/// Returns the arguments of walden if the line runs it.
pub fn walden_arguments(line: &str) -> Option<Vec<String>> {
    let words = shell_words(line.trim().trim_start_matches("$ "));
    let mut rest = words.as_slice();
    if rest.first().is_some_and(|word| word == "sudo") {
        rest = &rest[1..];
        if rest.first().is_some_and(|word| word == "-u") {
            rest = rest.get(2..)?;
        }
    }
    let program = rest.first()?;
    (program == "walden" || program.ends_with("/walden")).then(|| rest[1..].to_vec())
}
