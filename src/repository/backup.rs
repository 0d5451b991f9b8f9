//! What a backup consists of in a repository: the names of its objects, and the content of the two that describe it.
//!
//! `backup.json` ([`BackupSummary`]) is not encrypted and written last: without it there is no backup. The manifest
//! has one JSON line ([`ManifestLine`]) for each file and directory. Readers of both ignore fields that they do not
//! know, so that later versions may add some; what cannot be ignored gets a new [`BACKUP_FORMAT`].

use crate::postgres::{Lsn, SystemIdentifier, TimelineId, WalSegmentName, WalSegmentSize};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

/// The format of backups that this version writes.
pub const BACKUP_FORMAT: u32 = 1;

/// The name of the summary, within the backup's folder.
pub const SUMMARY_NAME: &str = "backup.json";

/// Returns the name of piece `number`, with the codec's `ending`. Names of up to ten million pieces sort by number;
/// a glob in a shell finds them in the right order.
pub fn piece_name(number: u32, ending: &str) -> String {
    format!("data/{number:07}{ending}")
}

/// Returns the name of the manifest.
pub fn manifest_name(ending: &str) -> String {
    format!("manifest.jsonl{ending}")
}

/// Returns the name of the object with configuration files from outside the data directory.
pub fn config_name(ending: &str) -> String {
    format!("config.tar{ending}")
}

/// Returns a fresh id for a backup that begins now on `timeline`: `20261120T133000Z-00000001-5f0c2a91`. Ids sort by
/// time, to the second and by the clock of this machine; the last part is random, so that two never meet.
pub fn new_backup_id(now: Timestamp, timeline: TimelineId) -> String {
    format!("{}-{timeline}-{:08x}", now.strftime("%Y%m%dT%H%M%SZ"), fastrand::u32(..))
}

/// One stored object of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredObject {
    /// The name within the backup's folder.
    pub name: String,
    /// The size as stored, in bytes.
    pub size: u64,
    /// The CRC-32 (IEEE) of the bytes as stored.
    #[serde(with = "hex8")]
    pub crc32: u32,
}

impl StoredObject {
    /// Returns the description of an object named `name` with the stored bytes `body`.
    pub fn of(name: String, body: &[u8]) -> Self {
        Self { name, size: body.len() as u64, crc32: crc32fast::hash(body) }
    }

    /// Returns whether `body` has the size and the CRC-32 of the object.
    pub fn matches(&self, body: &[u8]) -> bool {
        body.len() as u64 == self.size && crc32fast::hash(body) == self.crc32
    }
}

/// A tablespace outside the data directory, as it was when the backup began.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupTablespace {
    /// Its OID, the name of its link in `pg_tblspc`.
    pub oid: u32,
    /// Its directory on the server.
    pub path: String,
}

/// Where configuration files were that lay outside the data directory. Each is in the configuration object under its
/// path without the leading slash.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExternalConfig {
    /// `config_file`; none if it lay inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config_file: Option<String>,
    /// `hba_file`; none if it lay inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hba_file: Option<String>,
    /// `ident_file`; none if it lay inside.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ident_file: Option<String>,
    /// Files that the configuration includes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub included: Vec<String>,
}

/// The content of `backup.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BackupSummary {
    /// The format of the backup; a reader refuses a later one than it knows.
    pub format: u32,
    /// The id, which is the name of the backup's folder.
    pub id: String,
    /// The cluster's name.
    pub cluster: String,
    /// The system identifier.
    pub system_identifier: SystemIdentifier,
    /// The server's major version.
    pub major_version: u32,
    /// The server's version, as it calls itself.
    pub server_version: String,
    /// The version of Walden that wrote the backup.
    pub walden_version: String,
    /// The label that was given to the server.
    pub label: String,
    /// A remark of the user.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Whether the server was a standby.
    pub from_standby: bool,
    /// The timeline on which the backup began.
    pub timeline: TimelineId,
    /// Where replay begins.
    pub start_lsn: Lsn,
    /// Where the backup is consistent.
    pub stop_lsn: Lsn,
    /// The backup's checkpoint.
    pub checkpoint_lsn: Lsn,
    /// The server's clock before the backup began.
    pub start_time: Timestamp,
    /// The server's clock after it ended: no commit that the backup needs for being consistent is later.
    pub stop_time: Timestamp,
    /// The next transaction id when it had ended, with the epoch: a transaction that is not below it began later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_xid: Option<u64>,
    /// The size of a WAL segment, in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// Whether pages have checksums, and so whether they were checked.
    pub data_checksums: bool,
    /// Whether the objects are encrypted.
    pub encrypted: bool,
    /// The ending of the objects' names.
    pub ending: String,
    /// The data directory on the server.
    pub data_dir: String,
    /// The tablespaces outside it.
    #[serde(default)]
    pub tablespaces: Vec<BackupTablespace>,
    /// The configuration outside it; none if all of it lay inside, or could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub external_config: Option<ExternalConfig>,
    /// The size of all files, in bytes.
    pub size: u64,
    /// The size of all objects but this one, in bytes.
    pub stored_size: u64,
    /// The number of files.
    pub files: u64,
    /// Pages whose checksum is wrong.
    #[serde(default)]
    pub bad_pages: u64,
    /// The manifest.
    pub manifest: StoredObject,
    /// The configuration object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<StoredObject>,
    /// The pieces of the tar stream, in order.
    pub pieces: Vec<StoredObject>,
}

