//! archive-push and archive-get against real servers: what is archived comes back, and every exit code is the one that
//! PostgreSQL must see.

use std::fs;
use std::path::{Path, PathBuf};

use crate::support::tools::{self, run_script};
use crate::support::{S3Store, Site, SiteOptions, live_test, require, user};

/// A WAL segment's first 40 bytes with another system identifier.
fn with_other_system_identifier(segment: &Path, copy: &Path) {
    let mut content = fs::read(segment).expect("read segment");
    content[24] ^= 1;
    fs::write(copy, content).expect("write segment");
    user::give(copy);
}

fn pg_wal(site: &Site, name: &str) -> PathBuf {
    site.cluster.data_dir().join("pg_wal").join(name)
}

live_test!(
    fn what_is_archived_comes_back_identical_from_each_repository(pg: Installation) {
        let site = Site::new(&pg);
        site.cluster.pgbench(&["-i", "-s", "2", "-q"]);
        let copies = site.work.create_dir("copies");
        let mut names = Vec::new();
        for _ in 0..3 {
            let name = site.cluster.psql("select pg_walfile_name(pg_current_wal_insert_lsn())");
            site.cluster.pgbench(&["-t", "50", "-n"]);
            names.push(name);
            site.archive_a_segment();
        }
        names.dedup();
        for name in &names {
            for repository in ["primary", "replica"] {
                assert_eq!(site.wal_objects(repository, name).len(), 1, "{name} in {repository}");
            }
            let without = if name.ends_with('1') { "primary" } else { "replica" };
            let (finished, path) = site.get(name, &["--without", without]);
            finished.ok();
            assert_eq!(fs::metadata(&path).expect("the file").len(), 16 << 20);
            // The server may have recycled it by now; what is still there must be the same.
            if let Ok(original) = fs::read(pg_wal(&site, name)) {
                assert!(original == fs::read(&path).expect("read"), "{name} differs");
            }
            fs::copy(&path, copies.join(name)).expect("copy");
            user::give(&copies.join(name));
        }
        // pg_waldump reads what came back.
        if let Some(waldump) = tools::pg_waldump(pg.major) {
            let first = copies.join(&names[0]);
            run_script(&format!("{} {} | tail -n 1 | grep -q rmgr", waldump.display(), first.display())).ok();
        }
        let log = site.cluster.log();
        assert!(!log.contains("archive command failed") && !log.contains("WARNING: "), "{log}");
    }
);

live_test!(
    [15]
    fn each_outcome_of_a_push_has_its_exit_code(pg: Installation) {
        let site = Site::new(&pg);
        let name = site.archive_a_segment();
        let dir = site.work.create_dir("pg_wal");
        // The file may be recycled under our hands: fetch it.
        let (finished, fetched) = site.get(&name, &[]);
        finished.ok();
        let segment = dir.join(&name);
        fs::copy(&fetched, &segment).expect("copy");
        user::give(&segment);
        let push = |path: &Path| site.walden.run(&["archive-push", &path.display().to_string()]);

        push(&segment).ok();
        push(&segment).ok();
        assert_eq!(site.wal_objects("primary", &name).len(), 1, "the same content is stored once");

        let mut other = fs::read(&segment).expect("read");
        let last = other.len() - 1;
        other[last] ^= 1;
        fs::write(&segment, &other).expect("write");
        let conflict = push(&segment).expect_code(5);
        assert!(conflict.stderr.contains("CRC-32") && conflict.stderr.contains(&name), "{conflict}");
        let held = site.wal_objects("primary", &name);
        assert_eq!(held.len(), 1, "nothing was overwritten: {held:?}");
        let (finished, again) = site.get(&name, &[]);
        finished.ok();
        assert!(fs::read(again).expect("read") == fs::read(&fetched).expect("read"), "the first content is still there");
        assert!(fs::read(&segment).expect("read") == other, "and the second one where it was");

        let foreign = site.work.create_dir("foreign").join(&name);
        with_other_system_identifier(&fetched, &foreign);
        let finished = push(&foreign).expect_code(6);
        assert!(finished.stderr.contains("system identifier"), "{finished}");

        let renamed = dir.join("000000010000000000000099");
        fs::copy(&fetched, &renamed).expect("copy");
        user::give(&renamed);
        push(&renamed).expect_code(6);
        let short = dir.join("0000000100000000000000AA");
        fs::write(&short, b"short").expect("write");
        user::give(&short);
        push(&short).expect_code(6);
        push(&dir.join("postgresql.conf")).expect_code(2);
        push(&dir.join("0000000100000000000000BB")).expect_code(1);

        let nowhere = crate::support::Walden::new(Path::new("/nonexistent/walden.toml"));
        let finished = nowhere.run(&["archive-push", &segment.display().to_string()]).expect_code(3);
        assert_eq!(finished.stderr.lines().count(), 1, "{finished}");

        fs::rename(site.repository("primary"), site.work.join("away1")).expect("rename");
        fs::rename(site.repository("replica"), site.work.join("away2")).expect("rename");
        let finished = push(&segment).expect_code(4);
        assert!(finished.stderr.contains("does not exist"), "{finished}");
    }
);

