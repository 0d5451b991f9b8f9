//! The base-backup engine and the restore of files, driven through the library: what the server, `pg_verifybackup`
//! and plain `age | lz4 | tar` say of what they make.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use bytes::Bytes;
use walden::backup::{BackupOptions, Sink};
use walden::codec::{Opener, Sealer, generate_identity};
use walden::kind::{Error, Kind, Result};
use walden::progress::Progress;
use walden::recovery::restore::{RestoreOptions, Source, restore};
use walden::repository::backup::{BackupSummary, StoredObject, new_backup_id};
use walden::server::Server;

use crate::support::{Cluster, ClusterOptions, Stop, live_test, run, tools, user};

/// A directory as the one repository.
struct Folder {
    dir: PathBuf,
    /// After so many objects the store is full.
    capacity: Mutex<usize>,
}

impl Folder {
    fn new(dir: PathBuf) -> Self {
        fs::create_dir_all(dir.join("data")).expect("create folder");
        Self { dir, capacity: Mutex::new(usize::MAX) }
    }
}

impl Sink for Folder {
    fn put(&self, name: &str, body: Bytes) -> Result<()> {
        let mut capacity = self.capacity.lock().expect("lock");
        if *capacity == 0 {
            return Err(Error::new(Kind::Repository, "no space left"));
        }
        *capacity -= 1;
        fs::File::create_new(self.dir.join(name))
            .and_then(|mut file| file.write_all(&body))
            .expect("write object");
        Ok(())
    }
}

/// Directories as repositories, the preferred one first.
struct Folders(Vec<PathBuf>);

impl Source for Folders {
    fn get(&self, object: &StoredObject, copy: usize) -> Result<Option<Bytes>> {
        let Some(dir) = self.0.get(copy) else { return Ok(None) };
        match fs::read(dir.join(&object.name)) {
            Ok(bytes) => Ok(Some(bytes.into())),
            Err(error) => Err(Error::new(Kind::Repository, error.to_string())),
        }
    }
}

/// A cluster with all that a backup must get right, and a place to back it up to.
struct Scene {
    cluster: Cluster,
    folder: Folder,
    sealer: Sealer,
    identity: PathBuf,
}

impl Scene {
    fn new(pg: &crate::support::Installation, options: ClusterOptions) -> Self {
        let archive = tempfile::Builder::new().prefix("wt-archive-").tempdir().expect("archive").keep();
        user::give(&archive);
        let options = options
            .setting("archive_mode", "on")
            .setting("archive_command", format!("cp %p {}/%f", archive.display()))
            .setting("max_prepared_transactions", 3);
        let cluster = Cluster::start_new(pg, &options);
        let folder = Folder::new(cluster.work().create_dir("backup"));
        let (identity, recipient) = generate_identity();
        let identity = cluster.work().write("identity", identity);
        fs::rename(&archive, cluster.work().join("archive")).expect("move the archive");
        let archive = cluster.work().join("archive");
        cluster.set("archive_command", format!("cp %p {}/%f", archive.display()));
        Self { cluster, folder, sealer: Sealer::for_recipients(&[recipient]).expect("recipient"), identity }
    }

    fn fill(&self) {
        let space = self.cluster.work().create_dir("space");
        self.cluster.psql(&format!("create tablespace elsewhere location '{}'", space.display()));
        self.cluster.psql(
            "create table plain as select g, md5(g::text) from generate_series(1, 50000) g;
             create index on plain (md5);
             create unlogged table unlogged as select g from generate_series(1, 1000) g;
             create table moved tablespace elsewhere as select g from generate_series(1, 7000) g;
             select lo_from_bytea(0, decode(repeat('ab', 100000), 'hex'));",
        );
        let data = self.cluster.data_dir();
        fs::create_dir(data.join("log")).expect("log");
        user::give(&data.join("log"));
        for name in ["x".repeat(180), "umläut \"quoted\"".to_owned()] {
            fs::write(data.join("log").join(&name), "a log").expect("write a file with an odd name");
            user::give(&data.join("log").join(name));
        }
        self.cluster.psql("select pg_create_physical_replication_slot('old', true)");
        fs::write(data.join("base/pgsql_tmp_stray"), "x").expect("temporary file");
    }

