//! What is found out before anything is read: one line, a hint, the right exit code.

use super::stored::{complete, folders, journal_lines, reconfigured};
use super::*;
use crate::support::{Finished, Site};

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
        take(&mut server, &scene.options(), &scene.sealer, &scene.folder, &Progress::new()).expect("backup as that role");
    }
);

live_test!(
    fn a_role_with_the_documented_rights_backs_up_and_one_without_is_told_what_it_lacks(pg: Installation) {
        let site = Site::new(&pg);
        site.cluster.psql("create role backup login");
        let walden = reconfigured(&site, "role.toml", &[("user=postgres", "user=backup")]);
        let refused = |words: &str| {
            let refused = walden.run(&["base-backup", "--fast"]).expect_code(7);
            assert_one_line(&refused, words);
        };
        refused("grant pg_read_all_settings");
        // What docs/configuration.md says.
        let page =
            fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/configuration.md")).expect("read");
        let grants: Vec<&str> = page.lines().filter(|line| line.starts_with("GRANT ")).collect();
        let of_version = |line: &&&str| {
            let old = line.contains("pg_start_backup") || line.contains("pg_stop_backup");
            let new = line.contains("pg_backup_start") || line.contains("pg_backup_stop");
            if pg.major == 14 { !new } else { !old }
        };
        // These two are for the round trip of check.
        let of_check =
            |line: &&&str| line.contains("pg_create_restore_point") || line.contains("pg_switch_wal");
        let grants: Vec<&&str> = grants.iter().filter(of_version).filter(|line| !of_check(line)).collect();
        assert_eq!(grants.len(), 3, "{grants:?}");
        site.cluster.psql(grants[0]);
        refused("GRANT EXECUTE");
        for grant in grants {
            site.cluster.psql(grant);
        }
        walden.run(&["base-backup", "--fast"]).ok();
        assert_eq!(complete(&site, "primary").len(), 1);
    }
);

/// Panics unless what was refused is one line that says `words`, with a hint, and nothing was stored.
#[track_caller]
fn assert_one_line(refused: &Finished, words: &str) {
    let errors: Vec<&str> = refused.stderr.lines().filter(|line| line.contains("ERROR")).collect();
    let [error] = errors[..] else { panic!("one line is expected: {refused}") };
    assert!(error.contains(words) && error.contains("hint: "), "{refused}");
}

live_test!(
    [14, 15, 18]
    fn a_server_that_does_not_archive_is_refused(pg: Installation) {
        let mut site = Site::new(&pg);
        let refused = |site: &Site, words: &str| {
            let refused = site.walden.run(&["base-backup", "--fast"]).expect_code(7);
            assert_one_line(&refused, words);
            assert!(folders(site, "primary").is_empty() && journal_lines(site) == 0, "{refused}");
        };
        let command = site.walden.command_line("archive-push %p");
        site.cluster.set("archive_command", "false");
        site.cluster.switch_wal();
        site.cluster.wait_until("archiving fails", || {
            site.cluster.psql("select failed_count > 0 from pg_stat_archiver") == "t"
        });
        refused(&site, "archiving fails: the server could not archive \"0000");
        site.cluster.set("archive_command", "");
        refused(&site, "archive_command is empty");
        // Once it works again it is trusted again; a command of another name is only warned of.
        let script = site.work.write("archive.sh", format!("{command}\n").replace("%p", "$1"));
        site.cluster.set("archive_command", format!("sh {} %p", script.display()));
        site.archive_a_segment();
        let other = site.walden.run(&["base-backup", "--fast"]).ok();
        assert!(other.stderr.contains("without walden in it"), "{other}");
        for repository in ["primary", "replica"] {
            for folder in folders(&site, repository).values() {
                fs::remove_dir_all(folder).expect("remove");
            }
        }
        site.cluster.append_config("archive_mode = off\n");
        site.cluster.restart();
        refused(&site, "archive_mode is off");
        site.cluster.append_config("wal_level = minimal\nmax_wal_senders = 0\n");
        site.cluster.restart();
        refused(&site, "wal_level is minimal");
        site.cluster.stop(Stop::Fast);
        refused(&site, "connect to server");
    }
);

live_test!(
    [17]
    fn repositories_that_cannot_be_reached_or_have_no_room_are_found_out_first(pg: Installation) {
        let site = Site::new(&pg);
        for name in ["primary", "replica"] {
            fs::rename(site.repository(name), site.work.join(format!("{name}-away"))).expect("rename");
        }
        assert_one_line(&site.walden.run(&["base-backup", "--fast"]).expect_code(4), "not mounted");
        for name in ["primary", "replica"] {
            fs::rename(site.work.join(format!("{name}-away")), site.repository(name)).expect("rename");
        }
        // A file of holes makes the database larger than any disk here.
        let large = site.cluster.data_dir().join("large");
        fs::File::create(&large).and_then(|file| file.set_len(1 << 43)).expect("a file with holes");
        user::give(&large);
        let refused = site.walden.run(&["base-backup", "--fast"]).expect_code(4);
        assert_one_line(&refused, "of free space, and the backup will take about");
        assert!(folders(&site, "primary").is_empty(), "nothing was begun");
        assert_eq!(site.cluster.psql("select count(*) from pg_stat_activity where application_name = 'walden'"), "0");
    }
);
