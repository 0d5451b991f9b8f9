//! What every store has to do, as one suite that is run against each of them. It panics on the first difference.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use super::{Deadline, Error, Object, PART_SIZE, Put, Storage};
use bytes::Bytes;
use std::io::Read;
use std::ops::Range;
use std::time::Duration;

/// What a store cannot be asked to do, or how much of it.
#[derive(Debug, Clone, Copy)]
pub struct Extent {
    /// How many keys are listed; more than 1000, so that S3 needs several pages.
    pub keys: usize,
    /// Whether of racing writers exactly one creates the object. Not so where the store has no conditional write.
    pub races: bool,
}

impl Default for Extent {
    fn default() -> Self {
        Self { keys: 1050, races: true }
    }
}

/// Runs the suite below a folder of its own, and removes what it wrote.
pub fn run(storage: &dyn Storage) {
    run_extent(storage, Extent::default());
}

/// Runs as much of the suite as the store can do.
pub fn run_extent(storage: &dyn Storage, extent: Extent) {
    let suite = Suite {
        storage,
        base: format!("conformance-{:016x}/", fastrand::u64(..)),
        deadline: Deadline::stall(Duration::from_secs(20)),
    };
    suite.probe();
    suite.puts_are_create_only();
    suite.uploads_are_create_only();
    suite.uploads_leave_nothing_until_they_are_complete();
    suite.gets();
    suite.missing_objects();
    suite.heads();
    suite.every_character_in_keys();
    suite.lists();
    suite.lists_many(extent.keys);
    suite.folders();
    suite.deletes();
    if extent.races {
        suite.races();
        suite.uploads_race();
    }
    suite.a_cut_deadline_ends_calls();
    suite.remove_everything();
}

/// Shows that a store whose root (directory, bucket) is missing never proves anything absent.
pub fn run_without_root(storage: &dyn Storage) {
    fn fails<T>(what: &str, result: super::Result<T>) {
        match result {
            Ok(_) => panic!("{what} succeeded without a root"),
            Err(error) => assert!(!error.is_not_found(), "{what} without a root proves absence: {error}"),
        }
    }
    let deadline = Deadline::stall(Duration::from_secs(20));
    fails("probe", storage.probe(&deadline));
    fails("put", storage.put_new("folder/key", &Bytes::from_static(b"content"), &deadline));
    fails("upload", upload(storage, "folder/key", b"content", &deadline));
    fails("get", storage.get("folder/key", None, &deadline));
    fails("get of a range", storage.get("folder/key", Some(0..1), &deadline));
    fails("head", storage.head("folder/key", &deadline));
    fails("list", storage.list("folder/", "", 10, &deadline));
    fails("list of all", storage.list("", "", 10, &deadline));
    fails("list of folders", storage.list_folders("", &deadline));
    fails("delete", storage.delete("folder/key", &deadline));
}

/// Writes an object in parts.
fn upload(storage: &dyn Storage, key: &str, content: &[u8], deadline: &Deadline) -> super::Result<Put> {
    let mut upload = storage.upload_new(key, deadline)?;
    for (index, part) in content.chunks(PART_SIZE).enumerate() {
        upload.part(u32::try_from(index).unwrap(), &Bytes::copy_from_slice(part))?;
    }
    upload.complete()
}

struct Suite<'a> {
    storage: &'a dyn Storage,
    base: String,
    deadline: Deadline,
}

