//! Cutting the tar stream into pieces: which bytes of which file go where. Files are opened here, and their sizes
//! fixed, so that the pieces can be built independently of each other.

use super::files::{Entry, Tree};
use super::names::RelationFile;
use super::resume::Paths;
use super::tar_stream::{self, Attributes, BLOCK};
use super::unchanged::Identity;
use crate::durable::at;
use crate::kind::{Context, Error, Result};
use crate::postgres::BLOCK_SIZE;
use bytes::Bytes;
use std::fs::File;
use std::io::{self, Read};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

/// Where the content of an item comes from.
pub enum Content {
    /// There is none: a directory, or an empty file.
    Empty,
    /// A file that the server may be writing.
    Disk(File),
    /// Bytes in memory.
    Memory(Bytes),
    /// A stream that is read once, in order.
    Stream(Mutex<Box<dyn Read + Send>>),
}

/// A file or directory with its place in the tar stream.
pub struct Item {
    /// The number in the order of the stream.
    pub number: u64,
    /// The path in the backup.
    pub path: PathBuf,
    /// Whether it is a directory.
    pub directory: bool,
    /// Mode, time and owner.
    pub attributes: Attributes,
    /// The size, as it was when the file was opened.
    pub size: u64,
    /// What its name says, if it holds pages.
    pub relation: Option<RelationFile>,
    /// What it was when it was opened; none for what is no settled file.
    pub identity: Option<Identity>,
    /// The content.
    pub content: Content,
}

/// Where a layout begins.
#[derive(Debug, Clone, Copy, Default)]
pub struct First {
    /// The number of the first piece.
    pub piece: u32,
    /// The number of the first item.
    pub item: u64,
}

/// Consecutive bytes of an item in a piece.
pub struct Part {
    /// The item.
    pub item: Arc<Item>,
    /// The header before the content; empty unless the item begins here.
    pub header: Vec<u8>,
    /// Where in the content the part begins.
    pub offset: u64,
    /// The bytes of content.
    pub length: u64,
    /// The zeros behind the content.
    pub padding: u64,
    /// Which of the item's parts it is, from 0.
    pub index: u32,
    /// Whether it is the item's last.
    pub last: bool,
}

/// A piece of the tar stream.
#[derive(Default)]
pub struct Piece {
    /// The number, from 0.
    pub number: u32,
    /// What is in it.
    pub parts: Vec<Part>,
    /// Zeros behind the parts: the end of the tar stream.
    pub end: u64,
    /// The size, in bytes.
    pub length: u64,
}

/// How large pieces may get.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// The bytes of a piece before compression.
    pub bytes: u64,
    /// The items of a piece: as many files are open at once.
    pub items: usize,
}

/// Lays items out one after the other and hands on each piece that is full. A file is cut only if it is larger than a
/// piece, and shares none with others then: so a later attempt can keep a piece without regard to its neighbours.
pub struct Layout<'a> {
    limits: Limits,
    piece: Piece,
    items: u64,
    emit: &'a mut dyn FnMut(Piece) -> Result<()>,
}

impl<'a> Layout<'a> {
    /// Returns a layout that begins at `first`.
    pub fn new(limits: Limits, first: First, emit: &'a mut dyn FnMut(Piece) -> Result<()>) -> Self {
        Self { limits, piece: Piece { number: first.piece, ..Piece::default() }, items: first.item, emit }
    }

    /// Adds a directory.
    pub fn directory(&mut self, path: PathBuf, attributes: Attributes) -> Result<()> {
        // The data directory itself is not in the stream: extracting must not change the directory extracted into.
        let header = if path.as_os_str() == "." {
            Vec::new()
        } else {
            tar_stream::directory_header(&path, attributes)
        };
        self.add(header, |number| Item {
            number,
            path,
            directory: true,
            attributes,
            size: 0,
            relation: None,
            identity: None,
            content: Content::Empty,
        })
    }

    /// Adds a file of `size` bytes.
    pub fn file(
        &mut self,
        path: PathBuf,
        attributes: Attributes,
        size: u64,
        relation: Option<RelationFile>,
        identity: Option<Identity>,
        content: Content,
    ) -> Result<()> {
        let header = tar_stream::file_header(&path, size, attributes);
        // An empty file need not stay open.
        let content = if size == 0 { Content::Empty } else { content };
        self.add(header, |number| Item {
            number,
            path,
            directory: false,
            attributes,
            size,
            relation,
            identity,
            content,
        })
    }

    fn room(&self) -> u64 {
        self.limits.bytes.saturating_sub(self.piece.length)
    }