impl BackupSummary {
    /// Returns the first WAL segment that the backup needs.
    pub fn start_segment(&self) -> WalSegmentName {
        WalSegmentName::containing(self.timeline, self.start_lsn, self.wal_segment_size)
    }

    /// Returns the last WAL segment that the backup needs: the one with the byte before `stop_lsn`.
    pub fn stop_segment(&self) -> WalSegmentName {
        let last = Lsn(self.stop_lsn.0.saturating_sub(1)).max(self.start_lsn);
        WalSegmentName::containing(self.timeline, last, self.wal_segment_size)
    }

    /// Returns the WAL segments without which the backup cannot become consistent, in order.
    pub fn wal_segments(&self) -> impl Iterator<Item = WalSegmentName> + use<> {
        let (size, timeline) = (self.wal_segment_size, self.timeline);
        let numbers = self.start_segment().number(size)..=self.stop_segment().number(size);
        numbers.map(move |number| WalSegmentName::from_number(timeline, number, size))
    }

    /// Returns every object of the backup but the summary.
    pub fn objects(&self) -> impl Iterator<Item = &StoredObject> {
        self.pieces.iter().chain(&self.config).chain(std::iter::once(&self.manifest))
    }
}

/// What a line of the manifest is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum FileKind {
    /// A regular file.
    File,
    /// A directory. The one with the path `.` is the data directory itself.
    Directory,
}

/// One line of the manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ManifestLine {
    /// The path, relative to the data directory.
    #[serde(with = "path_text")]
    pub path: PathBuf,
    /// What it is.
    pub kind: FileKind,
    /// The permissions (`0o7777`).
    pub mode: u32,
    /// When it was last changed, in seconds since 1970 UTC.
    pub mtime: i64,
    /// The size in bytes; zero for directories.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub size: u64,
    /// The CRC-32C of a file's content.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex8::option")]
    pub crc32c: Option<u32>,
    /// Where the content is, in its order.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub extents: Vec<Extent>,
    /// What checking the pages found; none if nothing was wrong.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bad_pages: Option<BadPages>,
}

/// A part of a file's content, as it lies in a piece.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Extent {
    /// The id of the backup whose piece it is; none for the backup of the manifest itself.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub backup: Option<String>,
    /// The number of the piece.
    pub piece: u32,
    /// Where the content begins in the piece's plaintext (its part of the tar stream), in bytes.
    pub at: u64,
    /// The bytes of content.
    pub length: u64,
    /// The CRC-32C of these bytes.
    #[serde(with = "hex8")]
    pub crc32c: u32,
    /// Where the extent's LZ4 frame begins in the piece's LZ4 stream (its decrypted bytes).
    pub frame: u64,
    /// The bytes of the frame.
    pub frame_length: u64,
    /// Bytes of the frame's plaintext before the content (the file's tar header).
    #[serde(default, skip_serializing_if = "is_zero")]
    pub skip: u64,
}

/// The pages of a file whose checksum is wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct BadPages {
    /// How many there are.
    pub count: u64,
    /// The first of them, by their number in this file.
    pub blocks: Vec<u32>,
    /// Whose pages they are, as database, schema and relation (`postgres.public.accounts`), where that was found out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub relation: Option<String>,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// CRCs as eight hexadecimal digits.
mod hex8 {
    use super::{Deserialize, Deserializer, Serializer};
    use serde::de::Error;

