//! A file in `pg_wal` that is to be archived: its name, its header, and whether it is still the same after it was
//! read.
//!
//! The server may recycle a segment as soon as it was told that it is archived, and a call whose archiver died may
//! go on after another one said so. Recycling renames the file and writes over it. So after the read the path must
//! still lead to the same inode with the same times, and every page must bear its own address.

use crate::index::Fingerprint;
use crate::kind::{Context, Error, Kind, Result};
use crate::postgres::{ArchiveFileName, ControlFile, Lsn, SegmentHeader, SystemIdentifier};
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

/// The size of a WAL page, in bytes; the server can be built with another, Walden refuses it (`wal_header`).
const WAL_PAGE: usize = 8192;

/// A file in `pg_wal` and what was known of it before it was read.
#[derive(Debug)]
pub struct WalFile {
    path: PathBuf,
    file: File,
    /// The name.
    pub name: ArchiveFileName,
    /// The system identifier of the cluster that wrote it.
    pub sysid: SystemIdentifier,
    /// What it was when it was opened.
    pub fingerprint: Fingerprint,
    header: Option<SegmentHeader>,
}

/// Where the system identifier comes from when a file has none in its header.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The data directory of the configuration.
    pub data_dir: PathBuf,
    /// The system identifier that the user gave.
    pub system_identifier: Option<SystemIdentifier>,
}

impl WalFile {
    /// Opens the file at `path` and checks its name and, for segments, its header. Fails with [`Kind::Usage`] for a
    /// name that PostgreSQL does not archive, [`Kind::Corrupt`] where header and name disagree.
    pub fn open(path: &Path, origin: &Origin) -> Result<Self> {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let name: ArchiveFileName = name.parse().map_err(|_| {
            Error::usage(format!("\"{name}\" is not the name of a WAL file"))
                .with_hint("archive_command is 'walden archive-push %p'")
        })?;
        let mut file = File::open(path).context(format!("open \"{}\"", path.display()))?;
        let meta = file.metadata().context(format!("stat \"{}\"", path.display()))?;
        if !meta.is_file() {
            return Err(Error::other(format!("\"{}\" is not a file", path.display())));
        }
        let fingerprint = Fingerprint::from(&meta);
        let header = match name {
            ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment) => {
                let mut bytes = [0; SegmentHeader::LEN];
                file.read_exact(&mut bytes).kind(Kind::Corrupt, "read the header")?;
                let header = SegmentHeader::parse(&bytes).kind(Kind::Corrupt, "header")?;
                header.check(segment, meta.len()).kind(Kind::Corrupt, "header")?;
                Some(header)
            }
            _ => None,
        };
        let sysid = match &header {
            Some(header) => header.system_identifier,
            None => system_identifier_beside(path, origin)?,
        };
        Ok(Self { path: path.to_path_buf(), file, name, sysid, fingerprint, header })
    }

    /// Returns the path as it was given.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the content. Fails when the file changed while it was read.
    pub fn read(&mut self) -> Result<Vec<u8>> {
        let content = self.read_once()?;
        let Some(first) = self.first_page_address() else { return Ok(content) };
        let Some(stray) = stray_page(&content, first) else { return Ok(content) };
        if matches!(self.name, ArchiveFileName::Partial(_)) {
            return Ok(content); // its tail is what the recycled file held before
        }
        // Either somebody is writing over the file, which the second read shows, or the server itself wrote a bad
        // page, and there are no better bytes to be had.
        if self.read_once()? != content {
            return Err(Error::other("the file changed while it was read"));
        }
        tracing::warn!(
            "WAL segment \"{}\" has a page at offset {stray} that bears another address; archived as it is",
            self.name
        );
        Ok(content)
    }

    fn first_page_address(&self) -> Option<Lsn> {
        self.header.as_ref().map(|header| header.page_address)
    }

    fn read_once(&mut self) -> Result<Vec<u8>> {
        use std::io::{Seek, SeekFrom};
        let shown = self.path.display().to_string();
        let size = self.fingerprint.size as usize;
        let mut content = Vec::with_capacity(size);
        self.file.seek(SeekFrom::Start(0)).context(format!("read \"{shown}\""))?;
        (&self.file).take(size as u64 + 1).read_to_end(&mut content).context(format!("read \"{shown}\""))?;
        if content.len() != size || !self.is_unchanged() {
            return Err(Error::other("the file changed while it was read"));
        }
        if let (Some(_), ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment)) =
            (&self.header, self.name)
        {
            let header = SegmentHeader::parse(&content).kind(Kind::Corrupt, "header")?;
            header.check(segment, content.len() as u64).kind(Kind::Corrupt, "header")?;
            if header.system_identifier != self.sysid {
                return Err(Error::corrupt("the system identifier in the header changed"));
            }
        }
        Ok(content)
    }

    /// Returns whether the path still leads to the same file with the same times.
    pub fn is_unchanged(&self) -> bool {
        let by_path = std::fs::metadata(&self.path).map(|meta| Fingerprint::from(&meta));
        let by_descriptor = self.file.metadata().map(|meta| Fingerprint::from(&meta));
        matches!((by_path, by_descriptor), (Ok(a), Ok(b)) if a == self.fingerprint && b == self.fingerprint)
    }
}

