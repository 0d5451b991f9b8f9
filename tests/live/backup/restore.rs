//! Putting files back into place.

use super::*;

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