    fn options(&self) -> BackupOptions {
        BackupOptions {
            id: new_backup_id(jiff::Timestamp::now(), walden::postgres::TimelineId(1)),
            cluster: "main".into(),
            data_dir: self.cluster.data_dir().into(),
            label: "it's a label".into(),
            note: None,
            fast: true,
            parallel: 3,
            max_rate: None,
            temp_dir: std::env::temp_dir(),
        }
    }

    fn back_up(&self) -> Result<BackupSummary> {
        let mut server = Server::connect(&self.cluster.connection_string())?;
        let progress = Progress::new();
        let summary =
            walden::backup::run(&self.options(), &mut server, &self.sealer, &self.folder, &progress);
        if summary.is_err() {
            assert_eq!(
                server.query_one_text("select 1").unwrap_err().kind(),
                Kind::Server,
                "the session is closed"
            );
        } else {
            assert_eq!(progress.done(), progress.total());
        }
        summary
    }

    fn source(&self) -> Folders {
        Folders(vec![self.folder.dir.clone()])
    }

    fn restore_options(&self, name: &str) -> RestoreOptions {
        RestoreOptions {
            data_dir: self.cluster.work().join(name),
            parallel: 2,
            tablespaces: BTreeMap::new(),
            tablespace_root: Some(self.cluster.work().join(format!("{name}-spaces"))),
            owner: user::unprivileged().map(|user| (user.uid.as_raw(), user.gid.as_raw())),
            ..RestoreOptions::default()
        }
    }

    fn restore(&self, summary: &BackupSummary, source: &Folders, options: &RestoreOptions) -> Result<()> {
        let opener = Opener::from_identity_file(&self.identity)?;
        restore(summary, source, &opener, options, &Progress::new())
    }

    /// Starts a restored directory as a copy that replays everything archived.
    fn start_copy(&self, data_dir: &Path) -> Cluster {
        let archive = self.cluster.work().join("archive");
        let mut copy = Cluster::open(&self.cluster.installation, data_dir);
        copy.append_config(&format!(
            "archive_mode = off\nrestore_command = 'cp {}/%f %p'\n",
            archive.display()
        ));
        fs::write(data_dir.join("recovery.signal"), "").expect("write recovery.signal");
        user::give(&data_dir.join("recovery.signal"));
        copy.start();
        copy.wait_until("the copy is promoted", || copy.psql("select pg_is_in_recovery()") == "f");
        copy
    }
}

/// Path, mode and content of all files below a directory, as a hash.
fn contents(dir: &Path) -> HashMap<PathBuf, (u32, u64)> {
    fn walk(root: &Path, dir: &Path, found: &mut HashMap<PathBuf, (u32, u64)>) {
        for entry in fs::read_dir(dir).expect("read directory") {
            let path = entry.expect("entry").path();
            let meta = fs::metadata(&path).expect("metadata");
            let hash = if meta.is_dir() {
                walk(root, &path, found);
                0
            } else {
                u64::from(crc32fast::hash(&fs::read(&path).expect("read file"))) << 32 | meta.len()
            };
            found.insert(path.strip_prefix(root).expect("below").to_owned(), (meta.mode() & 0o7777, hash));
        }
    }
    let mut found = HashMap::new();
    walk(dir, dir, &mut found);
    found
}

