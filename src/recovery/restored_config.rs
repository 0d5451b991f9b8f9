//! What configuration becomes in a restored copy.
//!
//! Files from outside the data directory come into it under their usual names, with the files that they include put
//! in their place. Lines that lead back to the original (`data_directory` in a file wins over `-D`) become comments.

use super::restore::RestoreOptions;
use crate::backup::conf::{ConfLine, counts_in_directory};
use crate::durable::at;
use crate::kind::{Context, Error, Result};
use crate::repository::backup::{BackupSummary, ExternalConfig};
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Component, Path, PathBuf};

/// How deep files may include each other (`CONF_FILE_MAX_DEPTH`).
const DEEPEST: usize = 10;

/// How many files of the data directory are rewritten at most.
const MOST_INCLUDED: usize = 1000;

/// The file that the server reads when nobody names another.
const MAIN_FILE: &str = "postgresql.conf";
const HBA_FILE: &str = "pg_hba.conf";
const IDENT_FILE: &str = "pg_ident.conf";
/// What `ALTER SYSTEM` writes.
const AUTO_FILE: &str = "postgresql.auto.conf";

/// What is put before a line that must not count in a copy.
const MARK: &str = "#walden# ";

/// Returns the files of a configuration object by their original paths.
pub fn unpack(stream: &[u8]) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    let mut archive = tar::Archive::new(stream);
    let corrupt = |error: std::io::Error| Error::corrupt(error.to_string());
    for entry in archive.entries().map_err(corrupt)? {
        let mut entry = entry.map_err(corrupt)?;
        let path = Path::new("/").join(entry.path().map_err(corrupt)?);
        let mut content = Vec::new();
        entry.read_to_end(&mut content).map_err(corrupt)?;
        files.insert(path, content);
    }
    Ok(files)
}

/// Writes the configuration of the copy, given the files from outside by their original paths. Returns the paths of
/// what was written.
pub fn place(
    summary: &BackupSummary,
    options: &RestoreOptions,
    outside: BTreeMap<PathBuf, Vec<u8>>,
) -> Result<Vec<PathBuf>> {
    let nothing = ExternalConfig::default();
    let external = summary.external_config.as_ref().unwrap_or(&nothing);
    let files =
        outside.into_iter().map(|(path, content)| (path, String::from_utf8_lossy(&content).into_owned()));
    let copy = Copy {
        original: Path::new(&summary.data_dir),
        data_dir: &options.data_dir,
        outside: files.collect(),
        inside: RefCell::default(),
    };
    let mut written = Vec::new();
    let mut write = |name: &Path, text: &str| {
        let path = options.data_dir.join(name);
        // What was outside may be new here, and may hold secrets.
        let mut options = OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        let file = options.open(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        file.map_err(at(&path)).context("write configuration")?;
        written.push(path);
        Result::Ok(())
    };
    if let Some((path, text)) =
        external.config_file.as_ref().and_then(|path| copy.outside.get_key_value(Path::new(path)))
    {
        write(Path::new(MAIN_FILE), &copy.rewrite(text, path, false, 0))?;
    } else {
        copy.rewrite_in_place(Path::new(MAIN_FILE), &mut write)?;
    }
    copy.rewrite_in_place(Path::new(AUTO_FILE), &mut write)?;
    // Files that they include inside the data directory may lead back as well, and include more of them.
    let mut rewritten = BTreeSet::from([PathBuf::from(MAIN_FILE), PathBuf::from(AUTO_FILE)]);
    while let Some(name) = copy.inside.borrow_mut().pop_first() {
        if rewritten.len() < MOST_INCLUDED && rewritten.insert(name.clone()) {
            copy.rewrite_in_place(&name, &mut write)?;
        }
    }
    for (place, name) in [(&external.hba_file, HBA_FILE), (&external.ident_file, IDENT_FILE)] {
        if let Some(text) = place.as_ref().and_then(|path| copy.outside.get(Path::new(path))) {
            write(Path::new(name), text)?;
        }
    }
    Ok(written)
}

struct Copy<'a> {
    /// The data directory of the original.
    original: &'a Path,
    /// That of the copy.
    data_dir: &'a Path,
    /// Files from outside the original, by their paths there.
    outside: BTreeMap<PathBuf, String>,
    /// Files in the data directory, by their paths in it, that were found to be included.
    inside: RefCell<BTreeSet<PathBuf>>,
}

