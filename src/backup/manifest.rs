//! PostgreSQL's own `backup_manifest`, so that `pg_verifybackup` can judge a restored directory (backup-manifest.sgml,
//! `backup_manifest.c`).

use crate::kind::{Context, Result};
use crate::postgres::{Lsn, SystemIdentifier, TimelineId};
use crate::repository::backup::{FileKind, ManifestLine};
use sha2::{Digest, Sha256};
use std::fmt::Write as _;
use std::io::Write;
use std::os::unix::ffi::OsStrExt;

/// What the manifest says besides the files.
#[derive(Debug, Clone, Copy)]
pub struct ManifestHead {
    /// The server's major version: manifests have version 1 up to 16, and version 2 from 17.
    pub major: u32,
    /// The system identifier.
    pub system_identifier: SystemIdentifier,
    /// The timeline of the WAL that the backup needs.
    pub timeline: TimelineId,
    /// Where that WAL begins.
    pub start: Lsn,
    /// Where it ends.
    pub stop: Lsn,
}

/// Writes the manifest for the files among `lines`.
pub fn write(
    head: ManifestHead,
    lines: impl Iterator<Item = Result<ManifestLine>>,
    out: &mut impl Write,
) -> Result<()> {
    let mut out = Hashed { out, hash: Sha256::new() };
    if head.major >= 17 {
        out.text(&format!(
            "{{ \"PostgreSQL-Backup-Manifest-Version\": 2,\n\"System-Identifier\": {},\n\"Files\": [",
            head.system_identifier
        ))?;
    } else {
        out.text("{ \"PostgreSQL-Backup-Manifest-Version\": 1,\n\"Files\": [")?;
    }
    let mut first = true;
    for line in lines {
        let line = line?;
        if line.kind == FileKind::File {
            out.text(if std::mem::take(&mut first) { "\n" } else { ",\n" })?;
            out.text(&file(&line))?;
        }
    }
    out.text(&format!(
        "\n],\n\"WAL-Ranges\": [\n{{ \"Timeline\": {}, \"Start-LSN\": \"{}\", \"End-LSN\": \"{}\" }}\n],\n",
        head.timeline.0, head.start, head.stop
    ))?;
    let digest = hex(&out.hash.finalize());
    writeln!(out.out, "\"Manifest-Checksum\": \"{digest}\"}}").context("write backup manifest")
}

fn file(line: &ManifestLine) -> String {
    let path = match line.path.to_str() {
        Some(text) => format!("\"Path\": {}", serde_json::Value::from(text)),
        None => format!("\"Encoded-Path\": \"{}\"", hex(line.path.as_os_str().as_bytes())),
    };
    let changed =
        jiff::Timestamp::from_second(line.mtime).unwrap_or_default().strftime("%Y-%m-%d %H:%M:%S GMT");
    // The checksum is the number's bytes as they lie in the server's memory.
    let checksum = hex(&line.crc32c.unwrap_or_default().to_le_bytes());
    format!(
        "{{ {path}, \"Size\": {}, \"Last-Modified\": \"{changed}\", \"Checksum-Algorithm\": \"CRC32C\", \
         \"Checksum\": \"{checksum}\" }}",
        line.size
    )
}

/// Returns the bytes as hexadecimal digits.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

struct Hashed<'a, W> {
    out: &'a mut W,
    hash: Sha256,
}

impl<W: Write> Hashed<'_, W> {
    fn text(&mut self, text: &str) -> Result<()> {
        self.hash.update(text);
        self.out.write_all(text.as_bytes()).context("write backup manifest")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::path::PathBuf;

    fn line(path: &[u8]) -> ManifestLine {
        ManifestLine {
            path: PathBuf::from(OsStr::from_bytes(path)),
            kind: FileKind::File,
            mode: 0o600,
            mtime: 1_700_000_000,
            size: 3,
            crc32c: Some(0x364b_3fb7),
            extents: vec![],
            bad_pages: None,
        }
    }

    #[test]
    fn the_manifest_is_json_whose_last_line_is_the_hash_of_the_others() {
        for (major, version) in [(16, 1), (17, 2)] {
            let head = ManifestHead {
                major,
                system_identifier: SystemIdentifier(u64::MAX),
                timeline: TimelineId(1),
                start: Lsn(0x0200_0028),
                stop: Lsn(0x0200_0100),
            };
            let mut text = Vec::new();
            let lines = [line(b"a \"b\""), line(b"log/\xff")].map(Ok);
            write(head, lines.into_iter(), &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            let json: serde_json::Value = serde_json::from_str(&text).unwrap();
            assert_eq!(json["PostgreSQL-Backup-Manifest-Version"], version);
            assert_eq!(json["System-Identifier"].is_number(), version == 2);
            assert_eq!(json["Files"][0]["Path"], "a \"b\"");
            assert_eq!(json["Files"][0]["Checksum"], "b73f4b36");
            assert_eq!(json["Files"][0]["Last-Modified"], "2023-11-14 22:13:20 GMT");
            assert_eq!(json["Files"][1]["Encoded-Path"], "6c6f672fff");
            assert_eq!(json["WAL-Ranges"][0]["End-LSN"], "0/2000100");
            let (rest, _) = text.split_once("\"Manifest-Checksum\"").unwrap();
            assert_eq!(json["Manifest-Checksum"], hex(&Sha256::digest(rest)));
        }
    }
}
