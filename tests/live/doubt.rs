//! Doubt on real servers: whatever cannot be answered stops a recovery or lets a standby wait; nothing ever ends early, and
//! no branch is replayed that was abandoned.

use std::fs;
use std::time::{Duration, Instant};

use crate::support::restored::{in_recovery, make_standby, run_to_its_end, set, start_and_promote};
use crate::support::{Cluster, Fork, Ledger, Site, Stop, Walden, live_test, user};

live_test!(
    fn a_repository_that_dies_in_mid_recovery_stops_the_server_and_never_promotes_it(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(14);
        let all = Ledger::ids(&site.cluster);
        let dir = site.restore("restored", &["--until", "latest"]);
        // The repositories go when the third segment is asked for.
        let go = format!(
            "cd_back=$PWD; cd {} && [ \"$1\" = {} ] && [ -d primary ] && mv primary primary-away && mv replica replica-away\ncd $cd_back",
            site.work.path().display(),
            names[2]
        );
        let script = site.restore_script("restore.sh", &go);
        set(&dir, &format!("restore_command = '{} %f %p'", script.display()));
        let log = run_to_its_end(&pg, &dir);
        assert!(log.contains("FATAL") && log.contains("absence is not proven"), "{log}");
        assert!(!log.contains("selected new timeline"), "{log}");
        assert!(dir.join("recovery.signal").exists());

        site.restore_script("restore.sh", "");
        site.bring_back();
        let mut cluster = start_and_promote(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster), all);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    fn a_standby_rides_out_an_outage_and_catches_up(pg: Installation) {
        let site = Site::with_backup(&pg);
        site.fill(3);
        let mut standby = site.standby(&pg, "standby");
        standby.start();
        let caught_up = |standby: &Cluster| {
            standby.try_psql("select count(*) from ledger").is_ok()
                && Ledger::ids(standby) == Ledger::ids(&site.cluster)
        };
        standby.wait_until("the standby has caught up", || caught_up(&standby));
        site.take_away();
        Ledger::add(&site.cluster);
        site.cluster.switch_wal();
        std::thread::sleep(Duration::from_secs(5));
        assert!(standby.is_running(), "{}", standby.log_tail());
        assert!(standby.log().contains("absence is not proven"), "{}", standby.log_tail());
        site.bring_back();
        Ledger::add(&site.cluster);
        site.archive_a_segment();
        standby.wait_until("the standby has caught up again", || caught_up(&standby));
        assert_eq!(standby.psql("select pg_is_in_recovery()"), "t");
        standby.stop(Stop::Fast);
    }
);

live_test!(
    [15]
    fn a_doubt_on_a_timeline_covers_its_parents_until_it_is_settled(pg: Installation) {
        let fork = Fork::make(&pg);
        let site = &fork.site;
        // A server that asks, as its postmaster.pid tells.
        let data = site.work.create_dir("standby");
        for name in ["pg_wal", "global"] {
            fs::create_dir(data.join(name)).expect("create");
            user::give(&data.join(name));
        }
        fs::copy(site.cluster.data_dir().join("global/pg_control"), data.join("global/pg_control")).expect("copy");
        user::give(&data.join("global/pg_control"));
        make_standby(&data);
        let started = |number: u32| {
            fs::write(data.join("postmaster.pid"), format!("4711\n{}\n{number}\n", data.display())).expect("write");
            user::give(&data.join("postmaster.pid"));
        };
        let walden = site.walden.clone().dir(&data);
        let get = |name: &str| walden.run(&["archive-get", name, "pg_wal/RECOVERYXLOG"]);

        started(1);
        site.take_away();
        get(&fork.childs).expect_code(4);
        site.bring_back();
        // It is there again, but this server was refused it a moment ago: it has to ask again, and does.
        let finished = get(&fork.parents).expect_code(4);
        assert!(finished.stderr.contains("must be asked for first"), "{finished}");
        get(&fork.childs).ok();
        get(&fork.parents).ok();

        // A server that was started anew begins with its newest timeline, whatever that is.
        site.take_away();
        get(&fork.childs).expect_code(4);
        site.bring_back();
        started(2);
        get(&fork.parents).ok();

        // Damage in one repository is noted, in all it is a doubt.
        site.damage("primary", &fork.childs);
        get(&fork.childs).ok();
        let index = rusqlite::Connection::open(site.work.join("state/main/index.sqlite")).expect("open index");
        let noted: i64 = index.query_row("select count(*) from damage", [], |row| row.get(0)).expect("count");
        assert_eq!(noted, 1);
        site.damage("replica", &fork.childs);
        get(&fork.childs).expect_code(6);
        // What is known to be there is not handed out on the parent either.
        get(&fork.parents).expect_code(4);

        // Where no note can be written, not even a standby may go on.
        let text = fs::read_to_string(&site.config).expect("read");
        let blocked = site.work.write("blocked", "a file").display().to_string();
        let state = site.work.join("state").display().to_string();
        fs::write(&site.config, text.replace(&state, &blocked)).expect("write");
        let finished = get(&fork.childs).expect_code(200);
        assert!(finished.stderr.contains("could not be noted"), "{finished}");
    }
);

