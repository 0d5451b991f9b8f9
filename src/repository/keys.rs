//! The keys of a cluster's objects (design: "Repository layout").

use crate::codec;
use crate::postgres::{ArchiveFileName, SystemIdentifier, TimelineId, WalSegmentName};
use crate::storage::Object;

/// Builds the keys of one cluster with one system identifier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClusterKeys {
    root: String,
}

impl ClusterKeys {
    /// Returns the keys of cluster `cluster` with the system identifier `sysid`.
    pub fn new(cluster: &str, sysid: SystemIdentifier) -> Self {
        Self { root: format!("{cluster}/{sysid}/") }
    }

    /// Returns what all these keys begin with, ending in `/`.
    pub fn root(&self) -> &str {
        &self.root
    }

    /// Returns the key of `cluster.json`.
    pub fn cluster_file(&self) -> String {
        format!("{}cluster.json", self.root)
    }

    /// Returns the key of `RECOVERY.md`.
    pub fn recovery_text(&self) -> String {
        format!("{}RECOVERY.md", self.root)
    }

    /// Returns what the keys of every content archived under `name` begin with.
    pub fn wal_contents(&self, name: ArchiveFileName) -> String {
        match name {
            ArchiveFileName::Segment(segment) => format!("{}{segment}-", self.wal_folder(segment)),
            _ => format!("{}{name}-", self.histories()),
        }
    }

    /// Returns the key of the content with CRC-32 `crc` archived under `name`, with the codec's `ending`.
    pub fn wal_object(&self, name: ArchiveFileName, crc: u32, ending: &str) -> String {
        format!("{}{crc:08x}{ending}", self.wal_contents(name))
    }

    /// Returns the folder of WAL of every timeline, ending in `/`.
    pub fn wal(&self) -> String {
        format!("{}wal/", self.root)
    }

    /// Returns the folder of one timeline's WAL, ending in `/`.
    pub fn wal_timeline(&self, timeline: TimelineId) -> String {
        format!("{}wal/{timeline}/", self.root)
    }

    /// Returns the folder of one segment, ending in `/`.
    pub fn wal_folder(&self, segment: WalSegmentName) -> String {
        format!("{}wal/{}/{}/", self.root, segment.timeline, segment.hi())
    }

    /// Returns a key that sorts right before every content of `segment` and after every earlier segment.
    pub fn before_segment(&self, segment: WalSegmentName) -> String {
        format!("{}{segment}", self.wal_folder(segment))
    }

    /// Returns the folder of timeline histories, backup histories and partial segments, ending in `/`.
    pub fn histories(&self) -> String {
        format!("{}wal/history/", self.root)
    }

    /// Returns the folder of contents that `resolve` moved aside, ending in `/`. It is no timeline's.
    pub fn aside(&self) -> String {
        format!("{}wal/aside/", self.root)
    }

    /// Returns the folder of digests, ending in `/`.
    pub fn digests(&self) -> String {
        format!("{}index/", self.root)
    }

    /// Returns the folder of backups, ending in `/`.
    pub fn backups(&self) -> String {
        format!("{}backup/", self.root)
    }

    /// Returns the folder of pins, ending in `/`.
    pub fn pins(&self) -> String {
        format!("{}pin/", self.root)
    }

    /// Returns the folder of what `check` writes, ending in `/`.
    pub fn probes(&self) -> String {
        format!("{}check/", self.root)
    }

    /// Returns the folder of one run of `check`, ending in `/`.
    pub fn probe_folder(&self, run: &str) -> String {
        format!("{}{run}/", self.probes())
    }

    /// Returns the key of the object with which one run of `check` tries out what it may do.
    pub fn probe(&self, run: &str) -> String {
        format!("{}probe", self.probe_folder(run))
    }

    /// Returns the key of the object that all runs of `check` share where none may delete.
    pub fn lasting_probe(&self) -> String {
        format!("{}probe", self.probes())
    }

    /// Returns the folder of one backup, ending in `/`.
    pub fn backup(&self, id: &str) -> String {
        format!("{}backup/{id}/", self.root)
    }
}

/// What the key of a WAL object says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WalObject {
    /// The name it was archived under.
    pub name: ArchiveFileName,
    /// The CRC-32 (IEEE) of the plaintext.
    pub crc: u32,
    /// What the store says.
    pub object: Object,
}

impl WalObject {
    /// Returns what the key of `object` says, or none if it is not the key of a WAL object.
    pub fn parse(object: Object) -> Option<Self> {
        let file = object.key.rsplit('/').next()?;
        let stem = file.strip_suffix(codec::LZ4_AGE).or_else(|| file.strip_suffix(codec::LZ4))?;
        let (name, crc) = stem.rsplit_once('-')?;
        if crc.len() != 8 || crc.bytes().any(|b| !b.is_ascii_digit() && !(b'a'..=b'f').contains(&b)) {
            return None;
        }
        let crc = u32::from_str_radix(crc, 16).ok()?;
        Some(Self { name: name.parse().ok()?, crc, object })
    }

    /// Returns the segment's name if this is a segment.
    pub fn segment(&self) -> Option<WalSegmentName> {
        match self.name {
            ArchiveFileName::Segment(segment) => Some(segment),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_those_of_the_design_and_parse_back() {
        let keys = ClusterKeys::new("main", SystemIdentifier(7_301_234_567_890_123_456));
        let segment: WalSegmentName = "0000000100000002000000FE".parse().unwrap();
        let key = keys.wal_object(ArchiveFileName::Segment(segment), 0xdead_beef, codec::LZ4_AGE);
        assert_eq!(
            key,
            "main/7301234567890123456/wal/00000001/00000002/0000000100000002000000FE-deadbeef.lz4.age"
        );
        let object = Object { key: key.clone(), size: 1, modified: None, crc32: None };
        let parsed = WalObject::parse(object).unwrap();
        assert_eq!((parsed.segment(), parsed.crc), (Some(segment), 0xdead_beef));
        assert!(keys.before_segment(segment) < key);
        assert!(keys.before_segment("0000000100000002000000FF".parse().unwrap()) > key);

        for name in [
            "00000002.history",
            "000000010000000000000003.00000028.backup",
            "000000010000000000000003.partial",
        ] {
            let name: ArchiveFileName = name.parse().unwrap();
            let key = keys.wal_object(name, 1, codec::LZ4);
            assert_eq!(key, format!("main/7301234567890123456/wal/history/{name}-00000001.lz4"));
            let object = Object { key, size: 1, modified: None, crc32: None };
            assert_eq!(WalObject::parse(object).unwrap().name, name);
        }
        for not_ours in
            ["x", "a-b.lz4", "0000000100000002000000FE-DEADBEEF.lz4", "0000000100000002000000FE-1.lz4.age"]
        {
            let object = Object { key: not_ours.into(), size: 1, modified: None, crc32: None };
            assert_eq!(WalObject::parse(object), None, "{not_ours}");
        }
    }
}
