//! `cluster.json`: says that a prefix belongs to a cluster with this system identifier. A repository without it
//! proves nothing (an unmounted disk, a wrong prefix) and takes nothing.

use super::{ClusterKeys, Repository, recovery_text};
use crate::kind::{Error, Result};
use crate::postgres::{SystemIdentifier, WalSegmentSize};
use crate::storage::{self, Deadline};
use bytes::Bytes;
use serde::{Deserialize, Serialize};

/// The format of everything below a cluster's prefix that this version writes.
pub const CLUSTER_FORMAT: u32 = 1;

/// The content of `cluster.json`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterFile {
    /// The format of the layout; a reader refuses a later one than it knows.
    pub format: u32,
    /// The cluster's name.
    pub cluster: String,
    /// The system identifier.
    pub system_identifier: SystemIdentifier,
    /// The size of a WAL segment, in bytes.
    pub wal_segment_size: WalSegmentSize,
    /// The server's major version when it was written.
    pub postgresql_version: u32,
    /// Random; tells this prefix from another that was made later at the same address.
    pub id: String,
    /// When it was written.
    pub created: jiff::Timestamp,
    /// In a repository that `keys rewrap` made: for whom, as [`crate::codec::recipients_id`] tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub recipients: Option<String>,
}

/// What a repository says of one system identifier.
#[derive(Debug, Clone)]
pub enum ClusterState {
    /// It was initialised.
    Known(ClusterFile),
    /// The cluster is there, with other system identifiers only.
    OtherOnly(Vec<SystemIdentifier>),
    /// Nothing of the cluster is there: never initialised, or another disk than it should be.
    Nothing,
}

impl ClusterFile {
    /// Returns a file for a cluster that is initialised now, with a fresh id.
    pub fn new(cluster: &str, sysid: SystemIdentifier, segment_size: WalSegmentSize, major: u32) -> Self {
        let random: [u8; 16] = std::array::from_fn(|_| fastrand::u8(..));
        let id = random.iter().fold(String::new(), |id, byte| id + &format!("{byte:02x}"));
        Self {
            format: CLUSTER_FORMAT,
            cluster: cluster.to_owned(),
            system_identifier: sysid,
            wal_segment_size: segment_size,
            postgresql_version: major,
            id,
            created: jiff::Timestamp::now(),
            recipients: None,
        }
    }

    /// Reads the file of `sysid` in `repository`.
    pub fn read(repository: &Repository, keys: &ClusterKeys, deadline: &Deadline) -> storage::Result<Self> {
        let key = keys.cluster_file();
        let text = super::stored::read_small(repository, &key, 1 << 20, deadline)?;
        let file: Self = serde_json::from_slice(&text)
            .map_err(|error| storage::Error::Refused(format!("\"{key}\" is not a cluster file: {error}")))?;
        if file.format > CLUSTER_FORMAT {
            return Err(storage::Error::Refused(format!(
                "\"{key}\" has format {}, this version of walden knows up to {CLUSTER_FORMAT}",
                file.format
            )));
        }
        Ok(file)
    }

    /// Makes `repository` one of the cluster: the text for a restore by hand, for objects with the codec's `ending`, and then the
    /// file.
    pub fn set_up(&self, repository: &Repository, ending: &str) -> Result<()> {
        let keys = ClusterKeys::new(&self.cluster, self.system_identifier);
        let text = recovery_text(&self.cluster, self.system_identifier, repository.url(), ending);
        repository
            .storage()
            .put_new(&keys.recovery_text(), &Bytes::from(text), &repository.deadline())
            .map_err(|error| repository.error("initialise", &error))?;
        self.write(repository, &keys).map(drop)
    }

    /// Writes the file where there is none. Returns whether it was written.
    pub fn write(&self, repository: &Repository, keys: &ClusterKeys) -> Result<bool> {
        let text = serde_json::to_vec_pretty(self).map_err(|error| Error::other(error.to_string()))?;
        let put = repository
            .storage()
            .put_new(&keys.cluster_file(), &Bytes::from(text), &repository.deadline())
            .map_err(|error| repository.error("initialise", &error))?;
        Ok(put == storage::Put::Created)
    }
}

/// Returns the system identifiers of `cluster` that `repository` was initialised for.
pub fn clusters(
    repository: &Repository,
    cluster: &str,
    deadline: &Deadline,
) -> storage::Result<Vec<SystemIdentifier>> {
    let folders = repository.storage().list_folders(&format!("{cluster}/"), deadline)?;
    let mut found = Vec::new();
    for sysid in folders.iter().filter_map(|folder| folder.parse::<SystemIdentifier>().ok()) {
        let key = ClusterKeys::new(cluster, sysid).cluster_file();
        match repository.storage().head(&key, deadline) {
            Ok(_) => found.push(sysid),
            Err(error) if error.is_not_found() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

impl ClusterState {
    /// Asks `repository` what it knows of `sysid`.
    pub fn ask(
        repository: &Repository,
        cluster: &str,
        sysid: SystemIdentifier,
        deadline: &Deadline,
    ) -> storage::Result<Self> {
        match ClusterFile::read(repository, &ClusterKeys::new(cluster, sysid), deadline) {
            Ok(file) => Ok(Self::Known(file)),
            Err(error) if error.is_not_found() => {
                let others = clusters(repository, cluster, deadline)?;
                Ok(if others.is_empty() { Self::Nothing } else { Self::OtherOnly(others) })
            }
            Err(error) => Err(error),
        }
    }
}