    #[allow(clippy::trivially_copy_pass_by_ref)] // serde passes references
    pub fn serialize<S: Serializer>(crc: &u32, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{crc:08x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u32, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        let valid = text.len() == 8 && text.bytes().all(|b| b.is_ascii_hexdigit());
        valid
            .then(|| u32::from_str_radix(&text, 16).ok())
            .flatten()
            .ok_or_else(|| D::Error::custom(format!("\"{text}\" is not a CRC of eight hexadecimal digits")))
    }

    pub mod option {
        use super::{Deserialize, Deserializer, Serializer};

        #[derive(Deserialize)]
        struct Crc(#[serde(with = "super")] u32);

        #[allow(clippy::ref_option, clippy::trivially_copy_pass_by_ref)] // serde passes references
        pub fn serialize<S: Serializer>(crc: &Option<u32>, serializer: S) -> Result<S::Ok, S::Error> {
            match crc {
                Some(crc) => super::serialize(crc, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
            Ok(Option::<Crc>::deserialize(deserializer)?.map(|crc| crc.0))
        }
    }
}

/// Paths as text, or as a list of bytes where they are not UTF-8.
pub(crate) mod path_text {
    use super::{
        Deserialize, Deserializer, OsStrExt, OsString, OsStringExt, Path, PathBuf, Serialize, Serializer,
    };

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Text(String),
        Bytes(Vec<u8>),
    }

    pub fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
        match path.to_str() {
            Some(text) => serializer.serialize_str(text),
            None => path.as_os_str().as_bytes().serialize(serializer),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
        Ok(match Either::deserialize(deserializer)? {
            Either::Text(text) => text.into(),
            Either::Bytes(bytes) => OsString::from_vec(bytes).into(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(path: &[u8]) -> ManifestLine {
        ManifestLine {
            path: OsString::from_vec(path.to_vec()).into(),
            kind: FileKind::File,
            mode: 0o600,
            mtime: -1,
            size: 10,
            crc32c: Some(0xab),
            extents: vec![Extent {
                backup: None,
                piece: 1,
                at: 512,
                length: 10,
                crc32c: 0xab,
                frame: 0,
                frame_length: 99,
                skip: 512,
            }],
            bad_pages: Some(BadPages {
                count: 2,
                blocks: vec![3, 4],
                relation: Some("postgres.public.t".into()),
            }),
        }
    }

    #[test]
    fn manifest_lines_round_trip_whatever_the_name() {
        for path in [&b"base/5/1259"[..], b"log/\xff\xfe", b"a\nb\"c\\"] {
            let line = line(path);
            let json = serde_json::to_string(&line).unwrap();
            assert!(!json.contains('\n') && json.contains("\"000000ab\""), "{json}");
            assert_eq!(serde_json::from_str::<ManifestLine>(&json).unwrap(), line);
        }
    }

    #[test]
    fn fields_of_later_versions_are_ignored_and_missing_ones_have_defaults() {
        let json = r#"{"path":"global","kind":"directory","mode":448,"mtime":1,"colour":"blue"}"#;
        let line: ManifestLine = serde_json::from_str(json).unwrap();
        assert_eq!((line.size, line.crc32c, line.extents.len()), (0, None, 0));
        assert!(serde_json::from_str::<StoredObject>(r#"{"name":"x","size":1,"crc32":"xyz"}"#).is_err());
    }

    fn summary(start: u64, stop: u64) -> BackupSummary {
        let object = StoredObject::of("manifest.jsonl.lz4".into(), b"x");
        BackupSummary {
            format: BACKUP_FORMAT,
            id: "id".into(),
            cluster: "main".into(),
            system_identifier: SystemIdentifier(1),
            major_version: 15,
            server_version: "15.18".into(),
            walden_version: "0".into(),
            label: "l".into(),
            note: None,
            from_standby: false,
            timeline: TimelineId(2),
            start_lsn: Lsn(start),
            stop_lsn: Lsn(stop),
            checkpoint_lsn: Lsn(start),
            start_time: Timestamp::UNIX_EPOCH,
            stop_time: Timestamp::UNIX_EPOCH,
            next_xid: Some(7),
            wal_segment_size: WalSegmentSize::DEFAULT,
            data_checksums: true,
            encrypted: false,
            ending: ".lz4".into(),
            data_dir: "/d".into(),
            tablespaces: vec![],
            external_config: None,
            size: 1,
            stored_size: 1,
            files: 1,
            bad_pages: 0,
            manifest: object,
            config: None,
            pieces: vec![],
        }
    }

    #[test]
    fn a_backup_needs_the_segments_up_to_the_byte_before_its_stop() {
        let names = |start, stop| {
            summary(start, stop).wal_segments().map(|name| name.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(names(0x0200_0028, 0x0300_0000), ["000000020000000000000002"]);
        assert_eq!(names(0x0200_0028, 0x0300_0001), ["000000020000000000000002", "000000020000000000000003"]);
        let json = serde_json::to_string(&summary(1, 2)).unwrap();
        assert_eq!(serde_json::from_str::<BackupSummary>(&json).unwrap(), summary(1, 2));
    }

    #[test]
    fn ids_sort_by_time() {
        let at = |text: &str| new_backup_id(text.parse().unwrap(), TimelineId(1));
        assert!(at("2026-11-20T13:30:00Z") < at("2026-11-20T13:30:01Z"));
        assert!(at("2026-11-20T13:30:00Z").starts_with("20261120T133000Z-00000001-"));
    }
}
