//! Reading a backup's objects and writing what is in them, several at once.

use super::layout::{ExtentRecord, Layout};
use super::restore::Source;
use crate::codec::{Opener, reading_failed};
use crate::durable::at;
use crate::kind::{Context, Error, Kind, Result};
use crate::parallel::each_in_parallel;
use crate::progress::Progress;
use crate::repository::backup::{BackupSummary, StoredObject};
use bytes::{Buf, Bytes};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// How much is read and written at a time.
pub const CHUNK: usize = 256 * 1024;

/// What the layout and the objects that are being read may take in memory together.
const MEMORY: u64 = 176 << 20;
/// What the objects may take in any case: one of the largest size.
const SMALLEST_SHARE: u64 = 40 << 20;

/// Fetches an object and uses it. While a copy cannot be fetched or turns out corrupt, the next one is taken.
pub fn with_copies<T>(
    source: &dyn Source,
    object: &StoredObject,
    mut using: impl FnMut(Bytes) -> Result<T>,
) -> Result<T> {
    let mut last: Option<Error> = None;
    for copy in 0.. {
        if let Some(error) = &last {
            tracing::warn!("{error}; looking for another copy");
        }
        let error = match source.get(object, copy) {
            Ok(None) => break,
            Ok(Some(bytes)) => {
                let used = if object.matches(&bytes) { using(bytes) } else { Err(differs(object, &bytes)) };
                match used {
                    Ok(used) => return Ok(used),
                    Err(error) => {
                        error.context(format!("object \"{}\" in {}", object.name, source.name(copy)))
                    }
                }
            }
            Err(error) => error,
        };
        // A full disk or a missing identity is not mended by another copy.
        if !matches!(error.kind(), Kind::Corrupt | Kind::Repository | Kind::Absent) {
            return Err(error);
        }
        last = Some(error);
    }
    Err(last.unwrap_or_else(|| {
        Error::new(Kind::Repository, format!("object \"{}\": no repository holds it", object.name))
    }))
}

fn differs(object: &StoredObject, bytes: &[u8]) -> Error {
    Error::corrupt(format!(
        "{} bytes with CRC-32 {:08x}, expected {} with {:08x}",
        bytes.len(),
        crc32fast::hash(bytes),
        object.size,
        object.crc32
    ))
}

/// The pieces of a backup on their way into a directory.
pub struct Pieces<'a> {
    /// The backup.
    pub summary: &'a BackupSummary,
    /// Where its objects come from.
    pub source: &'a dyn Source,
    /// Decrypts and decompresses.
    pub opener: &'a Opener,
    /// What is where.
    pub layout: &'a Layout,
    /// Where it goes; its directories are there.
    pub data_dir: &'a Path,
    /// Counts bytes of content.
    pub progress: &'a Progress,
    /// Which extents are wanted, by their number; none for all of them.
    pub wanted: Option<&'a [bool]>,
}

