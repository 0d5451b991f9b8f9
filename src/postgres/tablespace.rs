//! The tablespace map, which tells a restored server where its tablespaces' directories are
//! (`do_pg_backup_start` writes it, `read_tablespace_map` reads it).

use std::fmt::Write;

use super::ParseError;

/// A tablespace outside the data directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// The directory to which the link leads.
    pub path: String,
}

/// What a `tablespace_map` file says.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct TablespaceMap {
    /// The tablespaces, in the file's order.
    pub entries: Vec<Tablespace>,
}

impl TablespaceMap {
    /// Returns what the file says. Directories whose names are not UTF-8 are an error.
    pub fn parse(text: impl AsRef<[u8]>) -> Result<Self, ParseError> {
        let text = std::str::from_utf8(text.as_ref()).map_err(|_| {
            ParseError::text("tablespace map", &String::from_utf8_lossy(text.as_ref()), "text in UTF-8")
        })?;
        let mut entries = Vec::new();
        let mut line = String::new();
        let mut escaped = false;
        for char in text.chars() {
            match char {
                '\n' | '\r' if !escaped => {
                    // An empty line is the second half of a line end "\r\n".
                    if !line.is_empty() {
                        entries.push(parse_line(&line)?);
                        line.clear();
                    }
                }
                '\\' if !escaped => escaped = true,
                _ => {
                    line.push(char);
                    escaped = false;
                }
            }
        }
        if escaped || !line.is_empty() {
            return Err(ParseError::text(
                "tablespace map line",
                &line,
                "a line that is ended by a line feed",
            ));
        }
        Ok(Self { entries })
    }

    /// Returns the file's text as the server writes it: a backslash goes before line feeds, carriage returns and
    /// backslashes.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        for Tablespace { oid, path } in &self.entries {
            let _ = write!(text, "{oid} ");
            for char in path.chars() {
                if matches!(char, '\n' | '\r' | '\\') {
                    text.push('\\');
                }
                text.push(char);
            }
            text.push('\n');
        }
        text
    }
}

fn parse_line(line: &str) -> Result<Tablespace, ParseError> {
    let parse = || {
        let (oid, path) = line.split_once(' ')?;
        let digits = oid.bytes().all(|b| b.is_ascii_digit());
        let oid = digits.then(|| oid.parse().ok()).flatten()?;
        (!path.is_empty()).then(|| Tablespace { oid, path: path.to_owned() })
    };
    parse().ok_or_else(|| ParseError::text("tablespace map line", line, "an OID and a directory"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn reads_what_the_server_writes() {
        // The escapes of a PostgreSQL 15.18, and one that its SQL does not let through but its reader knows.
        let map = TablespaceMap::parse("16432 /srv/fast disk\n16433 /srv/od\\\\d\\\nname\n").unwrap();
        let expected = [(16432, "/srv/fast disk"), (16433, "/srv/od\\d\nname")];
        assert!(map.entries.iter().map(|t| (t.oid, t.path.as_str())).eq(expected));
        assert_eq!(TablespaceMap::parse("").unwrap(), TablespaceMap::default());
        assert_eq!(TablespaceMap::parse("1 /a\r\n2 /b\r\n").unwrap().entries.len(), 2);
    }

    #[test]
    fn refuses_what_the_server_refuses() {
        for bad in ["1 /a", "1 /a\\", "/a\n", "1\n", "1 \n", "x /a\n", " /a\n", "4294967296 /a\n"] {
            assert!(TablespaceMap::parse(bad).is_err(), "{bad:?}");
        }
        assert!(TablespaceMap::parse(b"1 /\xFF\n").is_err());
    }

    proptest! {
        #[test]
        fn round_trips(entries in prop::collection::vec((any::<u32>(), "/[a\\\\\n\r \u{e9}]*"), 0..4)) {
            let entries = entries.into_iter().map(|(oid, path)| Tablespace { oid, path }).collect();
            let map = TablespaceMap { entries };
            prop_assert_eq!(TablespaceMap::parse(map.to_text()).unwrap(), map);
        }

        #[test]
        fn never_panics(text: String) {
            let _ = TablespaceMap::parse(text);
        }
    }
}
