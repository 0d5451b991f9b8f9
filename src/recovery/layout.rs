//! A backup's manifest in little memory: some hundred bytes a file, so that a million files are no trouble.

use crate::kind::{Error, Result};
use crate::repository::backup::{BackupSummary, FileKind, ManifestLine};
use std::ffi::OsStr;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path};

/// The control file, which is written after all others.
pub const CONTROL_FILE: &str = "global/pg_control";

/// A file or directory of the backup.
#[derive(Debug, Clone, Copy)]
pub struct FileRecord<'a> {
    /// The path, relative to the data directory; `.` for that itself.
    pub path: &'a Path,
    /// The permissions.
    pub mode: u32,
    /// When it was changed, in seconds since 1970.
    pub mtime: i64,
    /// The bytes of content.
    pub size: u64,
}

/// A part of a file in a piece.
#[derive(Debug, Clone, Copy)]
pub struct ExtentRecord {
    piece: u32,
    file: u32,
    /// Where the content begins in the piece's plaintext.
    pub at: u64,
    /// Where it belongs in the file.
    pub offset: u64,
    /// The bytes of content.
    pub length: u64,
    /// Their CRC-32C.
    pub crc32c: u32,
}

#[derive(Debug, Clone, Copy)]
struct Packed {
    path_at: u64,
    path_length: u32,
    mode: u32,
    mtime: i64,
    size: u64,
}

/// The files and directories of a backup, and where their contents are.
#[derive(Debug, Default)]
pub struct Layout {
    paths: Vec<u8>,
    files: Vec<Packed>,
    directories: Vec<Packed>,
    extents: Vec<ExtentRecord>,
    control_file: Option<u32>,
}

impl ExtentRecord {
    /// Returns the number of the file.
    pub fn file_number(&self) -> usize {
        self.file as usize
    }
}

impl Layout {
    /// Returns the number of files, the control file included.
    pub fn file_count(&self) -> usize {
        self.files.len()
    }

    /// Returns the file of that number; none if it is the control file.
    pub fn file(&self, at: usize) -> Option<FileRecord<'_>> {
        (self.control_file != Some(at as u32)).then(|| self.unpack(&self.files[at]))
    }

    /// Returns the files, without the control file.
    pub fn files(&self) -> impl Iterator<Item = FileRecord<'_>> {
        (0..self.files.len()).filter_map(|at| self.file(at))
    }

    /// Returns about how many bytes of memory the layout takes.
    pub fn memory(&self) -> u64 {
        let packed = size_of_val(self.files.as_slice()) + size_of_val(self.directories.as_slice());
        (packed + self.paths.len() + size_of_val(self.extents.as_slice())) as u64
    }

    /// Returns the directories, each after the one that it is in.
    pub fn directories(&self) -> impl Iterator<Item = FileRecord<'_>> {
        self.directories.iter().map(|directory| self.unpack(directory))
    }

    /// Returns the control file.
    pub fn control_file(&self) -> Option<FileRecord<'_>> {
        self.control_file.map(|at| self.unpack(&self.files[at as usize]))
    }

    /// Returns the number of extents.
    pub fn extent_count(&self) -> usize {
        self.extents.len()
    }

    /// Returns the extent of that number.
    pub fn extent(&self, at: usize) -> &ExtentRecord {
        &self.extents[at]
    }

    /// Returns the numbers of the extents in a piece, in the piece's order.
    pub fn extents_of(&self, piece: u32) -> Range<usize> {
        let begin = self.extents.partition_point(|extent| extent.piece < piece);
        begin..self.extents.partition_point(|extent| extent.piece <= piece)
    }

    /// Returns the file of an extent, and whether it is the control file.
    pub fn file_of(&self, extent: &ExtentRecord) -> (FileRecord<'_>, bool) {
        (self.unpack(&self.files[extent.file as usize]), self.control_file == Some(extent.file))
    }

    fn unpack(&self, packed: &Packed) -> FileRecord<'_> {
        let bytes = &self.paths[packed.path_at as usize..][..packed.path_length as usize];
        FileRecord {
            path: Path::new(OsStr::from_bytes(bytes)),
            mode: packed.mode,
            mtime: packed.mtime,
            size: packed.size,
        }
    }
}

/// Makes a layout from the lines of a manifest, and checks that they are consistent.
#[derive(Debug)]
pub struct LayoutBuilder {
    layout: Layout,
    pieces: u32,
}

impl LayoutBuilder {
    /// Returns a builder for the manifest of that backup.
    pub fn new(summary: &BackupSummary) -> Self {
        Self { layout: Layout::default(), pieces: summary.pieces.len() as u32 }
    }

    /// Adds a line.
    pub fn add(&mut self, line: &ManifestLine) -> Result<()> {
        let bad = |what: String| Error::corrupt(format!("manifest, \"{}\": {what}", line.path.display()));
        // Whoever knows the recipients can write a manifest: it must not lead out of the data directory.
        let inside =
            line.path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
        if !inside || line.path.as_os_str().is_empty() {
            return Err(bad("the path leads out of the data directory".into()));
        }
        let path = line.path.as_os_str().as_bytes();
        let layout = &mut self.layout;
        let packed = Packed {
            path_at: layout.paths.len() as u64,
            path_length: path.len() as u32,
            mode: line.mode & 0o7777,
            mtime: line.mtime,
            size: line.size,
        };
        layout.paths.extend_from_slice(path);
        if line.kind == FileKind::Directory {
            layout.directories.push(packed);
            return Ok(());
        }
        let file = layout.files.len() as u32;
        layout.files.push(packed);
        if line.path == Path::new(CONTROL_FILE) {
            layout.control_file = Some(file);
        }
        let (mut offset, mut crc) = (0_u64, 0);
        for extent in &line.extents {
            if let Some(backup) = &extent.backup {
                return Err(bad(format!(
                    "its content is in backup {backup}, which this version cannot follow"
                )));
            }
            if extent.piece >= self.pieces {
                return Err(bad(format!("there is no piece {}", extent.piece)));
            }
            layout.extents.push(ExtentRecord {
                piece: extent.piece,
                file,
                at: extent.at,
                offset,
                length: extent.length,
                crc32c: extent.crc32c,
            });
            offset = offset.saturating_add(extent.length);
            crc = crc32c::crc32c_combine(crc, extent.crc32c, extent.length as usize);
        }
        if offset != line.size {
            return Err(bad(format!("its parts have {offset} bytes, expected {}", line.size)));
        }
        if Some(crc) != line.crc32c {
            return Err(bad("its CRC-32C is not that of its parts".into()));
        }
        Ok(())
    }

    /// Returns the layout of the whole manifest.
    pub fn finish(self) -> Result<Layout> {
        let mut layout = self.layout;
        if layout.control_file.is_none() {
            return Err(Error::corrupt(format!("manifest: there is no \"{CONTROL_FILE}\"")));
        }
        layout.extents.sort_unstable_by_key(|extent| (extent.piece, extent.at));
        let paths = &layout.paths;
        let path = |packed: &Packed| &paths[packed.path_at as usize..][..packed.path_length as usize];
        layout.directories.sort_unstable_by(|a, b| path(a).cmp(path(b)));
        layout.paths.shrink_to_fit();
        layout.extents.shrink_to_fit();
        layout.files.shrink_to_fit();
        Ok(layout)
    }
}