live_test!(
    [15]
    fn each_outcome_of_a_get_has_its_exit_code(pg: Installation) {
        let site = Site::new(&pg);
        // What was fetched ahead was verified then, and does not see the damage that is done to the objects below.
        let config = fs::read_to_string(&site.config).expect("read");
        fs::write(&site.config, config.replace("[archive]", "[archive]\nprefetch = 0")).expect("write");
        let first = site.archive_a_segment();
        site.cluster.psql("create table t (a int)");
        let second = site.archive_a_segment();
        let absent = "0000000100000000000000F0";
        site.get(absent, &[]).0.expect_code(1);
        site.get("00000001.history", &[]).0.expect_code(1);
        site.get("00000002.history", &[]).0.expect_code(1);

        // Without its cluster.json a repository proves nothing, an unmounted one neither.
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        let (finished, _) = site.get(absent, &[]);
        assert!(finished.stderr.contains("absence is not proven"), "{finished}");
        finished.expect_code(200);
        site.get(absent, &["--on-error", "retry"]).0.expect_code(4);
        site.get(absent, &["--without", "replica"]).0.expect_code(1);
        site.get(&first, &[]).0.ok();
        fs::create_dir(site.repository("replica")).expect("create");
        user::give(&site.repository("replica"));
        site.get(absent, &[]).0.expect_code(200);
        fs::remove_dir(site.repository("replica")).expect("remove");
        fs::rename(site.work.join("away"), site.repository("replica")).expect("rename");

        // In a standby's data directory the ordinary codes let it retry.
        let dir = site.work.create_dir("standby");
        fs::write(dir.join("standby.signal"), "").expect("write");
        let path = dir.join("RECOVERYXLOG").display().to_string();
        fs::rename(site.repository("replica"), site.work.join("away")).expect("rename");
        site.walden.clone().dir(&dir).run(&["archive-get", absent, &path]).expect_code(4);
        fs::rename(site.work.join("away"), site.repository("replica")).expect("rename");

        // A hole: the first is gone everywhere and the second exists. Young, it may be in flight; old, it is a gap.
        for repository in ["primary", "replica"] {
            for object in site.wal_objects(repository, &first) {
                fs::rename(&object, object.with_extension("aside")).expect("rename");
            }
            for object in site.wal_objects(repository, &second) {
                let file = fs::File::options().write(true).open(&object).expect("open");
                file.set_modified(std::time::SystemTime::now() - std::time::Duration::from_hours(1)).expect("set time");
            }
        }
        let (finished, _) = site.get(&first, &[]);
        assert!(finished.stderr.contains(&first) && finished.stderr.contains("missing"), "{finished}");
        finished.expect_code(200);
        let before = format!("{}{:02X}", &first[..22], 0);
        site.get(&first, &["--through", &before]).0.expect_code(1);

        // Damage in one repository: the next is used; in all of them: recovery stops.
        let damage = |repository: &str| {
            for object in site.wal_objects(repository, &second) {
                let mut bytes = fs::read(&object).expect("read");
                let middle = bytes.len() / 2;
                bytes[middle] ^= 0xff;
                fs::write(&object, bytes).expect("write");
            }
        };
        damage("primary");
        let (finished, path) = site.get(&second, &[]);
        assert!(finished.stderr.contains("next repository"), "{finished}");
        finished.ok();
        assert!(path.exists());
        damage("replica");
        let (finished, path) = site.get(&second, &[]);
        finished.expect_code(200);
        assert!(!path.exists(), "nothing half-written is left");
        site.get(&second, &["--on-error", "retry"]).0.expect_code(6);

        // Wrong flags stop recovery too.
        site.get(&second, &["--nonsense"]).0.expect_code(200);
        site.get("nonsense", &[]).0.expect_code(200);
        let nowhere = crate::support::Walden::new(Path::new("/nonexistent/walden.toml"));
        nowhere.run(&["archive-get", &second, "/tmp/x"]).expect_code(200);
    }
);

live_test!(
    [15]
    fn two_contents_under_one_name_stop_recovery(pg: Installation) {
        let site = Site::new(&pg);
        let name = site.archive_a_segment();
        let [object] = &site.wal_objects("primary", &name)[..] else { panic!("one object") };
        let other = object.with_file_name(format!("{name}-0badc0de.lz4.age"));
        fs::copy(object, &other).expect("copy");
        user::give(&other);
        let (finished, path) = site.get(&name, &[]);
        assert!(finished.stderr.contains("two contents"), "{finished}");
        finished.expect_code(200);
        assert!(!path.exists());
        site.get(&name, &["--on-error", "retry"]).0.expect_code(6);
    }
);

