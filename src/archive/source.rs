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
use std::io::{self, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

/// The size of a WAL page, in bytes; the server can be built with another, Walden refuses it (`wal_header`).
const WAL_PAGE: usize = 8192;

/// How much is read at a time, in bytes: whole pages, and few enough that all who look at them find them in the cache.
const PIECE: usize = 32 * WAL_PAGE;

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

    /// Reads the file from its beginning and hands it to `each` piece by piece. Returns the offset of the first page
    /// that bears another address than its own, where the file has pages. Fails when the file changed while it was
    /// read, and with the first error of `each`.
    pub fn pass(&mut self, mut each: impl FnMut(&[u8]) -> Result<()>) -> Result<Option<u64>> {
        let reading = format!("read \"{}\"", self.path.display());
        let changed = || Error::other("the file changed while it was read");
        let size = self.fingerprint.size;
        let mut buffer = vec![0; PIECE.min(size as usize + 1)];
        let (mut offset, mut stray) = (0, None);
        self.file.seek(SeekFrom::Start(0)).context(&reading)?;
        loop {
            let piece = fill(&self.file, &mut buffer).context(&reading)?;
            if piece.is_empty() {
                break;
            }
            if let Some(header) = &self.header {
                if offset == 0 {
                    self.check_header(piece)?;
                }
                let first = header.page_address + offset;
                stray = stray.or_else(|| stray_page(piece, first).map(|at| offset + at as u64));
            }
            offset += piece.len() as u64;
            if offset > size {
                return Err(changed());
            }
            each(piece)?;
        }
        if offset != size || !self.is_unchanged() {
            return Err(changed());
        }
        Ok(stray)
    }

    fn check_header(&self, bytes: &[u8]) -> Result<()> {
        let (ArchiveFileName::Segment(segment) | ArchiveFileName::Partial(segment)) = self.name else {
            return Ok(());
        };
        let header = SegmentHeader::parse(bytes).kind(Kind::Corrupt, "header")?;
        header.check(segment, self.fingerprint.size).kind(Kind::Corrupt, "header")?;
        if header.system_identifier != self.sysid {
            return Err(Error::corrupt("the system identifier in the header changed"));
        }
        Ok(())
    }

    /// Returns whether the path still leads to the same file with the same times.
    pub fn is_unchanged(&self) -> bool {
        let by_path = std::fs::metadata(&self.path).map(|meta| Fingerprint::from(&meta));
        let by_descriptor = self.file.metadata().map(|meta| Fingerprint::from(&meta));
        matches!((by_path, by_descriptor), (Ok(a), Ok(b)) if a == self.fingerprint && b == self.fingerprint)
    }
}

/// Reads until the buffer is full or the file ends.
fn fill<'b>(mut file: &File, buffer: &'b mut [u8]) -> io::Result<&'b [u8]> {
    let mut filled = 0;
    while filled < buffer.len() {
        match file.read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(&buffer[..filled])
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