/// Returns the offset of the first page whose address is neither its own nor zero.
fn stray_page(content: &[u8], first: Lsn) -> Option<usize> {
    content.chunks_exact(WAL_PAGE).enumerate().find_map(|(number, page)| {
        let offset = number * WAL_PAGE;
        let address = page.get(8..16)?.try_into().map(u64::from_le_bytes).ok()?;
        (address != 0 && address != first.0 + offset as u64).then_some(offset)
    })
}

/// Returns the system identifier of the data directory whose `pg_wal` holds `path`, going by the path as given,
/// since `pg_wal` may be a symbolic link; else that of the configured data directory, else the one that the user
/// gave. Fails with [`Kind::Config`].
pub fn system_identifier_beside(path: &Path, origin: &Origin) -> Result<SystemIdentifier> {
    if let Some(given) = origin.system_identifier {
        return Ok(given);
    }
    let beside = path.parent().map(|pg_wal| {
        let data_dir = pg_wal.parent().unwrap_or(Path::new(""));
        data_dir.join("global/pg_control")
    });
    let configured = origin.data_dir.join("global/pg_control");
    let mut problem = String::new();
    for candidate in beside.into_iter().chain([configured]) {
        match std::fs::read(&candidate) {
            Ok(bytes) => match ControlFile::parse(&bytes) {
                Ok(control) => return Ok(control.system_identifier),
                Err(error) => problem = format!("\"{}\": {error}", candidate.display()),
            },
            Err(error) => problem = format!("\"{}\": {error}", candidate.display()),
        }
    }
    Err(Error::config(format!("the system identifier of the cluster is not known: {problem}"))
        .with_hint("run in the data directory, or give --system-identifier"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_of_another_place_is_found_and_zeros_are_not_one() {
        let mut content = vec![0u8; 4 * WAL_PAGE];
        content[8..16].copy_from_slice(&0x0100_0000_u64.to_le_bytes());
        assert_eq!(stray_page(&content, Lsn(0x0100_0000)), None);
        let at = 2 * WAL_PAGE + 8;
        content[at..at + 8].copy_from_slice(&0x0900_4000_u64.to_le_bytes());
        assert_eq!(stray_page(&content, Lsn(0x0100_0000)), Some(2 * WAL_PAGE));
    }

    #[test]
    fn a_name_that_is_never_archived_is_a_wrong_command_line() {
        let error = WalFile::open(Path::new("/tmp/postgresql.conf"), &Origin::default()).unwrap_err();
        assert_eq!(error.kind(), Kind::Usage);
    }
}
