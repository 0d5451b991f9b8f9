//! What every parser of outside data must hold for any bytes at all: no panic, no endless loop, no memory without bound.
//! The property tests beside this file and the fuzz targets in `fuzz/` share it.

use std::io::Read;
use std::path::Path;

use walden::codec::Opener;
use walden::config::Config;
use walden::postgres::{
    ArchiveFileName, BackupLabel, ControlFile, Lsn, SegmentHeader, TimelineHistory, TimelineId,
    WalSegmentName, WalSegmentSize,
};
use walden::repository::WalObject;
use walden::repository::backup::{BackupSummary, ManifestLine};
use walden::storage::Object;

/// The most plaintext that is read of a made-up object.
const LIMIT: u64 = 1 << 20;

/// Names of WAL files, and the keys of objects.
pub fn wal_name(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(name) = text.parse::<ArchiveFileName>() {
        assert_eq!(name.to_string(), text, "a name has one spelling");
        let _ = (name.timeline(), name.cmp_for_archiving(&ArchiveFileName::History(TimelineId(2))));
    }
    if let Ok(name) = text.parse::<WalSegmentName>() {
        for size in [1 << 20, 16 << 20, 1 << 30] {
            let size = WalSegmentSize::new(size).expect("a valid size");
            if name.is_valid_for(size) {
                let _ = (name.start(size), name.previous(size), name.hi(), name.number(size));
            }
        }
    }
    let object = Object { key: text.to_owned(), size: 0, modified: None, crc32: None };
    if let Some(object) = WalObject::parse(object) {
        assert!(text.contains(&object.name.to_string()));
    }
    let _ = text.parse::<Lsn>();
}

/// The start of a segment, and the other files that the server writes.
pub fn header(data: &[u8]) {
    if let Ok(header) = SegmentHeader::parse(data) {
        let name = WalSegmentName::containing(header.timeline, header.page_address, header.segment_size);
        let _ = header.check(name, header.segment_size.bytes());
        let _ = (SegmentHeader::major_version(header.magic), name.to_string());
    }
    let _ = ControlFile::parse(data);
    let _ = BackupLabel::parse(data);
    let _ = TimelineHistory::parse(TimelineId(7), data);
}

/// A configuration. What is accepted can be used.
pub fn config(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    match Config::parse(text, Path::new("/etc/walden/walden.toml")) {
        Ok(config) => {
            assert!(config.index_path().is_absolute());
            config.repositories.iter().for_each(|repository| drop(repository.location()));
        }
        Err(error) => assert!(!error.to_string().contains('\n'), "one line: {error}"),
    }
}

/// An object as a store gives it, with and without encryption.
pub fn object(data: &[u8], opener: &Opener) {
    for key in ["x.lz4", "x.lz4.age", "x"] {
        if let Ok(plaintext) = opener.open_whole(key, data, LIMIT) {
            assert!(plaintext.len() as u64 <= LIMIT);
        }
        // A reader that takes single bytes must come to an end as well.
        if let Ok(mut reader) = opener.open(key, data) {
            let _ = (0..5000).take_while(|_| reader.read(&mut [0]).is_ok_and(|read| read > 0)).count();
        }
    }
}

/// A line of a backup's manifest, and its summary.
pub fn manifest(data: &[u8]) {
    if let Ok(line) = serde_json::from_slice::<ManifestLine>(data) {
        let text = serde_json::to_vec(&line).expect("a line can be written");
        assert_eq!(serde_json::from_slice::<ManifestLine>(&text).expect("and read again"), line);
    }
    if let Ok(summary) = serde_json::from_slice::<BackupSummary>(data) {
        let _ = (summary.start_segment(), summary.stop_segment());
        let _ = (summary.wal_segments().take(100).count(), summary.objects().count());
    }
}