impl Suite<'_> {
    fn key(&self, name: &str) -> String {
        format!("{}{name}", self.base)
    }

    fn put(&self, name: &str, content: &[u8]) -> Put {
        let body = Bytes::copy_from_slice(content);
        self.storage.put_new(&self.key(name), &body, &self.deadline).unwrap()
    }

    fn open(&self, name: &str, range: Option<Range<u64>>) -> super::Result<Vec<u8>> {
        let mut reader = self.storage.get(&self.key(name), range, &self.deadline)?;
        let mut content = Vec::new();
        reader.read_to_end(&mut content).map_err(|error| Error::Unreachable(error.to_string()))?;
        Ok(content)
    }

    fn get(&self, name: &str) -> Vec<u8> {
        self.open(name, None).unwrap()
    }

    fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Vec<Object> {
        let start_after = if start_after.is_empty() { String::new() } else { self.key(start_after) };
        self.storage.list(&self.key(prefix), &start_after, limit, &self.deadline).unwrap()
    }

    /// Returns the listed keys without the suite's own folder.
    fn names(&self, prefix: &str, start_after: &str, limit: usize) -> Vec<String> {
        let found = self.list(prefix, start_after, limit);
        found.iter().map(|object| object.key.strip_prefix(&self.base).unwrap().to_owned()).collect()
    }

    fn probe(&self) {
        self.storage.probe(&self.deadline).unwrap();
        assert!(!self.storage.url().is_empty());
    }

    fn puts_are_create_only(&self) {
        assert_eq!(self.put("put/a", b"first"), Put::Created);
        assert_eq!(self.put("put/a", b"second"), Put::Existed);
        assert_eq!(self.get("put/a"), b"first");
        assert_eq!(self.put("put/a", b"first"), Put::Existed);
        self.storage.confirm(&self.key("put/a"), &self.deadline).unwrap();
        assert_eq!(self.put("put/empty", b""), Put::Created);
        assert_eq!(self.get("put/empty"), b"");
        assert_eq!(self.put("put/empty", b"no longer"), Put::Existed);
        assert_eq!(self.get("put/empty"), b"");
    }

    fn upload(&self, name: &str, content: &[u8]) -> Put {
        upload(self.storage, &self.key(name), content, &self.deadline).unwrap()
    }

    fn uploads_are_create_only(&self) {
        let content: Vec<u8> = (0..PART_SIZE + 70_000).map(|i| (i >> 3) as u8 ^ i as u8).collect();
        assert_eq!(self.upload("upload/a", &content), Put::Created);
        assert!(self.get("upload/a") == content, "the parts are not the whole");
        assert_eq!(self.upload("upload/a", b"other"), Put::Existed);
        assert_eq!(self.put("upload/a", b"other"), Put::Existed);
        assert!(self.get("upload/a") == content, "an object was overwritten");
        let head = self.storage.head(&self.key("upload/a"), &self.deadline).unwrap();
        assert_eq!(head.size, content.len() as u64);
        if let Some(crc32) = head.crc32 {
            assert_eq!(crc32, crc32fast::hash(&content), "the checksum is not the whole's");
        }
        assert_eq!(self.put("upload/b", b"first"), Put::Created);
        assert_eq!(self.upload("upload/b", &content), Put::Existed);
        assert_eq!(self.get("upload/b"), b"first");
        for length in [0, 1, PART_SIZE] {
            let name = format!("upload/{length}");
            assert_eq!(self.upload(&name, &content[..length]), Put::Created);
            assert!(self.get(&name) == content[..length], "{length} bytes differ");
        }
        // A part that is sent again counts once.
        let mut upload = self.storage.upload_new(&self.key("upload/again"), &self.deadline).unwrap();
        for (index, part) in
            [(0, &content[..PART_SIZE]), (0, &content[..PART_SIZE]), (1, b"end"), (1, b"end")]
        {
            upload.part(index, &Bytes::copy_from_slice(part)).unwrap();
        }
        assert_eq!(upload.complete().unwrap(), Put::Created);
        drop(upload);
        assert!(self.get("upload/again") == [&content[..PART_SIZE], b"end"].concat());
    }

    fn uploads_leave_nothing_until_they_are_complete(&self) {
        let mut upload = self.storage.upload_new(&self.key("abandoned/a"), &self.deadline).unwrap();
        upload.part(0, &Bytes::from_static(b"half")).unwrap();
        assert!(self.open("abandoned/a", None).unwrap_err().is_not_found());
        assert!(self.names("abandoned/", "", 10).is_empty());
        drop(upload);
        assert!(self.names("abandoned/", "", 10).is_empty());
        assert_eq!(self.upload("abandoned/a", b"whole"), Put::Created);
        assert_eq!(self.get("abandoned/a"), b"whole");
    }

    fn uploads_race(&self) {
        let start = std::sync::Barrier::new(4);
        let write = |writer: u8| {
            start.wait();
            self.upload("race/upload", &vec![writer; 100_000])
        };
        let puts: Vec<Put> = std::thread::scope(|scope| {
            let writers: Vec<_> = (0..4).map(|writer| scope.spawn(move || write(writer))).collect();
            writers.into_iter().map(|writer| writer.join().unwrap()).collect()
        });
        let winner = puts.iter().position(|put| *put == Put::Created).unwrap();
        assert_eq!(puts.iter().filter(|put| **put == Put::Created).count(), 1, "{puts:?}");
        assert!(self.get("race/upload") == vec![winner as u8; 100_000], "the content is not the winner's");
    }

    fn gets(&self) {
        // Larger than what one read or one buffer holds.
        let content: Vec<u8> =
            (0..3_000_000_u32).flat_map(|i| i.wrapping_mul(2_654_435_761).to_le_bytes()).collect();
        self.put("get/large", &content);
        assert!(self.get("get/large") == content, "large content differs");
        let size = content.len() as u64;
        for range in
            [0..1, 0..0, 5..5, 65_530..65_545, size - 7..size, size..size, 0..size, 1_000_000..7_000_001]
        {
            let wanted = &content[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
            let found = self.open("get/large", Some(range.clone())).unwrap();
            assert!(found == wanted, "range {range:?} differs");
        }
        for range in [0..size + 1, size - 1..size + 5, size..size + 1, size + 5..size + 6] {
            match self.open("get/large", Some(range.clone())) {
                Ok(_) => panic!("range {range:?} of {size} bytes was read"),
                Err(error) => assert!(!error.is_not_found(), "range {range:?}: {error}"),
            }
        }
        // A reader that is dropped in the middle does no harm.
        let mut reader = self.storage.get(&self.key("get/large"), None, &self.deadline).unwrap();
        reader.read_exact(&mut [0; 10]).unwrap();
        drop(reader);
        assert!(self.get("get/large") == content);
    }

    fn missing_objects(&self) {
        self.put("missing/folder/there", b"x");
        for name in ["missing/not", "missing/folder", "missing/folder/ther", "put/a/below", "nowhere/at/all"]
        {
            let key = self.key(name);
            let is_missing = |what: &str, error: Error| {
                assert!(
                    matches!(&error, Error::NotFound(named) if *named == key),
                    "{what} of {name}: {error:?}"
                );
            };
            is_missing("get", self.open(name, None).expect_err("get of nothing"));
            is_missing("get of a range", self.open(name, Some(0..1)).expect_err("get of nothing"));
            is_missing("get of no bytes", self.open(name, Some(0..0)).expect_err("get of nothing"));
            is_missing("head", self.storage.head(&key, &self.deadline).expect_err("head of nothing"));
        }
    }

    fn heads(&self) {
        let content = vec![7; 70_000];
        self.put("head/a", &content);
        let object = self.storage.head(&self.key("head/a"), &self.deadline).unwrap();
        assert_eq!((object.key, object.size), (self.key("head/a"), 70_000));
        if let Some(crc32) = object.crc32 {
            assert_eq!(crc32, crc32fast::hash(&content));
        }
        if let Some(modified) = object.modified {
            let age = jiff::Timestamp::now().duration_since(modified).abs();
            assert!(age < jiff::SignedDuration::from_hours(1), "written {modified}");
        }
        self.put("head/empty", b"");
        assert_eq!(self.storage.head(&self.key("head/empty"), &self.deadline).unwrap().size, 0);
    }

    fn every_character_in_keys(&self) {
        let names = [
            "main/7301234567890123456/cluster.json",
            "main/7301234567890123456/RECOVERY.md",
            "wal/00000001/00000001/000000010000000000000001-0a1b2c3d.lz4.age",
            "wal/history/00000002.history-00000000.lz4.age",
            "wal/history/000000010000000000000001.00000028.backup-ffffffff.lz4",
            "wal/history/000000010000000000000001.partial-0a1b2c3d.lz4.age",
            "backup/20260101T120000Z-abc_def/data/0000001.lz4.age",
            "a cluster with spaces/x",
            "a+b=c&d,e;f@g:h!i$j'k(l)m*n~o/x",
        ];
        for name in names {
            self.put(&format!("chars/{name}"), name.as_bytes());
        }
        let mut wanted: Vec<String> = names.iter().map(|name| format!("chars/{name}")).collect();
        wanted.sort();
        assert_eq!(self.names("chars/", "", 100), wanted);
        for name in names {
            assert_eq!(self.get(&format!("chars/{name}")), name.as_bytes());
        }
        assert_eq!(self.names("chars/a cluster", "", 9), ["chars/a cluster with spaces/x"]);
        assert_eq!(self.names("chars/", "chars/a+", 1), ["chars/a+b=c&d,e;f@g:h!i$j'k(l)m*n~o/x"]);
    }

    fn lists(&self) {
        assert!(self.list("nothing/here", "", 10).is_empty());
        assert!(self.list("put/a/", "", 10).is_empty());
        // In the order of bytes `a-` < `a.` < `a/` < `a0` < `a_`, whether folder or object. No object has the name of
        // a folder: a directory cannot hold both, and Walden has no such keys.
        let names = ["list/a-b", "list/a.b", "list/a/b", "list/a/c/d", "list/a0", "list/a_", "list/b"];
        for name in names.iter().rev() {
            self.put(name, name.as_bytes());
        }
        assert_eq!(self.names("list/", "", 100), names);
        assert_eq!(self.names("list/a", "", 100), names[..6]);
        assert_eq!(self.names("list/a/", "", 100), names[2..4]);
        assert_eq!(self.names("list/a/c", "", 100), names[3..4]);
        assert_eq!(self.names("list/", "", 3), names[..3]);
        assert_eq!(self.names("list/", "", 0), names[..0]);
        for (index, name) in names.iter().enumerate() {
            assert_eq!(self.names("list/", name, 100), names[index + 1..], "after {name}");
            assert_eq!(
                self.names("list/", name, 1),
                names[index + 1..].iter().take(1).copied().collect::<Vec<_>>()
            );
        }
        // Where the start is not a key itself, or lies before or behind the prefix.
        assert_eq!(self.names("list/", "list/a/", 100), names[2..]);
        assert_eq!(self.names("list/", "list/a/c/", 100), names[3..]);
        assert_eq!(self.names("list/", "list/a/z", 100), names[4..]);
        assert_eq!(self.names("list/", "get/zzz", 100), names);
        assert!(self.names("list/", "list0", 100).is_empty());
        assert!(self.names("list/a/", "list/b", 100).is_empty());
        let object = &self.list("list/a/b", "", 1)[0];
        assert_eq!((object.key.clone(), object.size), (self.key("list/a/b"), 8));
        // A place relative to the root is found as well.
        let all = self.storage.list(&self.base, "", 5, &self.deadline).unwrap();
        assert_eq!(all.len(), 5);
    }

    fn lists_many(&self, count: usize) {
        let name = |index: usize| format!("many/{:08X}/{index:06}", index / 256);
        std::thread::scope(|scope| {
            for part in 0..4 {
                scope.spawn(move || {
                    for index in (part..count).step_by(4) {
                        self.put(&name(index), b"");
                    }
                });
            }
        });
        let names: Vec<String> = (0..count).map(name).collect();
        assert_eq!(self.names("many/", "", usize::MAX), names);
        assert_eq!(self.names("many/", "", count - 1), names[..count - 1]);
        assert_eq!(self.names("many/", &names[3], usize::MAX), names[4..]);
        assert_eq!(self.names("many/", &names[count - 2], 10), names[count - 1..]);
        let folders = self.storage.list_folders(&self.key("many/"), &self.deadline).unwrap();
        assert_eq!(folders.len(), count.div_ceil(256));
    }

    fn folders(&self) {
        let list = |prefix: &str| self.storage.list_folders(&self.key(prefix), &self.deadline).unwrap();
        for name in ["folders/b/x", "folders/a/y/z", "folders/a/x", "folders/c", "folders/a-1/x"] {
            self.put(name, b"");
        }
        assert_eq!(list("folders/"), ["a", "a-1", "b"]);
        assert_eq!(list("folders/a/"), ["y"]);
        assert!(list("folders/b/").is_empty());
        assert!(list("folders/none/").is_empty());
        assert!(list("folders/c/").is_empty());
        let root = self.storage.list_folders("", &self.deadline).unwrap();
        assert!(root.contains(&self.base.trim_end_matches('/').to_owned()), "{root:?}");
    }

    fn deletes(&self) {
        self.put("delete/a", b"a");
        self.put("delete/b", b"b");
        self.storage.delete(&self.key("delete/a"), &self.deadline).unwrap();
        self.storage.delete(&self.key("delete/a"), &self.deadline).unwrap();
        self.storage.delete(&self.key("delete/none/of/this"), &self.deadline).unwrap();
        assert!(self.open("delete/a", None).unwrap_err().is_not_found());
        assert_eq!(self.names("delete/", "", 10), ["delete/b"]);
        assert_eq!(self.put("delete/a", b"again"), Put::Created);
        assert_eq!(self.get("delete/a"), b"again");
    }

    fn races(&self) {
        for round in 0..10 {
            let name = format!("race/{round}");
            // As large as to be written in several steps.
            let contents: Vec<Vec<u8>> = (0..4).map(|writer| vec![writer; 300_000]).collect();
            let start = std::sync::Barrier::new(contents.len());
            let puts: Vec<Put> = std::thread::scope(|scope| {
                let write = |content| {
                    start.wait();
                    self.put(&name, content)
                };
                let writers: Vec<_> =
                    contents.iter().map(|content| scope.spawn(move || write(content))).collect();
                writers.into_iter().map(|writer| writer.join().unwrap()).collect()
            });
            assert_eq!(puts.iter().filter(|put| **put == Put::Created).count(), 1, "{puts:?}");
            let winner = puts.iter().position(|put| *put == Put::Created).unwrap();
            assert!(self.get(&name) == contents[winner], "the content is not the winner's");
        }
    }

    fn a_cut_deadline_ends_calls(&self) {
        let over = Deadline::stall(Duration::from_secs(20));
        over.cut_after(Duration::ZERO);
        let key = self.key("put/a");
        assert!(matches!(self.storage.head(&key, &over), Err(Error::TimedOut(_))));
        assert!(matches!(
            self.storage.put_new(&self.key("over"), &Bytes::new(), &over),
            Err(Error::TimedOut(_))
        ));
        assert!(matches!(self.storage.list(&self.base, "", 1, &over), Err(Error::TimedOut(_))));
    }

    fn remove_everything(&self) {
        let found = self.list("", "", usize::MAX);
        std::thread::scope(|scope| {
            for part in found.chunks(found.len().div_ceil(4).max(1)) {
                scope.spawn(move || {
                    for object in part {
                        self.storage.delete(&object.key, &self.deadline).unwrap();
                    }
                });
            }
        });
        assert!(self.list("", "", 1).is_empty());
    }
}