/// What becomes of a line.
enum Fate {
    Kept,
    /// It becomes a comment.
    Dropped,
    /// It becomes a comment, with these lines behind it.
    Replaced(String),
}

impl Copy<'_> {
    /// Rewrites a file that came with the data directory, if there is need to.
    fn rewrite_in_place(&self, name: &Path, write: &mut dyn FnMut(&Path, &str) -> Result<()>) -> Result<()> {
        let Ok(bytes) = std::fs::read(self.data_dir.join(name)) else { return Ok(()) };
        // Rewriting a file in another encoding would damage it.
        let Ok(text) = String::from_utf8(bytes) else { return Ok(()) };
        let rewritten = self.rewrite(&text, &self.original.join(name), true, 0);
        if rewritten != text {
            tracing::warn!(
                "changed \"{}\" so that the copy does not lead back to the original",
                name.display()
            );
            write(name, &rewritten)?;
        }
        Ok(())
    }

    /// Returns the text of the file that was at `path`, as it is to be in the copy. `in_place` says that the file was
    /// inside the data directory.
    fn rewrite(&self, text: &str, path: &Path, in_place: bool, depth: usize) -> String {
        let mut copy = String::with_capacity(text.len());
        for line in text.split_inclusive('\n') {
            match self.fate(&ConfLine::parse(line), path, in_place, depth) {
                Fate::Kept => copy.push_str(line),
                Fate::Dropped => copy.extend([MARK, line]),
                Fate::Replaced(lines) => {
                    copy.extend([MARK, line]);
                    if !line.ends_with('\n') {
                        copy.push('\n');
                    }
                    copy.push_str(&lines);
                }
            }
        }
        copy
    }

    fn fate(&self, line: &ConfLine, path: &Path, in_place: bool, depth: usize) -> Fate {
        let dir = path.parent().unwrap_or(Path::new("/"));
        match line {
            ConfLine::Nothing => Fate::Kept,
            ConfLine::Include(file) => match self.own(&dir.join(file)) {
                Some(own) => self.include_own("include_if_exists", &own, file, vec![own.clone()], in_place),
                None => self.include(&[dir.join(file)], depth),
            },
            ConfLine::IncludeDir(sub) => {
                let dir = dir.join(sub);
                if let Some(own) = self.own(&dir) {
                    let entries = std::fs::read_dir(self.data_dir.join(&own)).into_iter().flatten().flatten();
                    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
                    let files =
                        names.filter(|name| counts_in_directory(name)).map(|name| own.join(name)).collect();
                    return self.include_own("include_dir", &own, sub, files, in_place);
                }
                let counts = |file: &&PathBuf| {
                    let name = file.file_name().and_then(|name| name.to_str());
                    file.parent() == Some(&dir) && name.is_some_and(counts_in_directory)
                };
                let files: Vec<PathBuf> = self.outside.keys().filter(counts).cloned().collect();
                self.include(&files, depth)
            }
            ConfLine::Setting(name, value) => self.setting(name, value, in_place),
        }
    }

    /// Returns where in the data directory a path of the original is; none if it is outside.
    fn own(&self, path: &Path) -> Option<PathBuf> {
        let inside = path.strip_prefix(self.original).ok()?;
        inside.components().all(|part| matches!(part, Component::Normal(_))).then(|| inside.to_path_buf())
    }

    /// Keeps a line that includes files of the data directory, or makes it lead to the copy's. The files are rewritten later.
    fn include_own(&self, word: &str, own: &Path, value: &str, files: Vec<PathBuf>, in_place: bool) -> Fate {
        self.inside.borrow_mut().extend(files);
        if in_place && !value.starts_with('/') {
            return Fate::Kept;
        }
        let path = self.data_dir.join(own).display().to_string().replace('\'', "''");
        Fate::Replaced(format!("{word} '{path}'\n"))
    }

    /// Puts the contents of included files in the place of the line.
    fn include(&self, files: &[PathBuf], depth: usize) -> Fate {
        let known: Vec<&PathBuf> = files.iter().filter(|file| self.outside.contains_key(*file)).collect();
        if known.is_empty() || depth >= DEEPEST {
            return Fate::Dropped;
        }
        let mut lines = String::new();
        for file in known {
            let _ = writeln!(lines, "{MARK}from {}:", file.display());
            lines += &self.rewrite(&self.outside[file], file, false, depth + 1);
            if !lines.ends_with('\n') {
                lines.push('\n');
            }
        }
        Fate::Replaced(lines)
    }

    fn setting(&self, name: &str, value: &str, in_place: bool) -> Fate {
        let path = Path::new(value);
        match name {
            "data_directory" | "config_file" | "external_pid_file" => Fate::Dropped,
            // Up to 14 two servers would share the directory of their statistics.
            "stats_temp_directory" | "log_directory" if path.is_absolute() => Fate::Dropped,
            "hba_file" | "ident_file" => match path.strip_prefix(self.original) {
                Ok(inside) => {
                    let new = self.data_dir.join(inside).display().to_string().replace('\'', "''");
                    Fate::Replaced(format!("{name} = '{new}'\n"))
                }
                Err(_) if in_place && !path.is_absolute() => Fate::Kept,
                Err(_) => Fate::Dropped,
            },
            _ => Fate::Kept,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rewrite(text: &str, path: &str, in_place: bool, outside: &[(&str, &str)]) -> String {
        let outside = outside.iter().map(|(path, text)| (PathBuf::from(path), (*text).to_owned())).collect();
        let copy = Copy {
            original: Path::new("/var/lib/pg"),
            data_dir: Path::new("/copy"),
            outside,
            inside: RefCell::default(),
        };
        copy.rewrite(text, Path::new(path), in_place, 0)
    }

    #[test]
    fn nothing_leads_back_to_the_original() {
        let text = "data_directory = '/var/lib/pg'\nhba_file = '/etc/pg/pg_hba.conf'\nport = 5432\n\
                    external_pid_file = '/run/x.pid'\nident_file='/var/lib/pg/i.conf'\ninclude_dir = 'conf.d'\n\
                    include '/etc/other.conf'";
        let outside = [
            ("/etc/pg/conf.d/b.conf", "work_mem = 1MB"),
            ("/etc/pg/conf.d/a.conf", "DATA_DIRECTORY '/x'\n"),
            ("/etc/pg/conf.d/c.conf.bak", "no"),
        ];
        assert_eq!(
            rewrite(text, "/etc/pg/postgresql.conf", false, &outside),
            "#walden# data_directory = '/var/lib/pg'\n#walden# hba_file = '/etc/pg/pg_hba.conf'\nport = 5432\n\
             #walden# external_pid_file = '/run/x.pid'\n#walden# ident_file='/var/lib/pg/i.conf'\n\
             ident_file = '/copy/i.conf'\n#walden# include_dir = 'conf.d'\n#walden# from /etc/pg/conf.d/a.conf:\n\
             #walden# DATA_DIRECTORY '/x'\n#walden# from /etc/pg/conf.d/b.conf:\nwork_mem = 1MB\n\
             #walden# include '/etc/other.conf'"
        );
    }

    #[test]
    fn a_file_inside_keeps_what_stays_inside() {
        let text = "include 'mine.conf'\nhba_file = 'hba'\nlog_directory = 'log'\n";
        assert_eq!(rewrite(text, "/var/lib/pg/postgresql.conf", true, &[]), text);
        let absolute = "include '/var/lib/pg/mine.conf'\n";
        let copied = "#walden# include '/var/lib/pg/mine.conf'\ninclude_if_exists '/copy/mine.conf'\n";
        assert_eq!(rewrite(absolute, "/var/lib/pg/postgresql.conf", true, &[]), copied);
        assert_eq!(rewrite(absolute, "/etc/pg/postgresql.conf", false, &[]), copied);
        let outside = [("/etc/x.conf", "include '/etc/x.conf'\n")];
        let looped = rewrite("include '/etc/x.conf'\n", "/var/lib/pg/postgresql.conf", true, &outside);
        assert!(looped.lines().count() < 50 && looped.lines().all(|line| line.starts_with(MARK)), "{looped}");
    }
}