live_test!(
    [15]
    fn whatever_happens_to_the_index_archiving_goes_on_with_one_warning(pg: Installation) {
        let site = Site::new(&pg);
        let index = site.work.join("state/main/index.sqlite");
        site.archive_a_segment();
        assert!(index.exists());
        let remove = || {
            for ending in ["", "-wal", "-shm"] {
                let _ = fs::remove_file(format!("{}{ending}", index.display()));
            }
        };
        remove();
        site.archive_a_segment();
        assert!(index.exists(), "a missing index is made anew");

        remove();
        fs::write(&index, vec![42; 8192]).expect("write");
        user::give(&index);
        let name = site.archive_a_segment();
        site.get(&name, &[]).0.ok();
        let dir = site.work.create_dir("pg_wal");
        let (_, fetched) = site.get(&name, &[]);
        let segment = dir.join(&name);
        fs::copy(fetched, &segment).expect("copy");
        user::give(&segment);
        let push = || site.walden.run(&["archive-push", &segment.display().to_string()]).ok();
        let warnings = |text: &str| text.lines().filter(|line| line.starts_with("WARNING")).count();
        assert_eq!(warnings(&push().stderr), 1);

        remove();
        site.archive_a_segment();
        let lock = rusqlite::Connection::open(&index).expect("open index");
        lock.execute_batch("PRAGMA locking_mode = EXCLUSIVE; BEGIN EXCLUSIVE; CREATE TABLE x (a); ").expect("lock");
        let finished = push();
        assert_eq!(warnings(&finished.stderr), 1, "{finished}");
        assert!(finished.stderr.contains("index not used"), "{finished}");
        drop(lock);
        push();
    }
);

live_test!(
    [15]
    fn with_one_repository_gone_archiving_goes_on_and_what_the_other_holds_is_fetched(pg: Installation) {
        let site = Site::new(&pg);
        for gone in ["primary", "replica"] {
            fs::rename(site.repository(gone), site.work.join("away")).expect("rename");
            let name = site.archive_a_segment();
            site.get(&name, &[]).0.ok();
            fs::rename(site.work.join("away"), site.repository(gone)).expect("rename");
            assert!(site.wal_objects(gone, &name).is_empty());
            site.get(&name, &[]).0.ok();
        }
    }
);

live_test!(
    [15]
    fn s3_takes_and_gives_like_a_directory(pg: Installation) {
        let store = S3Store::start();
        let site = Site::with(
            &pg,
            &SiteOptions {
                repositories: vec![format!("bucket={}", store.url("some/prefix"))],
                init: [
                    "--repository-option",
                    &format!("bucket.endpoint={}", store.endpoint),
                    "--repository-option",
                    "bucket.path_style=true",
                    "--repository-option",
                    &format!("bucket.region={}", store.region),
                ]
                .map(str::to_owned)
                .to_vec(),
                env: store.env(),
                ..SiteOptions::default()
            },
        );
        let name = site.archive_a_segment();
        assert_eq!(store.objects_matching(&name).len(), 1, "{:?}", store.objects());
        let (finished, path) = site.get(&name, &[]);
        finished.ok();
        assert_eq!(fs::metadata(path).expect("the file").len(), 16 << 20);
        site.get("0000000100000000000000F0", &[]).0.expect_code(1);

        // Archived already: the index answers without a request.
        store.forget_requests();
        let segment = pg_wal(&site, &name);
        if segment.exists() {
            site.walden.run(&["archive-push", &segment.display().to_string()]).ok();
            assert!(store.requests().is_empty(), "{:?}", store.requests());
        }
        store.set_down(true);
        site.get(&name, &[]).0.expect_code(200);
        store.set_down(false);
        // S3 answers 403 for a missing key when the right to list is missing: that proves nothing.
        store.set_hide_missing(true);
        site.get("00000002.history", &["--on-error", "stop"]).0.expect_code(1);
        store.set_hide_missing(false);
    }
);

live_test!(
    [15]
    fn objects_open_with_age_and_lz4(pg: Installation) {
        let (Some(age), Some(lz4)) = (require(tools::age(), "age"), require(tools::lz4(), "lz4")) else { return };
        let site = Site::new(&pg);
        let name = site.archive_a_segment();
        let (finished, path) = site.get(&name, &[]);
        finished.ok();
        let object = site.wal_objects("primary", &name).remove(0);
        let identity = site.work.join("identity.txt");
        run_script(&format!(
            "set -o pipefail; {} -d -i {} {} | {} -dc | cmp - {}",
            age.display(),
            identity.display(),
            object.display(),
            lz4.display(),
            path.display()
        ))
        .ok();
    }
);
