//! Any bytes at all for every parser of outside data: the twins of the fuzz targets, for the ordinary test run. Pure
//! noise hardly gets past the first byte, so most inputs are good ones with a few bytes changed.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::Config;
use walden::codec::Sealer;

use crate::anything;
use crate::segment::{name, segment};
use crate::site::{opener, sealer};

const CONFIG: &str = r#"cluster = "main"
data_dir = "/data"
state_dir = "state"
[archive]
acknowledge = 1
deadline = "2m"
parallel = 4
[encryption]
recipients = ["age1"]
identity_file = "i"
[[repository]]
name = "a"
url = "s3://bucket/prefix"
region = "r"
path_style = true
[[repository]]
name = "b"
url = "file:///b"
"#;

const LINE: &str = r#"{"path":"base/5/1259","kind":"file","mode":384,"mtime":1700000000,"size":8192,
"crc32c":"0badc0de","extents":[{"piece":0,"at":512,"length":8192,"crc32c":"0badc0de","frame":0,"frame_length":99,
"skip":512}],"bad_pages":{"count":1,"blocks":[0]}}"#;

const SUMMARY: &str = r#"{"format":1,"id":"20260101T000000Z","cluster":"main","system_identifier":"7301234567890123456",
"major_version":15,"server_version":"15.18","walden_version":"0.1.0","label":"l","from_standby":false,"timeline":1,
"start_lsn":"0/2000028","stop_lsn":"0/2000100","checkpoint_lsn":"0/2000060","start_time":"2026-01-01T00:00:00Z",
"stop_time":"2026-01-01T00:00:01Z","wal_segment_size":16777216,"data_checksums":true,"encrypted":true,
"ending":".lz4.age","data_dir":"/data","size":1,"stored_size":1,"files":1,
"manifest":{"name":"manifest.jsonl.lz4.age","size":1,"crc32":"0badc0de"},"pieces":[]}"#;

/// Changes to a good input: where, and to what; and where it is cut, if it is.
fn damage() -> impl Strategy<Value = (Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>)> {
    (
        vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        proptest::option::weighted(0.2, any::<prop::sample::Index>()),
    )
}

fn spoil(
    good: &[u8],
    (changes, cut): &(Vec<(prop::sample::Index, u8)>, Option<prop::sample::Index>),
) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for (at, value) in changes {
        let at = at.index(bytes.len());
        bytes[at] = *value;
    }
    if let Some(cut) = cut {
        bytes.truncate(cut.index(good.len()));
    }
    bytes
}

#[test]
fn the_good_inputs_are_good() {
    serde_json::from_str::<walden::repository::backup::ManifestLine>(LINE).unwrap();
    serde_json::from_str::<walden::repository::backup::BackupSummary>(SUMMARY).unwrap();
    walden::config::Config::parse(CONFIG, std::path::Path::new("/etc/walden/walden.toml")).unwrap();
}

proptest! {
    #![proptest_config(Config { failure_persistence: None, ..Config::default() })]

    #[test]
    fn wal_names(noise in vec(any::<u8>(), 0..60), near in "[0-9A-Fa-f]{22,26}(\\.(history|partial|backup|[0-9A-F]{8}\\.backup))?(-[0-9a-f]{8}\\.lz4(\\.age)?)?") {
        anything::wal_name(&noise);
        anything::wal_name(near.as_bytes());
    }

    #[test]
    fn headers(noise in vec(any::<u8>(), 0..600), damage in damage()) {
        anything::header(&noise);
        let good = segment(&name(1), 1);
        anything::header(&spoil(&good[..48], &damage));
        anything::header(&spoil(include_bytes!("../golden/pg_control-15"), &damage));
        anything::header(&spoil(include_bytes!("../golden/backup_label-15"), &damage));
        anything::header(&spoil(b"1\t0/3000000\tno reason\n2\t0/5000000\tbefore x\n", &damage));
    }

    #[test]
    fn configurations(noise in ".{0,200}", damage in damage()) {
        anything::config(noise.as_bytes());
        anything::config(&spoil(CONFIG.as_bytes(), &damage));
    }

    #[test]
    fn manifests(noise in vec(any::<u8>(), 0..200), damage in damage()) {
        anything::manifest(&noise);
        anything::manifest(&spoil(LINE.as_bytes(), &damage));
        anything::manifest(&spoil(SUMMARY.as_bytes(), &damage));
    }
}

proptest! {
    #![proptest_config(Config { cases: 64, failure_persistence: None, ..Config::default() })]

    #[test]
    fn objects(noise in vec(any::<u8>(), 0..2000), plaintext in vec(any::<u8>(), 0..100_000), damage in damage()) {
        let opener = opener();
        anything::object(&noise, &opener);
        for sealer in [sealer(), Sealer::unencrypted()] {
            anything::object(&spoil(&sealer.seal(&plaintext).unwrap(), &damage), &opener);
        }
    }
}