live_test!(
    fn a_backup_under_load_is_accepted_by_every_judge(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let cluster = &scene.cluster;
        cluster.pgbench(&["-i", "-s", "3", "-q"]).ok();
        let load = cluster.pgbench_background(&["-n", "-c", "2", "-T", "600"]);
        cluster.psql("create table churned as select g from generate_series(1, 9000) g");
        let summary = scene.back_up().expect("backup");
        assert!(load.pid() > 0);
        load.signal(nix::sys::signal::Signal::SIGTERM);
        let _ = load.wait(crate::support::PATIENCE);
        cluster.psql("insert into moved select 1");
        cluster.wait_archived(&cluster.switch_wal());

        assert_eq!(summary.major_version, pg.major);
        assert_eq!(summary.bad_pages, 0);
        assert!(summary.start_time < summary.stop_time && summary.start_lsn < summary.stop_lsn);
        assert_eq!((summary.tablespaces.len(), summary.timeline.0, summary.from_standby), (1, 1, false));
        let archived = |name: &str| cluster.work().join("archive").join(name).exists();
        assert!(summary.wal_segments().all(|segment| archived(&segment.to_string())));
        for object in summary.objects() {
            assert!(
                object.matches(&fs::read(scene.folder.dir.join(&object.name)).expect("object")),
                "{object:?}"
            );
        }

        // By hand.
        let (Some(age), Some(_), Some(_)) = (tools::age(), tools::lz4(), tools::tar()) else { return };
        let hand = cluster.work().create_dir("hand");
        tools::run_script(&format!(
            "cd '{}'; for o in ../backup/data/*; do '{}' -d -i ../identity $o || exit; done | lz4 -d | tar x",
            hand.display(),
            age.display()
        ))
        .ok();
        // By the engine.
        let options = scene.restore_options("restored");
        scene.restore(&summary, &scene.source(), &options).expect("restore");
        let restored = &options.data_dir;
        let (mut by_hand, mut by_engine) = (contents(&hand), contents(restored));
        let moved = Path::new("tablespace_map");
        assert_ne!(by_hand.remove(moved), by_engine.remove(moved));
        assert_eq!(by_hand.len(), by_engine.len());
        for (path, found) in &by_hand {
            assert_eq!(by_engine.get(path), Some(found), "{}", path.display());
        }
        assert!(!by_hand.contains_key(Path::new("pg_replslot/old")));
        assert!(by_hand.contains_key(Path::new("pg_wal/archive_status")));
        assert_eq!(by_hand.contains_key(Path::new("pg_wal/summaries")), pg.major >= 17);
        if let Some(verify) = tools::pg_verifybackup(pg.major) {
            run(user::command(&verify).arg("-n").arg(&hand)).ok();
        }

        let mut copy = scene.start_copy(restored);
        for (sql, expected) in [
            ("select count(*) from plain", "50000"),
            ("select count(*) from moved", "7001"),
            ("select count(*) from unlogged", "0"),
            ("select count(*) from churned", "9000"),
            ("select count(*) from pgbench_accounts", "300000"),
            (
                "select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)",
                "t",
            ),
            ("select length(lo_get(oid)) from pg_largeobject_metadata", "100000"),
        ] {
            assert_eq!(copy.psql(sql), expected, "{sql}");
        }
        let space =
            copy.psql("select pg_tablespace_location(oid) from pg_tablespace where spcname = 'elsewhere'");
        assert!(space.contains("restored-spaces"), "{space}");
        copy.stop(Stop::Fast);
    }
);

live_test!(
    [15, 18]
    fn pg_verifybackup_accepts_a_restored_directory_with_its_links(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let summary = scene.back_up().expect("backup");
        // To where they were: the original must have gone.
        fs::rename(scene.cluster.work().join("space"), scene.cluster.work().join("gone")).expect("move tablespace");
        let options = RestoreOptions { tablespace_root: None, ..scene.restore_options("restored") };
        scene.restore(&summary, &scene.source(), &options).expect("restore");
        if let Some(verify) = tools::pg_verifybackup(pg.major) {
            run(user::command(&verify).arg("-n").arg(&options.data_dir)).ok();
        }
        let refused = scene.restore(&summary, &scene.source(), &options).expect_err("not empty");
        assert_eq!(refused.kind(), Kind::Server);
        fs::rename(scene.cluster.work().join("space"), scene.cluster.work().join("unused")).expect("move tablespace");
        fs::rename(scene.cluster.work().join("gone"), scene.cluster.work().join("space")).expect("move it back");
    }
);