live_test!(
    fn whatever_befalls_a_get_the_server_stops_and_goes_on_when_it_is_mended(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(5);
        let all = Ledger::ids(&site.cluster);
        let dir = site.restore("restored", &["--until", "latest"]);
        let nowhere = format!("{} --config /nonexistent/walden.toml archive-get", Walden::binary().display());
        let cases = [
            ("no configuration", format!("exec {nowhere} \"$1\" \"$2\""), "configuration"),
            ("a wrong flag", format!("exec {nowhere} --nonsense \"$1\" \"$2\""), "--nonsense"),
            ("killed", "kill -9 $$".to_owned(), "137"),
            ("told to end", "kill -15 $$".to_owned(), ""),
        ];
        let stops = |when: &str, says: &str| {
            let log = run_to_its_end(&pg, &dir);
            assert!(log.contains(says) && !log.contains("selected new timeline"), "{when}: {log}");
            assert!(log.contains("FATAL") || says.is_empty(), "{when}: {log}");
            assert!(dir.join("recovery.signal").exists(), "{when}");
        };
        for (when, script, says) in cases {
            let script = site.restore_script("restore.sh", &format!("[ \"$1\" = {} ] && {script}", names[2]));
            set(&dir, &format!("restore_command = '{} %f %p'", script.display()));
            stops(when, says);
        }
        site.restore_script("restore.sh", "");
        for repository in ["primary", "replica"] {
            site.damage(repository, &names[2]);
        }
        stops("damaged everywhere", "decrypt");
        for repository in ["primary", "replica"] {
            site.damage(repository, &names[2]);
        }
        for copy in site.wal_objects("replica", &names[3]) {
            let other = copy.with_file_name(format!("{}-0badc0de.lz4.age", names[3]));
            fs::copy(&copy, &other).expect("copy");
            user::give(&other);
        }
        stops("two contents", "two contents");
        site.lose(&format!("{}-0badc0de", names[3]));
        let mut cluster = start_and_promote(&pg, &dir);
        assert_eq!(Ledger::ids(&cluster), all);
        cluster.stop(Stop::Fast);
    }
);

live_test!(
    fn a_standby_waits_for_a_segment_in_flight_and_is_promoted_at_once(pg: Installation) {
        let site = Site::with_backup(&pg);
        let names = site.fill(5);
        let all = Ledger::ids(&site.cluster);
        let mut standby = site.standby(&pg, "standby");
        site.hide(&names[1]);
        site.hide(&names[3]);
        standby.start();
        let waits_for = |name: &str| format!("\"{name}\" may be on its way");
        standby
            .wait_until("it asks for the second segment", || standby.log().contains(&waits_for(&names[1])));
        site.show(&names[1]);
        standby
            .wait_until("it asks for the fourth segment", || standby.log().contains(&waits_for(&names[3])));
        standby.wait_until("it has replayed the first three", || Ledger::ids(&standby) == all[..3]);
        assert!(in_recovery(&standby));
        // The segment may come for another four minutes; who promotes has decided not to wait.
        let began = Instant::now();
        assert_eq!(standby.psql("select pg_promote(true, 60)"), "t", "{}", standby.log_tail());
        assert!(began.elapsed() < Duration::from_secs(30), "{:?}", began.elapsed());
        assert_eq!(Ledger::ids(&standby), all[..3]);
        standby.stop(Stop::Fast);
    }
);