impl Pieces<'_> {
    /// Writes all files but the control file, whose content is returned. Nothing is durable yet.
    pub fn restore_all(&self, parallel: usize) -> Result<Vec<u8>> {
        let largest = self.summary.pieces.iter().map(|piece| piece.size).max().unwrap_or(0).max(1);
        let share = MEMORY.saturating_sub(self.layout.memory()).max(SMALLEST_SHARE);
        let workers = parallel.clamp(1, 64).min((share / largest).max(1) as usize);
        let control_file = Mutex::new(Vec::new());
        each_in_parallel(workers, self.summary.pieces.len(), |number| {
            self.restore_piece(number, &control_file)
        })?;
        Ok(control_file.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn restore_piece(&self, number: usize, control_file: &Mutex<Vec<u8>>) -> Result<()> {
        let wanted = |at: &usize| self.wanted.is_none_or(|wanted| wanted[*at]);
        let extents: Vec<&ExtentRecord> =
            self.layout.extents_of(number as u32).filter(wanted).map(|at| self.layout.extent(at)).collect();
        if extents.is_empty() {
            return Ok(());
        }
        let object = &self.summary.pieces[number];
        with_copies(self.source, object, |bytes| {
            let mut reader = self.opener.open(&object.name, bytes.reader())?;
            let (mut position, mut buffer, mut written) = (0, vec![0; CHUNK], 0);
            let result = extents.iter().try_for_each(|extent| {
                let gap = extent.at.checked_sub(position).ok_or_else(|| Error::corrupt("extents overlap"))?;
                skip(&mut reader, gap)?;
                position = extent.at + extent.length;
                self.restore_extent(extent, &mut reader, &mut buffer, control_file)?;
                written += extent.length;
                Ok(())
            });
            if result.is_ok() {
                self.progress.add(written);
            }
            result
        })
    }

    fn restore_extent(
        &self,
        extent: &ExtentRecord,
        reader: &mut dyn Read,
        buffer: &mut [u8],
        control_file: &Mutex<Vec<u8>>,
    ) -> Result<()> {
        let (record, is_control_file) = self.layout.file_of(extent);
        let path = self.data_dir.join(record.path);
        let file = if is_control_file { None } else { Some(create(&path)?) };
        let mut memory = Vec::new();
        read_extent(self.layout, extent, reader, buffer, |offset, chunk| {
            match &file {
                Some(file) => file.write_all_at(chunk, offset).map_err(at(&path)).context("write file")?,
                None => memory.extend_from_slice(chunk),
            }
            Ok(())
        })?;
        if is_control_file {
            *control_file.lock().unwrap_or_else(PoisonError::into_inner) = memory;
        }
        Ok(())
    }
}

/// Checks the content of a piece, whose stored bytes these are, to its end: every extent that the layout has in it.
pub fn check_piece(
    layout: &Layout,
    number: u32,
    object: &StoredObject,
    stored: Bytes,
    opener: &Opener,
) -> Result<()> {
    let mut reader = opener.open(&object.name, stored.reader())?;
    let (mut position, mut buffer) = (0, vec![0; CHUNK]);
    for extent in layout.extents_of(number).map(|at| layout.extent(at)) {
        let gap = extent.at.checked_sub(position).ok_or_else(|| Error::corrupt("extents overlap"))?;
        skip(&mut reader, gap)?;
        position = extent.at + extent.length;
        read_extent(layout, extent, &mut reader, &mut buffer, |_, _| Ok(()))?;
    }
    std::io::copy(&mut reader, &mut std::io::sink()).map_err(|error| reading_failed(&error))?;
    Ok(())
}

/// Reads the content of an extent and hands it on with its place in the file; checks its CRC-32C.
fn read_extent(
    layout: &Layout,
    extent: &ExtentRecord,
    reader: &mut dyn Read,
    buffer: &mut [u8],
    mut take: impl FnMut(u64, &[u8]) -> Result<()>,
) -> Result<()> {
    let (mut done, mut crc) = (0, 0);
    while done < extent.length {
        let wanted = (extent.length - done).min(buffer.len() as u64) as usize;
        let chunk = &mut buffer[..wanted];
        reader.read_exact(chunk).map_err(|error| reading_failed(&error))?;
        crc = crc32c::crc32c_append(crc, chunk);
        take(extent.offset + done, chunk)?;
        done += wanted as u64;
    }
    if crc != extent.crc32c {
        return Err(Error::corrupt(format!(
            "file \"{}\" has CRC-32C {crc:08x} from byte {}, expected {:08x}",
            layout.file_of(extent).0.path.display(),
            extent.offset,
            extent.crc32c
        )));
    }
    Ok(())
}

fn create(path: &Path) -> Result<File> {
    let mut options = OpenOptions::new();
    options
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits());
    options.open(path).map_err(at(path)).context("create file")
}

fn skip(reader: &mut dyn Read, bytes: u64) -> Result<()> {
    let skipped =
        std::io::copy(&mut reader.take(bytes), &mut std::io::sink()).map_err(|e| reading_failed(&e))?;
    if skipped == bytes { Ok(()) } else { Err(Error::corrupt("the object ends early")) }
}