live_test!(
    [15]
    fn a_bad_page_is_named_and_the_backup_kept(pg: Installation) {
        let mut scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let path = scene.cluster.psql("select pg_relation_filepath('plain')");
        scene.cluster.stop(Stop::Fast);
        let path = scene.cluster.data_dir().join(path);
        let mut file = fs::File::options().read(true).write(true).open(&path).expect("open relation");
        // One page with a flipped bit, and one with an LSN that lies far in the future.
        for (at, value) in [(2 * 8192 + 4000, None), (5 * 8192, Some(0x7f))] {
            let mut byte = [0];
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.read_exact(&mut byte).expect("read");
            file.seek(SeekFrom::Start(at)).expect("seek");
            file.write_all(&[value.unwrap_or(byte[0] ^ 1)]).expect("write");
        }
        scene.cluster.start();
        let summary = scene.back_up().expect("backup");
        assert_eq!(summary.bad_pages, 2);
        let opener = Opener::from_identity_file(&scene.identity).expect("identity");
        let object = &summary.manifest;
        let stored = fs::read(scene.folder.dir.join(&object.name)).expect("manifest");
        let text = opener.open_whole(&object.name, &stored[..], 1 << 30).expect("open manifest");
        let bad: Vec<serde_json::Value> = text
            .split(|byte| *byte == b'\n')
            .filter(|line| !line.is_empty())
            .map(|line| serde_json::from_slice::<serde_json::Value>(line).expect("json"))
            .filter(|line| line.get("bad_pages").is_some())
            .collect();
        assert_eq!(bad.len(), 1, "{bad:?}");
        assert!(path.ends_with(bad[0]["path"].as_str().expect("path")));
        assert_eq!(bad[0]["bad_pages"]["blocks"], serde_json::json!([2, 5]));
    }
);

live_test!(
    [15]
    fn a_failed_backup_ends_on_the_server_too(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        *scene.folder.capacity.lock().expect("lock") = 0;
        let error = scene.back_up().expect_err("the store is full");
        assert_eq!(error.kind(), Kind::Repository);
        let sessions = "select count(*) from pg_stat_activity where application_name = 'walden'";
        scene.cluster.wait_until("the session ends", || scene.cluster.psql(sessions) == "0");
        assert!(scene.cluster.log().contains("aborting backup due to backend exiting"), "{}", scene.cluster.log_tail());
    }
);

live_test!(
    [15]
    fn the_wrong_server_or_role_is_refused(pg: Installation) {
        let (scene, other) = (Scene::new(&pg, ClusterOptions::default()), Scene::new(&pg, ClusterOptions::default()));
        let refuse = |connection: &str, data_dir: &Path| {
            let mut server = Server::connect(connection).expect("connect");
            let options = BackupOptions { data_dir: data_dir.into(), ..scene.options() };
            walden::backup::preflight(&options, &mut server).expect_err("refused")
        };
        let connection = scene.cluster.connection_string();
        let error = refuse(&connection, other.cluster.data_dir());
        assert_eq!(error.kind(), Kind::Config, "{error}");
        scene.cluster.psql("create role walden login");
        let as_walden = connection.replace("user=postgres", "user=walden");
        let error = refuse(&as_walden, scene.cluster.data_dir());
        assert!(error.to_string().contains("pg_read_all_settings"), "{error}");
        scene.cluster.psql("grant pg_read_all_settings to walden");
        let error = refuse(&as_walden, scene.cluster.data_dir());
        assert!(error.to_string().contains("GRANT EXECUTE"), "{error}");
        scene.cluster.psql(
            "grant execute on function pg_backup_start(text, boolean), pg_backup_stop(boolean) to walden",
        );
        let mut server = Server::connect(&as_walden).expect("connect");
        walden::backup::preflight(&scene.options(), &mut server).expect("a role without more rights than it needs");
        walden::backup::run(&scene.options(), &mut server, &scene.sealer, &scene.folder, &Progress::new())
            .expect("backup as that role");
    }
);

