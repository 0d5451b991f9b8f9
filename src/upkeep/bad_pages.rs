//! Bad pages that the newest backup found: the complaint that stands until a clean backup exists.

use crate::index::{BadPagesRow, IndexHandle};
use crate::repository::backup::BackupSummary;
use serde::Serialize;

/// What the newest backup found in the database.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BadPagesFound {
    /// The backup's id.
    pub backup: String,
    /// How many pages have wrong checksums.
    pub pages: u64,
    /// Which, where the index on this machine knows.
    pub files: Vec<BadPagesRow>,
    /// The newest backup without any; none if there is none.
    pub last_clean: Option<String>,
}

/// Returns what the newest of the backups, oldest first, found; none if it is clean. One that was taken without page
/// checksums says nothing: the one before it stands.
pub fn bad_pages<'a>(
    backups: impl DoubleEndedIterator<Item = &'a BackupSummary> + Clone,
    index: &IndexHandle,
) -> Option<BadPagesFound> {
    let mut checked = backups.rev().filter(|backup| backup.data_checksums);
    let newest = checked.next().filter(|backup| backup.bad_pages > 0)?;
    Some(BadPagesFound {
        backup: newest.id.clone(),
        pages: newest.bad_pages,
        files: index.run(|index| index.bad_pages(&newest.id)).unwrap_or_default(),
        last_clean: checked.find(|backup| backup.bad_pages == 0).map(|backup| backup.id.clone()),
    })
}

impl BadPagesFound {
    /// Returns the lines that people see.
    pub fn text(&self) -> String {
        let mut out = format!(
            "  DAMAGED DATABASE: {} wrong page checksums in backup {}; look with pg_amcheck, and {}\n",
            self.pages,
            self.backup,
            match &self.last_clean {
                Some(id) => format!("keep backup {id}, the last clean one"),
                None => "take a clean backup once it is mended".to_owned(),
            }
        );
        for file in self.files.iter().take(SHOWN) {
            let relation =
                file.relation.as_ref().map(|name| format!("relation {name}, ")).unwrap_or_default();
            out += &format!("    {relation}file {}, block {}\n", file.path, file.blocks);
        }
        if self.files.len() > SHOWN {
            out += &format!("    and {} more files\n", self.files.len() - SHOWN);
        }
        out
    }
}

/// How many files the screen shows.
const SHOWN: usize = 10;