    fn add(&mut self, header: Vec<u8>, item: impl FnOnce(u64) -> Item) -> Result<()> {
        let item = Arc::new(item(self.items));
        self.items += 1;
        let wanted = header.len() as u64 + item.size.next_multiple_of(BLOCK);
        if wanted > self.room() || self.piece.parts.len() >= self.limits.items {
            self.flush()?;
        }
        self.piece.length += header.len() as u64;
        let (mut header, mut offset, mut index) = (header, 0, 0);
        loop {
            let rest = item.size - offset;
            let whole = rest + tar_stream::padding(rest) <= self.room();
            // A cut falls between two pages, so that every page is checked in one piece.
            let length = if whole { rest } else { self.room() / BLOCK_SIZE as u64 * BLOCK_SIZE as u64 };
            let padding = if whole { tar_stream::padding(rest) } else { 0 };
            self.piece.length += length + padding;
            self.piece.parts.push(Part {
                item: Arc::clone(&item),
                header: std::mem::take(&mut header),
                offset,
                length,
                padding,
                index,
                last: whole,
            });
            if whole {
                return if index > 0 { self.flush() } else { Ok(()) };
            }
            (offset, index) = (offset + length, index + 1);
            self.flush()?;
        }
    }

    /// Adds the end of the tar stream.
    pub fn end_of_stream(&mut self) -> Result<()> {
        if self.room() < tar_stream::END {
            self.flush()?;
        }
        self.piece.end = tar_stream::END;
        self.piece.length += tar_stream::END;
        Ok(())
    }

    /// Hands on the last piece, and returns the number of the one that would follow.
    pub fn finish(mut self) -> Result<u32> {
        self.flush()?;
        Ok(self.piece.number)
    }

    fn flush(&mut self) -> Result<()> {
        if self.piece.parts.is_empty() && self.piece.end == 0 {
            return Ok(());
        }
        let next = Piece { number: self.piece.number + 1, ..Piece::default() };
        (self.emit)(std::mem::replace(&mut self.piece, next))
    }
}

/// Walks the data directory, lays out what belongs into the backup and is not in it yet, and returns the number of the
/// piece that follows. A file that is gone when it is to be opened is left out: replay drops it again.
pub fn lay_out(
    tree: &Tree,
    limits: Limits,
    first: First,
    present: &Paths,
    emit: &mut dyn FnMut(Piece) -> Result<()>,
) -> Result<u32> {
    let mut layout = Layout::new(limits, first, emit);
    tree.walk(&mut |entry| match entry {
        Entry::Directory { path, .. } | Entry::File { path, .. } if present.contains(&path) => Ok(()),
        Entry::Directory { path, attributes } => layout.directory(path, attributes),
        Entry::File { path, on_disk, relation } => {
            let (file, meta) = match File::open(&on_disk).and_then(|file| file.metadata().map(|meta| (file, meta))) {
                Ok(opened) => opened,
                Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                    return Err(Error::other(at(&on_disk)(error).to_string()).context("read data directory").with_hint(
                        "run base-backup as the user that the server runs as, or as one that may read all of its files",
                    ));
                }
                Err(error) => return Err(at(&on_disk)(error)).context("open file"),
            };
            let identity = Identity::of(&meta);
            layout.file(path, Attributes::of(&meta), meta.len(), relation, identity, Content::Disk(file))
        }
    })?;
    layout.finish()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const ATTRIBUTES: Attributes = Attributes { mode: 0o600, mtime: 0, uid: 0, gid: 0 };

    fn pieces(limits: Limits, sizes: &[u64]) -> Vec<Piece> {
        let mut pieces = Vec::new();
        let mut emit = |piece| {
            pieces.push(piece);
            Ok(())
        };
        let mut layout = Layout::new(limits, First::default(), &mut emit);
        for (at, size) in sizes.iter().enumerate() {
            let content = Content::Memory(Bytes::new());
            layout.file(PathBuf::from(format!("f{at}")), ATTRIBUTES, *size, None, None, content).unwrap();
        }
        layout.end_of_stream().unwrap();
        layout.finish().unwrap();
        pieces
    }

    proptest! {
        #[test]
        fn pieces_are_bounded_and_hold_every_byte_once(
            sizes in prop::collection::vec(0u64..3_000_000, 1..40),
            items in 1usize..20,
        ) {
            let limits = Limits { bytes: 1 << 20, items };
            let pieces = pieces(limits, &sizes);
            let mut seen = vec![0; sizes.len()];
            let mut stream = 0;
            for (at, piece) in pieces.iter().enumerate() {
                prop_assert_eq!(piece.number as usize, at);
                prop_assert!(piece.length <= limits.bytes && piece.parts.len() <= items);
                let cut = |part: &Part| part.index > 0 || !part.last;
                prop_assert!(piece.parts.len() <= 1 || !piece.parts.iter().any(cut), "a cut file is alone");
                let mut length = piece.end;
                for part in &piece.parts {
                    let item = part.item.number as usize;
                    prop_assert_eq!(part.offset, seen[item]);
                    prop_assert_eq!(part.header.is_empty(), part.offset > 0);
                    prop_assert!(part.last || part.length % 8192 == 0);
                    seen[item] += part.length;
                    prop_assert_eq!(part.last, seen[item] == sizes[item]);
                    length += part.header.len() as u64 + part.length + part.padding;
                }
                prop_assert_eq!(length, piece.length);
                prop_assert_eq!(length % BLOCK, 0);
                stream += length;
            }
            let expected: u64 = sizes.iter().map(|size| BLOCK + size.next_multiple_of(BLOCK)).sum();
            prop_assert_eq!(stream, expected + tar_stream::END);
            prop_assert_eq!(seen, sizes);
        }
    }
}
