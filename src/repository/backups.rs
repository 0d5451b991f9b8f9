//! The backups in a repository: those that have a `backup.json`.

use super::backup::BackupSummary;
use super::{ClusterKeys, Repository};
use crate::kind::{Context, Result};
use crate::storage;

/// The largest `backup.json` that is read, in bytes.
const LARGEST_SUMMARY: u64 = 256 << 20;

/// Returns the ids of the complete backups in `repository`, oldest first, by listings alone.
pub fn list_backups(repository: &Repository, keys: &ClusterKeys) -> storage::Result<Vec<String>> {
    let deadline = repository.deadline();
    let mut complete = Vec::new();
    for id in repository.storage().list_folders(&keys.backups(), &deadline)? {
        let key = format!("{}backup.json", keys.backup(&id));
        match repository.storage().head(&key, &deadline) {
            Ok(_) => complete.push(id),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    complete.sort();
    Ok(complete)
}

/// What stands before the CRC in the text of a `backup.json`, which ends with it.
const CRC_FIELD: &[u8] = b",\n  \"crc32\": \"";

/// Returns the text of `backup.json`: JSON whose last field is the CRC-32 (IEEE) of the bytes before it.
pub fn summary_text(summary: &BackupSummary) -> Result<Vec<u8>> {
    let mut text = serde_json::to_vec_pretty(summary).context("write backup.json")?;
    text.truncate(text.len() - b"\n}".len());
    let crc = crc32fast::hash(&text);
    text.extend_from_slice(CRC_FIELD);
    text.extend_from_slice(format!("{crc:08x}\"\n}}").as_bytes());
    Ok(text)
}

/// Returns what the text of a `backup.json` says, checked against the CRC in it, or why it is none. One without a CRC is of a
/// version before 0.1.0.
pub fn parse_summary(text: &[u8]) -> std::result::Result<BackupSummary, String> {
    let summary = serde_json::from_slice(text).map_err(|error| error.to_string())?;
    if let Some(at) = text.windows(CRC_FIELD.len()).rposition(|window| window == CRC_FIELD) {
        let found = format!("{:08x}", crc32fast::hash(&text[..at]));
        let told = &text[at + CRC_FIELD.len()..];
        if !told.starts_with(found.as_bytes()) {
            return Err(format!("the CRC-32 of what it says is {found}, not the one that it gives"));
        }
    }
    Ok(summary)
}

/// Returns the summary of a backup.
pub fn read_summary(repository: &Repository, keys: &ClusterKeys, id: &str) -> storage::Result<BackupSummary> {
    let key = format!("{}backup.json", keys.backup(id));
    let text = super::stored::read_small(repository, &key, LARGEST_SUMMARY, &repository.deadline())?;
    parse_summary(&text)
        .map_err(|error| storage::Error::Refused(format!("\"{key}\" is not a backup's summary: {error}")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_flipped_bit_of_a_summary_goes_unnoticed() {
        let object = |name: &str| serde_json::json!({ "name": name, "size": 7, "crc32": "0badc0de" });
        let summary: BackupSummary = serde_json::from_value(serde_json::json!({
            "format": 1, "id": "i", "cluster": "main", "system_identifier": "7", "major_version": 17,
            "server_version": "17.0", "walden_version": "0", "label": "l", "from_standby": false, "timeline": 1,
            "start_lsn": "0/1000028", "stop_lsn": "0/1000100", "checkpoint_lsn": "0/1000060",
            "start_time": "2026-11-20T13:30:00Z", "stop_time": "2026-11-20T13:31:00Z",
            "wal_segment_size": 16 << 20, "data_checksums": true, "encrypted": true, "ending": ".lz4.age",
            "data_dir": "/d", "size": 8, "stored_size": 1, "files": 2,
            "manifest": object("m"), "pieces": [object("p"), object("q")],
        }))
        .unwrap();
        let text = summary_text(&summary).unwrap();
        assert_eq!(parse_summary(&text).unwrap(), summary);
        assert!(text.ends_with(b"\"\n}"), "people read it, too");
        for at in 0..text.len() {
            for bit in 0..8 {
                let mut flipped = text.clone();
                flipped[at] ^= 1 << bit;
                // In the name of the last field it does no harm.
                let read = parse_summary(&flipped);
                assert!(read.is_err() || read == Ok(summary.clone()), "byte {at}: {read:?}");
            }
        }
        for cut in 0..text.len() {
            assert!(parse_summary(&text[..cut]).is_err(), "{cut}");
        }
        // What was written before there was a CRC.
        assert_eq!(parse_summary(&serde_json::to_vec(&summary).unwrap()).unwrap(), summary);
    }
}
