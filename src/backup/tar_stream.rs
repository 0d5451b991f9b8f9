//! Headers of the tar stream, as GNU tar writes and reads them.

use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use tar::{EntryType, Header};

/// The unit of a tar stream: headers are blocks of this size, and contents are filled up to it.
pub const BLOCK: u64 = 512;

/// The bytes that end a tar stream: two blocks of zeros.
pub const END: u64 = 2 * BLOCK;

/// Returns how many zeros follow `size` bytes of content.
pub fn padding(size: u64) -> u64 {
    size.next_multiple_of(BLOCK) - size
}

/// What a header says besides name and size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Attributes {
    /// The permissions (`0o7777`).
    pub mode: u32,
    /// When the file was changed, in seconds since 1970.
    pub mtime: i64,
    /// The owner.
    pub uid: u32,
    /// The group.
    pub gid: u32,
}

impl Attributes {
    /// Returns what the metadata says.
    pub fn of(meta: &std::fs::Metadata) -> Self {
        Self { mode: meta.mode() & 0o7777, mtime: meta.mtime(), uid: meta.uid(), gid: meta.gid() }
    }
}

/// Returns the header of a regular file.
pub fn file_header(path: &Path, size: u64, attributes: Attributes) -> Vec<u8> {
    header(path.as_os_str().as_bytes(), EntryType::Regular, size, attributes)
}

/// Returns the header of a directory.
pub fn directory_header(path: &Path, attributes: Attributes) -> Vec<u8> {
    let mut name = path.as_os_str().as_bytes().to_vec();
    name.push(b'/');
    header(&name, EntryType::Directory, 0, attributes)
}

fn header(name: &[u8], kind: EntryType, size: u64, attributes: Attributes) -> Vec<u8> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_size(size);
    header.set_mode(attributes.mode);
    header.set_mtime(attributes.mtime.max(0).cast_unsigned());
    header.set_uid(attributes.uid.into());
    header.set_gid(attributes.gid.into());
    let field = &mut header.as_old_mut().name;
    let short = name.len().min(field.len());
    field[..short].copy_from_slice(&name[..short]);
    header.set_cksum();
    if short == name.len() {
        return header.as_bytes().to_vec();
    }
    let mut long = long_name(name);
    long.extend_from_slice(header.as_bytes());
    long
}

/// Returns the entry that gives the name of the entry behind it, for names of more than 100 bytes.
fn long_name(name: &[u8]) -> Vec<u8> {
    const LONG_LINK: &[u8] = b"././@LongLink";
    let size = name.len() as u64 + 1;
    let mut header = Header::new_gnu();
    header.as_old_mut().name[..LONG_LINK.len()].copy_from_slice(LONG_LINK);
    header.set_entry_type(EntryType::GNULongName);
    header.set_size(size);
    header.set_mode(0o644);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.extend_from_slice(name);
    bytes.resize(bytes.len() + 1 + padding(size) as usize, 0);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::io::Read;

    #[test]
    fn the_tar_crate_reads_what_is_written_here() {
        let attributes = Attributes { mode: 0o600, mtime: 1_700_000_000, uid: 70, gid: 71 };
        let long = format!("log/{}", "x".repeat(150));
        let exact = "y".repeat(100);
        let odd = OsStr::from_bytes(b"log/\xff");
        let mut stream = Vec::new();
        for path in [Path::new("base/5/1259"), Path::new(&long), Path::new(&exact), Path::new(odd)] {
            stream.extend(file_header(path, 3, attributes));
            stream.extend_from_slice(b"abc");
            stream.resize(stream.len() + padding(3) as usize, 0);
        }
        stream.extend(directory_header(Path::new("pg_wal"), attributes));
        stream.resize(stream.len() + END as usize, 0);
        assert_eq!(stream.len() as u64 % BLOCK, 0);

        let mut archive = tar::Archive::new(&stream[..]);
        let mut names = Vec::new();
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            names.push(entry.path_bytes().into_owned());
            let header = entry.header().clone();
            assert_eq!(
                (header.mode().unwrap(), header.uid().unwrap(), header.mtime().unwrap()),
                (0o600, 70, 1_700_000_000)
            );
            let mut content = String::new();
            entry.read_to_string(&mut content).unwrap();
            assert_eq!(content, if header.entry_type().is_dir() { "" } else { "abc" });
        }
        assert_eq!(names, [&b"base/5/1259"[..], long.as_bytes(), exact.as_bytes(), b"log/\xff", b"pg_wal/"]);
    }
}