live_test!(
    [15]
    fn a_corrupt_object_is_taken_from_the_other_repository(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let summary = scene.back_up().expect("backup");
        let replica = scene.cluster.work().create_dir("replica");
        tools::run_script(&format!("cp -r '{}'/. '{}'", scene.folder.dir.display(), replica.display())).ok();
        let damage = |dir: &Path, name: &str| {
            let mut bytes = fs::read(dir.join(name)).expect("object");
            let at = bytes.len() / 2;
            bytes[at] ^= 1;
            fs::remove_file(dir.join(name)).expect("remove");
            fs::write(dir.join(name), bytes).expect("damage");
        };
        damage(&scene.folder.dir, &summary.pieces[0].name);
        damage(&replica, &summary.manifest.name);
        fs::remove_file(scene.folder.dir.join(&summary.pieces[1].name)).expect("remove");
        let both = Folders(vec![scene.folder.dir.clone(), replica.clone()]);
        scene.restore(&summary, &both, &scene.restore_options("from-both")).expect("each object is whole somewhere");

        let alone = RestoreOptions { parallel: 1, ..scene.restore_options("from-one") };
        let error = scene.restore(&summary, &scene.source(), &alone).expect_err("a piece is corrupt");
        assert_eq!(error.kind(), Kind::Corrupt, "{error}");
        assert!(error.to_string().contains(&summary.pieces[0].name), "{error}");
        assert!(!alone.data_dir.join("global/pg_control").exists());
        let mut half = Cluster::open(&pg, &alone.data_dir);
        assert!(half.try_start().is_err(), "half a cluster does not start");
    }
);

live_test!(
    [15]
    fn a_directory_in_use_is_refused_before_anything_is_written(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let summary = scene.back_up().expect("backup");
        let refuse = |options: &RestoreOptions| {
            let error = scene.restore(&summary, &scene.source(), options).expect_err("refused");
            (error.kind(), error.to_string())
        };
        let live = RestoreOptions { data_dir: scene.cluster.data_dir().into(), ..scene.restore_options("x") };
        let (kind, text) = refuse(&live);
        assert!(kind == Kind::Server && text.contains("a server runs in"), "{text}");
        let occupied = scene.restore_options("occupied");
        fs::create_dir_all(occupied.data_dir.join("something")).expect("occupy");
        assert!(refuse(&occupied).1.contains("something"));
        let in_place = RestoreOptions { tablespace_root: None, ..scene.restore_options("fresh") };
        let (kind, text) = refuse(&in_place);
        assert!(kind == Kind::Server && text.contains("tablespace"), "{text}");
        assert!(!in_place.data_dir.exists(), "nothing was written");
        let unknown = RestoreOptions {
            tablespaces: BTreeMap::from([(1, PathBuf::from("/tmp/nothing"))]),
            ..scene.restore_options("fresh")
        };
        assert_eq!(refuse(&unknown).0, Kind::Usage);
    }
);

live_test!(
    [15, 17]
    fn configuration_from_outside_comes_along_and_does_not_lead_back(pg: Installation) {
        let mut scene = Scene::new(&pg, ClusterOptions::default());
        let etc = scene.cluster.work().create_dir("etc");
        let hba = scene.cluster.work().write("etc/pg_hba.conf", "local all all trust\nhost all all 127.0.0.1/32 trust\n");
        scene.cluster.work().create_dir("etc/conf.d");
        scene.cluster.work().write("etc/conf.d/a.conf", "work_mem = '7MB'\n");
        scene.cluster.append_config(&format!(
            "data_directory = '{}'\nhba_file = '{}'\ninclude_dir = '{}/conf.d'\nexternal_pid_file = '{}/x.pid'\n",
            scene.cluster.data_dir().display(),
            hba.display(),
            etc.display(),
            etc.display()
        ));
        fs::remove_file(scene.cluster.data_dir().join("pg_hba.conf")).expect("remove the unused file");
        scene.cluster.restart();
        assert_eq!(scene.cluster.psql("show work_mem"), "7MB");
        let summary = scene.back_up().expect("backup");
        let external = summary.external_config.as_ref().expect("external configuration");
        assert_eq!(external.hba_file.as_deref(), hba.to_str());
        assert_eq!((external.config_file.clone(), external.included.len()), (None, 1));
        scene.cluster.wait_archived(&scene.cluster.switch_wal());
        let options = scene.restore_options("restored");
        scene.restore(&summary, &scene.source(), &options).expect("restore");
        fs::remove_dir_all(&etc).expect("the original's configuration is gone");
        let mut copy = scene.start_copy(&options.data_dir);
        assert_eq!(copy.psql("show work_mem"), "7MB");
        assert_eq!(copy.psql("show data_directory"), options.data_dir.display().to_string());
        assert_eq!(copy.psql("show hba_file"), options.data_dir.join("pg_hba.conf").display().to_string());
        assert_eq!(copy.psql("show external_pid_file"), "");
        copy.stop(Stop::Fast);
        let mode = fs::metadata(options.data_dir.join("pg_hba.conf")).expect("pg_hba.conf").permissions().mode();
        assert_eq!(mode & 0o077, 0, "configuration may hold secrets");
    }
);

