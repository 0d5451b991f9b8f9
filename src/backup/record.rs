//! Keeping account of what was read: the lines of the manifest, as files are completed.

use super::names::RelationFile;
use super::pages::Findings;
use super::pieces::PartDone;
use crate::kind::{Context, Error, Result};
use crate::postgres::Lsn;
use crate::repository::backup::{FileKind, ManifestLine};
use std::collections::HashMap;
use std::io::{BufRead, BufReader, BufWriter, Read, Seek, Write};
use std::path::Path;
use tempfile::SpooledTempFile;

/// How much is kept in memory before a temporary file takes over: the lines of about 100,000 files.
const IN_MEMORY: usize = 24 << 20;

/// Bytes that are written once and then read, in memory or in an unnamed temporary file.
#[derive(Debug)]
pub struct Spool {
    file: BufWriter<SpooledTempFile>,
    length: u64,
}

impl Spool {
    /// Returns an empty spool whose file, if it needs one, is made in `dir`.
    pub fn new(dir: &Path) -> Self {
        Self { file: BufWriter::new(tempfile::spooled_tempfile_in(IN_MEMORY, dir)), length: 0 }
    }

    /// Returns how many bytes were written.
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Returns a reader from the beginning; what is written later is not read.
    pub fn rewind(&mut self) -> Result<impl Read + '_> {
        self.file.flush().and_then(|()| self.file.get_mut().rewind()).context("read temporary file")?;
        Ok(self.file.get_mut().take(self.length))
    }

    /// Returns a reader that owns the spool.
    pub fn into_reader(self) -> Result<impl Read + Send> {
        let mut file = self
            .file
            .into_inner()
            .map_err(std::io::IntoInnerError::into_error)
            .context("write temporary file")?;
        file.rewind().context("read temporary file")?;
        Ok(BufReader::with_capacity(64 * 1024, file))
    }
}

impl Write for Spool {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let written = self.file.write(buf)?;
        self.length += written as u64;
        Ok(written)
    }
    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

/// Turns parts into lines of the manifest.
#[derive(Default)]
struct Parts {
    /// Items of which some parts are still to come.
    incomplete: HashMap<u64, Vec<PartDone>>,
}

impl Parts {
    /// Returns the item's parts in their order, once they are all there.
    fn add(&mut self, part: PartDone) -> Option<Vec<PartDone>> {
        if part.last && part.index == 0 {
            return Some(vec![part]);
        }
        let number = part.item.number;
        let parts = self.incomplete.entry(number).or_default();
        parts.push(part);
        let expected = parts.iter().find(|part| part.last)?.index as usize + 1;
        if parts.len() < expected {
            return None;
        }
        let mut parts = self.incomplete.remove(&number)?;
        parts.sort_by_key(|part| part.index);
        Some(parts)
    }
}

/// A file with pages whose checksum is wrong.
#[derive(Debug, Clone)]
pub struct BadFile {
    /// Its line of the manifest.
    pub line: ManifestLine,
    /// What its name says.
    pub relation: Option<RelationFile>,
}

/// The account of a backup.
pub struct Recorder {
    parts: Parts,
    lines: Spool,
    /// Files with pages of which only the backup's end tells whether they are good.
    held: Vec<(ManifestLine, Option<RelationFile>, Findings)>,
    /// Files so far.
    pub files: u64,
    /// Their bytes.
    pub size: u64,
    /// Bad pages in lines that were written.
    pub bad_pages: u64,
}

impl Recorder {
    /// Returns an empty account that keeps large amounts in `dir`.
    pub fn new(dir: &Path) -> Self {
        let lines = Spool::new(dir);
        Self { parts: Parts::default(), lines, held: Vec::new(), files: 0, size: 0, bad_pages: 0 }
    }

    /// Adds a part.
    pub fn add(&mut self, part: PartDone) -> Result<()> {
        let Some(parts) = self.parts.add(part) else { return Ok(()) };
        let Some(item) = parts.first().map(|part| part.item.clone()) else { return Ok(()) };
        let mut findings = Findings::default();
        let (mut extents, mut crc) = (Vec::with_capacity(parts.len()), 0);
        for part in parts {
            findings.merge(part.findings);
            if let Some(extent) = part.extent {
                crc = crc32c::crc32c_combine(crc, extent.crc32c, extent.length as usize);
                extents.push(extent);
            }
        }
        let line = ManifestLine {
            path: item.path.clone(),
            kind: if item.directory { FileKind::Directory } else { FileKind::File },
            mode: item.attributes.mode,
            mtime: item.attributes.mtime,
            size: item.size,
            crc32c: (!item.directory).then_some(crc),
            extents,
            bad_pages: None,
        };
        if !item.directory {
            self.files += 1;
            self.size += item.size;
        }
        if findings == Findings::default() {
            self.write(&line)
        } else {
            self.held.push((line, item.relation, findings));
            Ok(())
        }
    }

