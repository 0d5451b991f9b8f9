//! Configuration that lies outside the data directory (Debian's `/etc/postgresql/…`): without it a copy does not
//! start. It goes along as a small tar object, each file under its path without the leading slash.

use super::conf::{ConfLine, counts_in_directory};
use super::preflight::Preflight;
use super::tar_stream::{self, Attributes};
use crate::durable::at;
use crate::repository::backup::ExternalConfig;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// How deep files may include each other (`CONF_FILE_MAX_DEPTH`).
const DEEPEST: usize = 10;

/// The largest file that is taken for configuration, in bytes.
const LARGEST: u64 = 4 << 20;

/// Returns where the configuration outside the data directory is, and the tar file with it; none if there is none
/// that can be read. What cannot be read is left out with a warning: the backup is good without it.
pub fn collect(preflight: &Preflight) -> Option<(ExternalConfig, Vec<u8>)> {
    let mut files = Files { preflight, found: BTreeMap::new() };
    let mut external = ExternalConfig::default();
    let named = |name: &str| preflight.settings.get(name).filter(|path| !path.is_empty());
    for (name, place) in [
        ("config_file", &mut external.config_file),
        ("hba_file", &mut external.hba_file),
        ("ident_file", &mut external.ident_file),
    ] {
        if let Some(path) = named(name)
            && files.is_outside(Path::new(path))
            && files.take(Path::new(path))
        {
            *place = Some(path.clone());
        }
    }
    if let Some(path) = named("config_file") {
        let before: Vec<PathBuf> = files.found.keys().cloned().collect();
        files.follow_includes(Path::new(path), 0);
        let included = files.found.keys().filter(|path| !before.contains(path));
        external.included = included.map(|path| path.display().to_string()).collect();
    }
    if files.found.is_empty() {
        return None;
    }
    let mut stream = Vec::new();
    for (path, (attributes, content)) in &files.found {
        let name = path.strip_prefix("/").unwrap_or(path);
        let size = content.len() as u64;
        stream.extend(tar_stream::file_header(name, size, *attributes));
        stream.extend_from_slice(content);
        stream.resize(stream.len() + tar_stream::padding(size) as usize, 0);
    }
    stream.resize(stream.len() + tar_stream::END as usize, 0);
    Some((external, stream))
}

struct Files<'a> {
    preflight: &'a Preflight,
    /// By path as the configuration names it.
    found: BTreeMap<PathBuf, (Attributes, Vec<u8>)>,
}

impl Files<'_> {
    fn is_outside(&self, path: &Path) -> bool {
        let by_name = self.preflight.settings.get("data_directory").is_some_and(|dir| path.starts_with(dir));
        let resolved = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        !by_name && !resolved.starts_with(&self.preflight.data_dir)
    }

    /// Reads a file; returns whether that worked.
    fn take(&mut self, path: &Path) -> bool {
        match read(path) {
            Ok(file) => {
                self.found.insert(path.to_owned(), file);
                true
            }
            Err(error) => {
                tracing::warn!("configuration is not in the backup: {error}");
                false
            }
        }
    }

    /// Takes the files outside that `path` includes, and what these include.
    fn follow_includes(&mut self, path: &Path, depth: usize) {
        let text = match self.found.get(path) {
            Some((_, content)) => content.clone(),
            None => match read(path) {
                Ok((_, content)) => content,
                Err(_) => return,
            },
        };
        let dir = path.parent().unwrap_or(Path::new("/"));
        for line in String::from_utf8_lossy(&text).lines() {
            let included = match ConfLine::parse(line) {
                ConfLine::Include(file) => vec![dir.join(file)],
                ConfLine::IncludeDir(sub) => conf_files(&dir.join(sub)),
                _ => continue,
            };
            for file in included {
                if depth >= DEEPEST || !file.is_file() {
                    continue;
                }
                if self.is_outside(&file) && !self.found.contains_key(&file) && !self.take(&file) {
                    continue;
                }
                self.follow_includes(&file, depth + 1);
            }
        }
    }
}

/// Returns the files of an included directory, in the server's order.
fn conf_files(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|name| counts_in_directory(name))
        .map(|name| dir.join(name))
        .collect();
    files.sort();
    files
}

fn read(path: &Path) -> io::Result<(Attributes, Vec<u8>)> {
    let meta = std::fs::metadata(path).map_err(at(path))?;
    if !meta.is_file() || meta.len() > LARGEST {
        return Err(at(path)(io::Error::other("not a configuration file")));
    }
    Ok((Attributes::of(&meta), std::fs::read(path).map_err(at(path))?))
}
