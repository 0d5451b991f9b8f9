//! Lines of `postgresql.conf`, as far as files include others and name places (`guc-file.l`).

/// What a line says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ConfLine {
    /// A comment, an empty line, or nothing that can be read.
    Nothing,
    /// `include` and `include_if_exists`.
    Include(String),
    /// `include_dir`.
    IncludeDir(String),
    /// Any other setting: its name in lower case, and its value without quotes.
    Setting(String, String),
}

impl ConfLine {
    /// Returns what the line says.
    pub fn parse(line: &str) -> Self {
        let line = line.trim_start();
        let end = line.find(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '$' | '-')));
        let (name, rest) = line.split_at(end.unwrap_or(line.len()));
        if name.is_empty() {
            return Self::Nothing;
        }
        let rest = rest.trim_start();
        let value = value(rest.strip_prefix('=').unwrap_or(rest).trim_start());
        match name.to_ascii_lowercase().as_str() {
            "include" | "include_if_exists" => Self::Include(value),
            "include_dir" => Self::IncludeDir(value),
            name => Self::Setting(name.to_owned(), value),
        }
    }
}

/// Returns a value without its quotes and escapes (`DeescapeQuotedString`).
fn value(text: &str) -> String {
    let Some(quoted) = text.strip_prefix('\'') else {
        return text.split(|c: char| c.is_whitespace() || c == '#').next().unwrap_or_default().to_owned();
    };
    let mut value = String::new();
    let mut chars = quoted.chars().peekable();
    while let Some(char) = chars.next() {
        match char {
            '\'' if chars.peek() == Some(&'\'') => {
                chars.next();
                value.push('\'');
            }
            '\'' => break,
            '\\' => value.extend(chars.next()),
            other => value.push(other),
        }
    }
    value
}

/// Returns whether a file in an included directory counts: its name ends in `.conf` and does not begin with a dot
/// (`GetConfFilesInDir`).
pub fn counts_in_directory(name: &str) -> bool {
    name.strip_suffix(".conf").is_some() && !name.starts_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_read_as_the_server_reads_them() {
        let setting = |name: &str, value: &str| ConfLine::Setting(name.into(), value.into());
        for (line, expected) in [
            ("", ConfLine::Nothing),
            ("  # data_directory = 'x'", ConfLine::Nothing),
            (
                "data_directory = '/var/lib/x'\t# use data in another directory",
                setting("data_directory", "/var/lib/x"),
            ),
            ("Data_Directory '/it''s'", setting("data_directory", "/it's")),
            ("port=5433#x", setting("port", "5433")),
            (r"a.b = 'c\'d'", setting("a.b", "c'd")),
            ("include_dir = 'conf.d'", ConfLine::IncludeDir("conf.d".into())),
            ("include 'x.conf'", ConfLine::Include("x.conf".into())),
            ("include_if_exists = y.conf", ConfLine::Include("y.conf".into())),
        ] {
            assert_eq!(ConfLine::parse(line), expected, "{line}");
        }
        assert!(
            counts_in_directory("a.conf")
                && !counts_in_directory(".a.conf")
                && !counts_in_directory("a.conf~")
        );
    }
}
