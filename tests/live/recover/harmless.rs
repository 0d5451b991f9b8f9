//! A restored copy is harmless: it runs beside its original, and nothing leads back there.

use std::fs;
use std::path::Path;

use crate::support::{Cluster, ClusterOptions, Ledger, Site, SiteOptions, Stop, live_test, user};

/// Moves the configuration to where Debian's packages have it (`/etc/postgresql/15/main`), with all that names places.
fn move_configuration(site: &mut Site, etc: &Path, logs: &Path) {
    let data_dir = site.cluster.data_dir().to_path_buf();
    fs::create_dir_all(etc.join("conf.d")).expect("create");
    let mut text = fs::read_to_string(data_dir.join("postgresql.conf")).expect("read");
    for (name, value) in [
        ("data_directory", data_dir.display().to_string()),
        ("hba_file", etc.join("pg_hba.conf").display().to_string()),
        ("ident_file", etc.join("pg_ident.conf").display().to_string()),
        ("external_pid_file", etc.join("main.pid").display().to_string()),
        ("log_directory", logs.display().to_string()),
        ("logging_collector", "on".to_owned()),
        ("cluster_name", "15/main".to_owned()),
        ("archive_cleanup_command", format!("touch {}", etc.join("cleaned").display())),
        ("recovery_end_command", format!("touch {}", etc.join("ended").display())),
        ("synchronous_standby_names", "the_originals".to_owned()),
        ("synchronous_commit", "local".to_owned()),
        ("recovery_min_apply_delay", "1h".to_owned()),
    ] {
        text += &format!("{name} = '{value}'\n");
    }
    // A file inside the data directory may lead outside again.
    fs::write(
        data_dir.join("local.conf"),
        format!("data_directory = '{}'\nwork_mem = '7MB'\n", data_dir.display()),
    )
    .expect("write");
    text += &format!("include_dir = 'conf.d'\ninclude '{}/local.conf'\n", data_dir.display());
    fs::write(etc.join("postgresql.conf"), text).expect("write");
    fs::write(etc.join("conf.d/mine.conf"), "maintenance_work_mem = '33MB'\n").expect("write");
    fs::remove_file(data_dir.join("postgresql.conf")).expect("remove");
    for name in ["pg_hba.conf", "pg_ident.conf"] {
        fs::rename(data_dir.join(name), etc.join(name)).expect("move");
    }
    user::give_tree(etc);
    user::give_tree(&data_dir);
    site.cluster.config_file(&etc.join("postgresql.conf"));
}

live_test!(
    [15, 18]
    fn a_copy_of_a_debian_cluster_runs_beside_it(pg: Installation) {
        let mut site = Site::prepare(&pg, &SiteOptions::default());
        let etc = site.work.create_dir("etc");
        let logs = site.work.create_dir("logs");
        move_configuration(&mut site, &etc, &logs);
        site.cluster.start();
        let space = site.work.create_dir("space");
        site.cluster.psql(&format!("create tablespace fast location '{}'", space.display()));
        Ledger::create(&site.cluster);
        site.cluster.psql("alter table ledger set tablespace fast");
        assert_eq!(site.cluster.psql("show config_file"), etc.join("postgresql.conf").display().to_string());
        site.walden.run(&["base-backup", "--fast"]).ok();
        let kept = Ledger::add(&site.cluster);
        Ledger::add(&site.cluster);
        site.archive_a_segment();
        let pid = site.cluster.pid();
        let listed = |dir: &Path| {
            let mut files = Vec::new();
            crate::support::site::walk(dir, &mut files);
            files.len()
        };
        let (in_etc, in_logs) = (listed(&etc), listed(&logs));

        let dir = site.work.join("copy").display().to_string();
        let root = site.work.join("spaces").display().to_string();
        let arguments = ["recover", "--until", &kept.after, "--data-dir", &dir, "--tablespace-root", &root, "--start"];
        let finished = site.walden.run(&arguments).ok();
        assert!(finished.stdout.contains("is taken: the restored server gets port"), "{finished}");
        let mut copy = Cluster::adopt(&pg, Path::new(&dir));
        for (name, value) in [
            ("data_directory", dir.clone()),
            ("config_file", format!("{dir}/postgresql.conf")),
            ("hba_file", format!("{dir}/pg_hba.conf")),
            ("ident_file", format!("{dir}/pg_ident.conf")),
            ("external_pid_file", String::new()),
            ("log_directory", "log".to_owned()),
            ("archive_mode", "off".to_owned()),
            ("archive_cleanup_command", String::new()),
            ("recovery_end_command", String::new()),
            ("synchronous_standby_names", String::new()),
            ("recovery_min_apply_delay", "0".to_owned()),
            ("work_mem", "7MB".to_owned()),
            ("maintenance_work_mem", "33MB".to_owned()),
        ] {
            assert_eq!(copy.psql(&format!("show {name}")), value, "{name}");
        }
        assert_ne!(copy.port(), site.cluster.port());
        assert_eq!(Ledger::ids(&copy), [kept.id]);
        copy.psql("insert into ledger select 1000, '0', now(); checkpoint");
        assert_eq!(Ledger::ids(&site.cluster).len(), 2, "the original has nothing of it");
        assert_eq!(site.cluster.pid(), pid);
        let pid_file = fs::read_to_string(etc.join("main.pid")).expect("the original's pid file");
        assert_eq!(pid_file.trim().parse().ok(), pid);
        assert_eq!((listed(&etc), listed(&logs)), (in_etc, in_logs), "nothing was written there");
        copy.stop(Stop::Fast);
        assert_eq!(site.cluster.psql("select count(*) from ledger"), "2");
    }
);

live_test!(
    [15, 17]
    fn a_copy_does_not_take_its_publishers_slot(pg: Installation) {
        let publisher = Cluster::start_new(&pg, &ClusterOptions::default().setting("wal_level", "logical"));
        publisher.psql("create table news (a int primary key); create publication all_news for table news");
        let site = Site::new(&pg);
        site.cluster.psql("create table news (a int primary key)");
        site.cluster.psql(&format!(
            "create subscription reader connection '{}' publication all_news",
            publisher.connection_string()
        ));
        let arrived = |cluster: &Cluster, count: &str| cluster.psql("select count(*) from news") == count;
        publisher.psql("insert into news values (1)");
        site.cluster.wait_until("the row arrives", || arrived(&site.cluster, "1"));
        site.walden.run(&["base-backup", "--fast"]).ok();
        publisher.psql("insert into news values (2)");
        site.cluster.wait_until("the row arrives", || arrived(&site.cluster, "2"));
        site.archive_a_segment();
        let reader = "select active_pid from pg_replication_slots where slot_name = 'reader'";
        let before = publisher.psql(reader);

        let dir = site.work.join("copy").display().to_string();
        site.walden.run(&["recover", "--until", "latest", "--data-dir", &dir, "--start"]).ok();
        let mut copy = Cluster::adopt(&pg, Path::new(&dir));
        assert!(arrived(&copy, "2"));
        assert_eq!(copy.psql("select subenabled from pg_subscription"), "t");
        publisher.psql("insert into news values (3)");
        site.cluster.wait_until("the row arrives at the original", || arrived(&site.cluster, "3"));
        assert_eq!(publisher.psql(reader), before, "the same process serves the original all the time");
        assert!(!before.is_empty() && arrived(&copy, "2"));
        let workers = "select count(*) from pg_stat_activity where backend_type like 'logical replication%'";
        assert_eq!(copy.psql(workers), "0");
        copy.stop(Stop::Fast);
    }
);