    fn write(&mut self, line: &ManifestLine) -> Result<()> {
        serde_json::to_writer(&mut self.lines, line).context("write manifest")?;
        self.lines.write_all(b"\n").context("write manifest")
    }

    /// Decides about pages that waited for the backup's end where WAL has come past them already: of very many files that
    /// change, few wait at any time.
    pub fn settle_up_to(&mut self, position: Lsn) -> Result<()> {
        for (line, relation, findings) in std::mem::take(&mut self.held) {
            if findings.is_good(position) {
                self.write(&line)?;
            } else {
                self.held.push((line, relation, findings));
            }
        }
        Ok(())
    }

    /// Decides about the pages that waited for the backup's end, and returns the files that have bad ones.
    pub fn settle(&mut self, stop_lsn: Lsn) -> Result<Vec<BadFile>> {
        if !self.parts.incomplete.is_empty() {
            return Err(Error::other(format!(
                "{} files were read in part only",
                self.parts.incomplete.len()
            )));
        }
        let mut bad_files = Vec::new();
        for (mut line, relation, findings) in std::mem::take(&mut self.held) {
            line.bad_pages = findings.settle(stop_lsn);
            match &line.bad_pages {
                None => self.write(&line)?,
                Some(bad) => {
                    self.bad_pages += bad.count;
                    bad_files.push(BadFile { line, relation });
                }
            }
        }
        Ok(bad_files)
    }

    /// Writes the lines of files with bad pages, once it is known whose they are.
    pub fn write_bad(&mut self, bad_files: &[BadFile]) -> Result<()> {
        bad_files.iter().try_for_each(|bad| self.write(&bad.line))
    }

    /// Returns the lines so far.
    pub fn lines(&mut self) -> Result<impl Iterator<Item = Result<ManifestLine>> + '_> {
        let reader = BufReader::with_capacity(64 * 1024, self.lines.rewind()?);
        Ok(reader
            .lines()
            .map(|line| serde_json::from_str(&line.context("read manifest")?).context("read manifest")))
    }

    /// Returns a reader over the text of the lines.
    pub fn text(&mut self) -> Result<impl Read + '_> {
        self.lines.rewind()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backup::plan::{Content, Item};
    use crate::backup::tar_stream::Attributes;
    use crate::repository::backup::BadPages;
    use std::sync::Arc;

    fn part(name: &str, newer: &[u64], bad: u64) -> PartDone {
        let bad = BadPages { count: bad, ..BadPages::default() };
        let newer = newer.iter().map(|&lsn| (Lsn(lsn), 1)).collect();
        let attributes = Attributes { mode: 0o600, mtime: 0, uid: 0, gid: 0 };
        let item = Item {
            number: 0,
            path: name.into(),
            directory: false,
            attributes,
            size: 8192,
            relation: None,
            identity: None,
            content: Content::Empty,
        };
        PartDone {
            item: Arc::new(item),
            extent: None,
            index: 0,
            last: true,
            findings: Findings { bad, newer },
        }
    }

    #[test]
    fn files_wait_only_as_long_as_their_pages_may_be_from_beyond_the_stop() {
        let mut recorder = Recorder::new(Path::new("/tmp"));
        for part in
            [part("old", &[], 0), part("new", &[10, 20], 0), part("forged", &[900], 0), part("bad", &[10], 1)]
        {
            recorder.add(part).unwrap();
        }
        let written = |recorder: &mut Recorder| {
            recorder.lines().unwrap().map(|line| line.unwrap().path.display().to_string()).collect::<Vec<_>>()
        };
        recorder.settle_up_to(Lsn(19)).unwrap();
        assert_eq!(written(&mut recorder), ["old"]);
        recorder.settle_up_to(Lsn(20)).unwrap();
        assert_eq!(written(&mut recorder), ["old", "new"]);
        assert_eq!(recorder.held.len(), 2);
        let bad = recorder.settle(Lsn(30)).unwrap();
        assert_eq!(
            bad.iter().map(|bad| bad.line.path.display().to_string()).collect::<Vec<_>>(),
            ["forged", "bad"]
        );
        assert_eq!((recorder.files, recorder.bad_pages), (4, 2));
    }
}