live_test!(
    fn a_backup_from_a_standby_is_as_good(pg: Installation) {
        let scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let summary = scene.back_up().expect("backup");
        let options = scene.restore_options("standby");
        scene.restore(&summary, &scene.source(), &options).expect("restore");
        let mut standby = Cluster::open(&pg, &options.data_dir);
        standby.append_config(&format!(
            "primary_conninfo = '{}'\nfull_page_writes = on\n",
            scene.cluster.connection_string()
        ));
        fs::write(options.data_dir.join("standby.signal"), "").expect("write standby.signal");
        user::give(&options.data_dir.join("standby.signal"));
        standby.start();
        scene.cluster.psql("insert into plain select 1, 'later'");
        standby.wait_until("the standby caught up", || standby.psql("select count(*) from plain") == "50001");

        let folder = Folder::new(scene.cluster.work().create_dir("from-standby"));
        let mut server = Server::connect(&standby.connection_string()).expect("connect");
        let options = BackupOptions { data_dir: options.data_dir.clone(), ..scene.options() };
        let summary = walden::backup::run(&options, &mut server, &scene.sealer, &folder, &Progress::new());
        let summary = summary.expect("backup from the standby");
        assert!(summary.from_standby && summary.bad_pages == 0, "{summary:?}");
        scene.cluster.psql("insert into plain select 2, 'last'");
        scene.cluster.wait_archived(&scene.cluster.switch_wal());

        let options = scene.restore_options("again");
        scene.restore(&summary, &Folders(vec![folder.dir.clone()]), &options).expect("restore");
        assert!(!options.data_dir.join("standby.signal").exists(), "a copy is no standby by itself");
        if let Some(verify) = tools::pg_verifybackup(pg.major) {
            // The map of tablespaces is the copy's own.
            let verify =
                run(user::command(&verify).arg("-n").args(["-i", "tablespace_map"]).arg(&options.data_dir));
            verify.ok();
        }
        let mut copy = scene.start_copy(&options.data_dir);
        assert_eq!(copy.psql("select count(*) from plain"), "50002");
        copy.stop(Stop::Fast);
        standby.stop(Stop::Fast);
    }
);

live_test!(
    [15]
    fn a_server_that_goes_away_ends_the_backup(pg: Installation) {
        let mut scene = Scene::new(&pg, ClusterOptions::default());
        scene.fill();
        let mut server = Server::connect(&scene.cluster.connection_string()).expect("connect");
        let slow = BackupOptions { max_rate: Some(4 << 20), ..scene.options() };
        let progress = Progress::new();
        let error = std::thread::scope(|scope| {
            let backup = scope.spawn(|| {
                walden::backup::run(&slow, &mut server, &scene.sealer, &scene.folder, &progress).expect_err("no server")
            });
            crate::support::wait_until("files are being read", || progress.done() > 0);
            scene.cluster.kill();
            backup.join().expect("join")
        });
        assert_eq!(error.kind(), Kind::Server, "{error}");
        assert!(error.hint().is_some(), "{error}");
    }
);
